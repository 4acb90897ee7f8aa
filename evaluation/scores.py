"""What a comparison needs of an evaluation beyond its metrics: per-image scores, pixel histograms, fingerprints.

test.py writes one compressed file per dataset and checkpoint under scores/ of the run's folder. The histograms make a
resampled test set a weighted sum over images, so that thousands of them are affordable; metrics stay exact.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from dataset.jsonl import Sample
from files.atomic import replacing, sha256
from files.names import safe_name
from metrics import (
    extremes,
    fused_score_of_extremes,
    image_region_weights,
    only,
    renamed,
    unnormalised_score_of_peak,
)

BINS = (
    512  # half of the bins' borders are quantiles of the abnormal pixels' scores, half of the normal pixels'
)
THUMBNAIL = 64  # largest side of the stored maps, in pixels
ROWS = (
    "positive",
    "negative",
    "overlap",
    "regions",
    "thumbnails",
)  # of ClassScores, made from maps and masks
RAREST = 3.0  # powers of ten, see rarity_maps


class ClassScores(NamedTuple):
    """The labelled images of one class of one evaluation, sorted by name; bins sorted by falling score.

    Of an image whose defect is in an unknown place no pixel is counted.
    """

    files: np.ndarray  # [n] str, relative to the data root
    digests: np.ndarray  # [n] str: image, mask and label as a short SHA-256
    labels: np.ndarray  # [n] 0/1
    fused: np.ndarray  # [n] upstream's image score over the whole test set
    own: np.ndarray  # [n] image score that one image alone determines
    positive: np.ndarray  # [n, bins] abnormal pixels
    negative: np.ndarray  # [n, bins] normal pixels
    overlap: np.ndarray  # [n, bins] sum of 1 / area of the pixels' regions
    regions: np.ndarray  # [n] 8-connected regions
    thumbnails: np.ndarray  # [n, s, s] uint8: rarity_maps, 255 for RAREST

    @property
    def mask_known(self) -> np.ndarray:
        """[n] bool: images whose pixels count."""
        return (self.positive.sum(axis=1) + self.negative.sum(axis=1)) > 0


class ImageScores(NamedTuple):
    """The columns of ClassScores that have one value per image."""

    files: np.ndarray
    digests: np.ndarray
    labels: np.ndarray
    fused: np.ndarray
    own: np.ndarray


def class_scores(found: dict, samples: Sequence[Sample], domain: str, levels: int) -> ClassScores:
    """What is kept of one class.

    Args:
        found: predictions from evaluation.predictions.predict_class, or accumulate_class.
        samples: the class's dataset.jsonl.Sample rows, in the order of `found`.
        levels: number of levels the maps sum over.
    """
    labels = np.asarray(found["labels"])
    order = sorted(np.flatnonzero(labels >= 0).tolist(), key=lambda i: found["files"][i])
    fused, own = (score[order] for score in image_scores(found, domain, levels))
    named = {
        "files": np.array([found["files"][i] for i in order]),
        "digests": np.array([digest(samples[i]) for i in order]),
        "labels": labels[order].astype(np.uint8),
        "fused": fused,
        "own": own,
    }
    if "maps" not in found:
        return ClassScores(**named, **{key: in_order(getattr(found["rows"], key), order) for key in ROWS})
    known = found["mask_known"][order]
    seen = only(labels >= 0, found["maps"]), only(labels >= 0, found["masks"]) > 0
    borders = bin_borders(*seen, only(labels >= 0, found["mask_known"]))
    # Image by image: numbers and weights of a whole class's pixels would take several times the maps' memory.
    rows = [
        image_histograms(found["maps"][i], found["masks"][i] > 0, sure, borders)
        for i, sure in zip(order, known, strict=True)
    ]
    positive, negative, overlap, regions = (np.array(column) for column in zip(*rows, strict=True))
    return ClassScores(
        **named,
        positive=positive,
        negative=negative,
        overlap=overlap,
        regions=regions,
        thumbnails=(rarity_maps(found["maps"], found["masks"], known, order) / RAREST * 255)
        .round()
        .astype(np.uint8),
    )


def image_scores(found: dict, domain: str, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """(upstream's image score over the labelled images, the one that an image alone determines) [n] each."""
    ends = image_extremes(found)
    fused = fused_score_of_extremes(ends, found["head"], domain, np.asarray(found["labels"]) >= 0)
    return fused, unnormalised_score_of_peak(ends[:, 1], found["head"], levels)


def image_extremes(found: dict) -> np.ndarray:
    """Lowest and highest score of every map of some predictions, [n, 2]."""
    return found["ends"] if "ends" in found else extremes(found["maps"])


def in_order(rows: np.ndarray, order: list[int]) -> np.ndarray:
    """Some rows in an order; themselves where that is all of them as they stand."""
    return rows if order == list(range(len(rows))) else rows[order]


def image_histograms(
    scores: np.ndarray, mask: np.ndarray, known: bool, borders: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """(abnormal pixels, normal pixels, overlap: each [BINS + 1]; regions) of one image, as ClassScores has them.

    Args:
        scores, mask: [H, W].
        known: whether its pixels count as normal outside the mask.
    """
    weights, regions = image_region_weights(mask)
    bins = numbers_between(scores, borders)
    positive = np.bincount(bins, mask.reshape(-1), minlength=BINS + 1)
    negative = np.bincount(bins, (~mask & known).reshape(-1), minlength=BINS + 1)
    overlap = np.bincount(bins, weights.reshape(-1), minlength=BINS + 1)
    return positive.astype(np.uint32), negative.astype(np.uint32), overlap, regions


def bin_numbers(maps: np.ndarray, masks: np.ndarray, known: np.ndarray | None = None) -> np.ndarray:
    """Bin of every pixel [n, pixels], 0 for the highest scores. Borders fit the class's own scores, as their range and
    crowding differ from run to run; equal scores share a bin. With `known` [n] bool borders fit these images alone."""
    borders = bin_borders(maps, masks, known)
    return np.stack([numbers_between(one, borders) for one in maps])


def bin_borders(maps: np.ndarray, masks: np.ndarray, known: np.ndarray | None = None) -> np.ndarray | None:
    """Borders between the bins of `bin_numbers`, rising; None where no pixel is known."""
    scores, defect = only(known, maps), only(known, masks)
    # One after the other: each is a copy.
    return quantile_borders(scores[side] for side in (defect, ~defect) if side.any())


def quantile_borders(sides: Iterable[np.ndarray]) -> np.ndarray | None:
    """Rising borders of at most BINS bins: quantiles of the scores of every side, [m] each, which lose their order;
    None without a side."""
    quantiles = np.linspace(0, 1, BINS // 2)
    found = [np.quantile(side, quantiles, method="lower", overwrite_input=True) for side in sides]
    return np.unique(np.concatenate(found)) if found else None


def numbers_between(scores: np.ndarray, borders: np.ndarray | None) -> np.ndarray:
    """Bin [pixels] of every score of one image, 0 for the highest; BINS without borders."""
    if borders is None:
        return np.full(scores.size, BINS)
    return BINS - np.searchsorted(borders, scores.reshape(-1), side="right")


def rarity_maps(
    maps: np.ndarray,
    masks: np.ndarray,
    known: np.ndarray | None = None,
    order: Sequence[int] | None = None,
) -> np.ndarray:
    """Small maps [n, s, s] of how rare a score is among the class's normal pixels: -log10 of the share of them that
    score at least as high, at most RAREST. Like the metrics it knows ranks only, so maps of any two runs share it.

    Args:
        maps: [n, S, S] scores.  masks: [n, S, S], > 0 is defective.
        known: [n] bool, images whose pixels outside the mask are normal; None for all.
        order: the n images to take, of more; None for all.
    """
    side = min(THUMBNAIL, maps.shape[-1])
    order = range(len(maps)) if order is None else order
    small = np.stack([shrunk(maps[i], side) for i in order])
    defect = np.stack([shrunk(masks[i] > 0, side) for i in order])
    candidates = only(known, small)[only(known, defect) == 0]
    normal = np.sort(candidates if candidates.size else small.reshape(-1))
    return rarity(small, normal)


def rarity(small: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """`rarity_maps` of shrunk maps [n, s, s], by the rising scores of normal pixels [m]."""
    higher = len(normal) - np.searchsorted(normal, small, side="left")
    return np.clip(-np.log10(np.maximum(higher, 10**-RAREST) / len(normal)), 0, RAREST)


def shrunk(picture: np.ndarray, side: int) -> np.ndarray:
    """A map [S, S] at [side, side], float32, each pixel the mean of what it covers."""
    return cv2.resize(picture.astype(np.float32), (side, side), interpolation=cv2.INTER_AREA)


def digest(sample: Sample) -> str:
    """Short fingerprint of a test image with its mask and label."""
    parts = [
        sha256(sample.image_path),
        ",".join(sha256(path) for path in sample.mask_paths),
        str(sample.label),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def rows_digest(classes: dict[str, ClassScores]) -> str:
    """SHA-256 over what the metadata says and holds: class, file, label and content of every test image."""
    lines = [
        f"{name}\t{file}\t{label}\t{content}"
        for name, one in sorted(classes.items())
        for file, label, content in zip(one.files, one.labels, one.digests, strict=True)
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def scores_file(save_path: Path | str, dataset: str, checkpoint: str) -> Path:
    """Where the scores of one evaluation lie; `checkpoint` as in metrics.json."""
    return Path(save_path) / "scores" / safe_name(dataset) / f"{safe_name(checkpoint)}.npz"


def write_scores(path: Path | str, classes: dict[str, ClassScores], about: dict) -> None:
    """Write one evaluation's scores in one step.

    Args:
        classes: {class name: ClassScores}.
        about: plain values stored beside them, with the exact metrics under "classes".
    """
    names = list(classes)
    arrays = {
        f"{i}.{key}": value for i, name in enumerate(names) for key, value in classes[name]._asdict().items()
    }
    about = about | {"names": names, "rows_sha256": rows_digest(classes)}
    with replacing(path) as file:
        np.savez_compressed(file, about=np.array(json.dumps(about)), **arrays)


def read_about(path: Path | str) -> dict:
    """The plain values of a scores file, quickly."""
    with np.load(path, allow_pickle=False) as stored:
        return _today(json.loads(str(stored["about"])))


def _today(about):
    """The plain values with the metrics under today's names."""
    return about | {"classes": {name: renamed(row) for name, row in about["classes"].items()}}


def read_scores(path: Path | str) -> tuple[dict[str, ClassScores], dict]:
    """Read a scores file.

    Returns:
        ({class name: ClassScores}, about)
    """
    with np.load(path, allow_pickle=False) as stored:
        about = _today(json.loads(str(stored["about"])))
        classes = {
            name: ClassScores(**{key: stored[f"{i}.{key}"] for key in ClassScores._fields})
            for i, name in enumerate(about["names"])
        }
    return classes, about


def read_image_scores(path: Path | str) -> dict[str, ImageScores]:
    """{class name: ImageScores} of a scores file, without its histograms and maps."""
    with np.load(path, allow_pickle=False) as stored:
        names = json.loads(str(stored["about"]))["names"]
        return {
            name: ImageScores(*(stored[f"{i}.{key}"] for key in ImageScores._fields))
            for i, name in enumerate(names)
        }
