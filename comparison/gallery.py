"""The image grid: the test images on which the arms' heatmaps disagree most with the baseline's."""

import base64
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from comparison.arms import Arm, pair
from dataset.anomaly_dataset import BaseSingleClassDataset
from evaluation.scores import RAREST, digest, read_scores, scores_file
from files.pictures import outline, overlay, to_picture

SIDE = 160  # pixels of the embedded pictures
SHOWN, SHOWN_PER_CLASS = 6, 2  # images per dataset


class Tile(NamedTuple):
    """One picture of the grid."""

    caption: str
    source: str  # data URI


def gallery(
    baseline: Arm, arms: Sequence[Arm], dataset: str, test_sets: dict[str, BaseSingleClassDataset]
) -> list[dict]:
    """Rows of the grid, the largest disagreement first.

    Heatmaps show scores.rarity_maps, one scale for all. An image's disagreement is the mean absolute difference of an
    arm's map to the baseline's, in powers of ten, the largest over the arms; first paired seed of every arm.

    Args:
        test_sets: {class: dataset} from dataset.get_dataset.

    Returns:
        [{"class", "file", "label", "disagreement", "tiles": [Tile]}]

    Raises:
        ValueError: an image is not the evaluated one.
    """
    runs = {baseline.name: pair(baseline, arms[0])[0][0][1]} | {
        arm.name: pair(baseline, arm)[0][0][2] for arm in arms
    }
    stored = {
        name: read_scores(scores_file(run.folder, dataset, run.checkpoint))[0] for name, run in runs.items()
    }
    ranked = []
    for class_name, scores in stored[baseline.name].items():
        maps = {
            name: classes[class_name].thumbnails * np.float32(RAREST / 255)
            for name, classes in stored.items()
        }
        apart = np.max([np.abs(maps[arm.name] - maps[baseline.name]).mean((1, 2)) for arm in arms], axis=0)
        for i in np.argsort(-apart, kind="stable")[:SHOWN_PER_CLASS]:
            image = str(scores.files[i]), str(scores.digests[i])
            ranked.append((float(apart[i]), class_name, *image, {name: maps[name][i] for name in maps}))
    ranked.sort(key=lambda entry: (-entry[0], entry[1], entry[2]))
    return [draw_row(*entry, test_sets[entry[1]]) for entry in ranked[:SHOWN]]


def draw_row(
    disagreement: float,
    class_name: str,
    file: str,
    evaluated: str,
    maps: dict[str, np.ndarray],
    dataset: BaseSingleClassDataset,
) -> dict:
    """One image: original, truth, every run's heatmap.

    Args:
        evaluated: digest of the image the runs were evaluated on.
        maps: {run's name: map [h, w]} in powers of ten of rarity.

    Raises:
        ValueError: the dataset has no such image.
    """
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
    for name, one in maps.items():
        large = cv2.resize(one, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
        tiles.append(Tile(name, png_uri(overlay(picture, large, 0.0, RAREST))))
    return {
        "class": class_name,
        "file": file,
        "label": int(item["label"]),
        "disagreement": disagreement,
        "tiles": tiles,
    }


def png_uri(picture: np.ndarray) -> str:
    """RGB bytes [H, W, 3] as an `<img>` source."""
    written, encoded = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    if not written:
        raise ValueError(f"cannot encode a picture of shape {picture.shape} as PNG: expected bytes [H, W, 3]")
    return "data:image/png;base64," + base64.b64encode(encoded.tobytes()).decode()
