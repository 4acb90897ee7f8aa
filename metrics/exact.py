"""Exact pixel metrics from two sorts: of the scores on defects, and of all others. Nothing is wider than the scores."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from metrics.regions import PRO_LIMIT, region_shares


class Thresholds(NamedTuple):
    """The distinct scores of positive elements, highest first, and what lies above each.

    They are all that AUROC, AP, F1 and AUPRO depend on: between two of them only negatives follow one another.
    """

    true: np.ndarray  # [t] int64, positives at or above the threshold
    false: np.ndarray  # [t] int64, negatives at or above it
    false_above: np.ndarray  # [t] int64, negatives above it
    positives: int
    negatives: int


def thresholds(positive: np.ndarray, negative: np.ndarray) -> Thresholds:
    """The thresholds of two rising rows of scores, of positive [p] and of negative elements [q], neither empty."""
    first = np.flatnonzero(np.append(True, positive[1:] != positive[:-1]))  # of each run of equal scores
    distinct = positive[first]
    below = np.searchsorted(negative, distinct, side="left")
    up_to = np.searchsorted(negative, distinct, side="right")
    return Thresholds(
        (len(positive) - first)[::-1],
        (len(negative) - below)[::-1],
        (len(negative) - up_to)[::-1],
        len(positive),
        len(negative),
    )


def ranking_of(at: Thresholds) -> dict[str, float]:
    """{"auroc", "ap", "f1max"} in [0, 1]; AUROC from whole numbers, rounded once."""
    own = np.diff(at.true, prepend=0)
    lower = 2 * at.negatives - at.false - at.false_above  # twice the negatives below, ties one half
    precision = at.true / (at.true + at.false)
    return {
        "auroc": int((own * lower).sum()) / (2 * at.positives * at.negatives),
        "ap": float((own * precision).sum() / at.positives),
        "f1max": float((2 * at.true / (at.true + at.false + at.positives)).max()),
    }


def aupro_of(at: Thresholds, overlap: np.ndarray, limit: float) -> float:
    """AUPRO from the mean overlap of the regions [t] at every threshold; see `metrics.aupro`.

    The curve rises where positives and negatives share a score and is level between two thresholds.
    """
    start, end = at.false_above / at.negatives, at.false / at.negatives
    before = np.append(0.0, overlap[:-1])
    width = np.clip(limit - start, 0, end - start)
    steep = np.divide(width, end - start, out=np.zeros_like(width), where=end > start)
    rising = width * (before + (overlap - before) * steep / 2)
    level = overlap * np.clip(np.minimum(limit, np.append(start[1:], 1.0)) - end, 0, None)
    return float((rising.sum() + level.sum()) / limit)


def pixel_metrics(masks: ArrayLike, maps: ArrayLike, limit: float = PRO_LIMIT) -> dict[str, float | None]:
    """AUROC, AP, F1-max and AUPRO of a class's pixels; its scores are sorted once.

    Args:
        masks: [n, H, W], > 0 is defective.
        maps: [n, H, W] scores.
        limit: of AUPRO.

    Returns:
        {"auroc", "ap", "f1max", "aupro"} in [0, 1], None where only one label is present.

    Raises:
        ValueError: a score is not finite, or masks and maps are not of one shape.
    """
    masks, maps = np.asarray(masks) > 0, np.asarray(maps)
    if masks.shape != maps.shape:
        raise ValueError(
            f"maps of shape {maps.shape} for masks of {masks.shape}: expected one score per pixel"
        )
    check_finite(maps)
    if masks.all() or not masks.any():
        return dict.fromkeys(("auroc", "ap", "f1max", "aupro"))
    positive, negative = maps[masks], maps[~masks]
    negative.sort()
    order = np.argsort(positive)
    at = thresholds(positive[order], negative)
    shares, regions = zip(*map(region_shares, masks), strict=True)
    overlap = np.cumsum(np.concatenate(shares)[order[::-1]])[at.true - 1] / sum(regions)
    return ranking_of(at) | {"aupro": aupro_of(at, overlap, limit)}


def aupro(masks: ArrayLike, maps: ArrayLike, limit: float = PRO_LIMIT) -> float | None:
    """Area under the per-region-overlap curve up to a false-positive rate (MVTec AD, doi 10.1007/s11263-020-01400-4).

    Every connected region (8-neighbourhood) counts the same; every distinct score is a threshold; the rate is over
    all normal pixels; the curve is interpolated at `limit` and the area divided by it.

    Args:
        masks: [n, H, W], > 0 is defective.
        maps: [n, H, W] scores, higher is more anomalous.
        limit: false-positive rate in (0, 1] up to which the curve counts.

    Returns:
        value in [0, 1], or None without a region or without a normal pixel.

    Raises:
        ValueError: a score is not finite, or masks and maps are not of one shape.
    """
    return pixel_metrics(masks, maps, limit)["aupro"]


def check_finite(scores: np.ndarray) -> None:
    """Raises ValueError where a score, of any shape, is NaN or infinite; takes no memory of the scores' size."""
    # NaN passes through both extremes, and infinity is one of them.
    if scores.size and not (np.isfinite(scores.min()) and np.isfinite(scores.max())):
        raise ValueError("scores hold NaN or infinity: the model's output is broken, check its checkpoint")
