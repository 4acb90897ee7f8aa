"""The image grids: test images on which heatmaps disagree most, and defects that all arms together miss worst."""

import base64
import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from comparison.arms import Arm, pair
from dataset.anomaly_dataset import BaseSingleClassDataset
from evaluation.errors import mistakes_in
from evaluation.picture_scores import PictureScore
from evaluation.scores import RAREST, ClassScores, digest, read_scores, scores_file
from files.pictures import outline, overlay, to_picture

SIDE = 160  # pixels of the embedded pictures
SHOWN, SHOWN_PER_CLASS = 6, 2  # images per dataset


class Tile(NamedTuple):
    """One picture of the grid."""

    caption: str
    source: str  # data URI


class Chosen(NamedTuple):
    """An image of a grid: its class, its number among the class's stored scores, and why it was chosen."""

    class_name: str
    number: int
    why: str


def gallery(
    baseline: Arm, arms: Sequence[Arm], dataset: str, test_sets: dict[str, BaseSingleClassDataset]
) -> dict[str, list[dict]]:
    """Both grids of a data set, of the first paired seed of every arm. Heatmaps show scores.rarity_maps, one scale for
    all.

    Args:
        test_sets: {class: dataset} from dataset.get_dataset.

    Returns:
        {"disagreements", "misses": [{"class", "file", "label", "why", "tiles": [Tile]}]}

    Raises:
        ValueError: an image is not the evaluated one.
    """
    runs = {baseline.name: pair(baseline, arms[0])[0][0][1]} | {
        arm.name: pair(baseline, arm)[0][0][2] for arm in arms
    }
    stored = {
        name: read_scores(scores_file(run.folder, dataset, run.checkpoint))[0] for name, run in runs.items()
    }
    grids = {"disagreements": disagreements(stored), "misses": worst_misses(stored)}
    return {
        title: [draw_row(one, stored, test_sets[one.class_name]) for one in chosen]
        for title, chosen in grids.items()
    }


def rarity_of(scores: ClassScores, number: int | slice = slice(None)) -> np.ndarray:
    """Stored maps in powers of ten of rarity."""
    return scores.thumbnails[number] * np.float32(RAREST / 255)


def disagreements(stored: dict[str, dict[str, ClassScores]]) -> list[Chosen]:
    """The images whose maps are furthest from the baseline's, the first of `stored`: mean absolute difference in powers
    of ten, the largest over the arms."""
    first, *others = stored.values()
    ranked = []
    for class_name, scores in first.items():
        own = rarity_of(scores)
        apart = np.max(
            [np.abs(rarity_of(classes[class_name]) - own).mean((1, 2)) for classes in others], axis=0
        )
        for i in np.argsort(-apart, kind="stable")[:SHOWN_PER_CLASS]:
            chosen = Chosen(class_name, int(i), f"{apart[i]:.2f} powers of ten apart")
            ranked.append((float(apart[i]), class_name, str(scores.files[i]), chosen))
    ranked.sort(key=lambda entry: (-entry[0], entry[1], entry[2]))
    return [entry[3] for entry in ranked[:SHOWN]]


def worst_misses(stored: dict[str, dict[str, ClassScores]]) -> list[Chosen]:
    """The defective images that score lowest among their class's normal ones, by the mean over baseline and arms."""
    shares: dict[tuple[str, int], float] = {}
    for classes in stored.values():
        for one in mistakes_in(pictures_of(classes), label=1):
            key = one.picture.class_name, one.number
            shares[key] = shares.get(key, 0.0) + one.share / len(stored)
    chosen, taken = [], Counter()
    for (class_name, number), share in sorted(shares.items(), key=lambda entry: (-entry[1], *entry[0])):
        taken[class_name] += 1
        if taken[class_name] <= SHOWN_PER_CLASS:
            why = f"{100 * share:.0f} % of its class's normal images score higher, mean over the runs shown"
            chosen.append(Chosen(class_name, number, why))
    return chosen[:SHOWN]


def pictures_of(classes: dict[str, ClassScores]) -> list[PictureScore]:
    """The images of some classes as a list of scores; what is not stored of an image is NaN."""
    return [
        PictureScore(str(file), name, int(label), float(fused), float(own), math.nan)
        for name, one in classes.items()
        for file, label, fused, own in zip(one.files, one.labels, one.fused, one.own, strict=True)
    ]


def score_words(scores: ClassScores, number: int) -> str:
    """An image's score, and where it stands among its class's other normal images (ties count half)."""
    own, normal = scores.fused[number], scores.labels == 0
    normal[number] = False
    others = scores.fused[normal]
    if not len(others):
        return f"score {own:.4f}"
    lower = (np.mean(others < own) + np.mean(others <= own)) / 2
    return f"score {own:.4f}, above {100 * lower:.0f} % of normal"


def draw_row(
    chosen: Chosen, stored: dict[str, dict[str, ClassScores]], dataset: BaseSingleClassDataset
) -> dict:
    """One image: original, truth, every run's heatmap with its score.

    Args:
        stored: {run's name: {class: ClassScores}}.

    Raises:
        ValueError: the dataset has no such image.
    """
    class_name, number, why = chosen
    first = next(iter(stored.values()))[class_name]
    file, evaluated = str(first.files[number]), str(first.digests[number])
    index = next(
        (
            i
            for i, sample in enumerate(dataset.samples)
            if sample.file_name == file and digest(sample) == evaluated
        ),
        None,
    )
    if index is None:
        raise ValueError(
            f"{file} is not the image the runs were evaluated on: give their --data_root, or test again"
        )
    item = dataset[index]
    picture = cv2.resize(to_picture(item["image"]), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    mask = cv2.resize(item["mask"][0].numpy(), (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)
    truth = "truth" if item["mask_known"] else "truth: defective, place unknown"
    tiles = [Tile("original", png_uri(picture)), Tile(truth, png_uri(outline(picture, mask)))]
    for name, classes in stored.items():
        scores = classes[class_name]
        large = cv2.resize(rarity_of(scores, number), (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
        caption = f"{name}: {score_words(scores, number)}"
        tiles.append(Tile(caption, png_uri(overlay(picture, large, 0.0, RAREST))))
    return {"class": class_name, "file": file, "label": int(item["label"]), "why": why, "tiles": tiles}


def png_uri(picture: np.ndarray) -> str:
    """RGB bytes [H, W, 3] as an `<img>` source."""
    written, encoded = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    if not written:
        raise ValueError(f"cannot encode a picture of shape {picture.shape} as PNG: expected bytes [H, W, 3]")
    return "data:image/png;base64," + base64.b64encode(encoded.tobytes()).decode()
