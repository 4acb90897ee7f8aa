"""What a comparison needs of an evaluation beyond its metrics: per-image scores, pixel histograms, fingerprints.

test.py writes one compressed file per dataset and checkpoint under scores/ of the run's folder. The histograms make a
resampled test set a weighted sum over images, so that thousands of them are affordable; metrics stay exact.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from dataset.jsonl import Sample
from files.atomic import replacing, sha256
from files.names import safe_name
from metrics import fused_image_score, only, region_weights, renamed, unnormalised_image_score

BINS = (
    512  # half of the bins' borders are quantiles of the abnormal pixels' scores, half of the normal pixels'
)
THUMBNAIL = 64  # largest side of the stored maps, in pixels
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


def class_scores(found: dict, samples: Sequence[Sample], domain: str, levels: int) -> ClassScores:
    """What is kept of one class.

    Args:
        found: predictions from evaluation.predictions.predict_class.
        samples: the class's dataset.jsonl.Sample rows, in the order of `found`.
        levels: number of levels the maps sum over.
    """
    labels = np.asarray(found["labels"])
    order = sorted(np.flatnonzero(labels >= 0).tolist(), key=lambda i: found["files"][i])
    maps, masks, known = found["maps"][order], found["masks"][order] > 0, found["mask_known"][order]
    fused = fused_image_score(found["maps"], found["head"], domain, labels >= 0)[order]
    own = unnormalised_image_score(found["maps"], found["head"], levels)[order]
    weights, regions = region_weights(masks)
    bins = bin_numbers(maps, masks, known)
    positive = histograms(bins, masks.astype(np.float64)).astype(np.uint32)
    negative = histograms(bins, (~masks & known[:, None, None]).astype(np.float64)).astype(np.uint32)
    return ClassScores(
        files=np.array([found["files"][i] for i in order]),
        digests=np.array([digest(samples[i]) for i in order]),
        labels=labels[order].astype(np.uint8),
        fused=fused,
        own=own,
        positive=positive,
        negative=negative,
        overlap=histograms(bins, weights),
        regions=regions,
        thumbnails=(rarity_maps(maps, masks, known) / RAREST * 255).round().astype(np.uint8),
    )


def bin_numbers(maps: np.ndarray, masks: np.ndarray, known: np.ndarray | None = None) -> np.ndarray:
    """Bin of every pixel [n, pixels], 0 for the highest scores. Borders fit the class's own scores, as their range and
    crowding differ from run to run; equal scores share a bin. With `known` [n] bool borders fit these images alone."""
    quantiles = np.linspace(0, 1, BINS // 2)
    scores, defect = only(known, maps), only(known, masks)
    sides = [scores[side] for side in (defect, ~defect) if side.any()]
    if not sides:
        return np.full((len(maps), maps[0].size), BINS)
    borders = np.unique(np.concatenate([np.quantile(side, quantiles, method="lower") for side in sides]))
    numbers = np.searchsorted(borders, maps.reshape(len(maps), -1), side="right")
    return BINS - numbers


def histograms(bins: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Sum of `weights` [n, H, W] per image and bin: [n, BINS + 1]."""
    flat = weights.reshape(len(weights), -1)
    return np.stack(
        [np.bincount(own, weight, minlength=BINS + 1) for own, weight in zip(bins, flat, strict=True)]
    )


def rarity_maps(maps: np.ndarray, masks: np.ndarray, known: np.ndarray | None = None) -> np.ndarray:
    """Small maps [n, s, s] of how rare a score is among the class's normal pixels: -log10 of the share of them that
    score at least as high, at most RAREST. Like the metrics it knows ranks only, so maps of any two runs share it.

    Args:
        maps: [n, S, S] scores.  masks: [n, S, S] bool.
        known: [n] bool, images whose pixels outside the mask are normal; None for all.
    """
    side = min(THUMBNAIL, maps.shape[-1])
    small, defect = (
        np.stack(
            [cv2.resize(one.astype(np.float32), (side, side), interpolation=cv2.INTER_AREA) for one in stack]
        )
        for stack in (maps, masks)
    )
    candidates = only(known, small)[only(known, defect) == 0]
    normal = np.sort(candidates if candidates.size else small.reshape(-1))
    higher = len(normal) - np.searchsorted(normal, small, side="left")
    return np.clip(-np.log10(np.maximum(higher, 10**-RAREST) / len(normal)), 0, RAREST)


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
