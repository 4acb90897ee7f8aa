"""Metrics of resampled test sets, many at once, from a class's stored scores and histograms."""

import numpy as np

from evaluation.scores import ClassScores
from metrics import PRO_LIMIT

PIXEL_METRICS = ("pixel_auroc", "pixel_ap", "pixel_f1max", "pixel_aupro")
IMAGE_METRICS = (
    "image_auroc",
    "image_ap",
    "image_f1max",
    "image_auroc_unnormalised",
    "image_ap_unnormalised",
    "image_f1max_unnormalised",
)
METRICS = (*PIXEL_METRICS, *IMAGE_METRICS)
LEFT_OUT_AT_ONCE = 256  # images, each of a test set of its own, in one product with the histograms


def image_weights(
    labels: np.ndarray,
    replicates: int,
    random: np.random.Generator,
    mask_known: np.ndarray | None = None,
) -> np.ndarray:
    """How often each image is in each resampled test set [replicates, n].

    Normal and abnormal images are drawn with replacement separately, each as many as there are, so that a resampled
    set has the labels of the original one and no metric becomes undefined by chance. For the same reason abnormal
    images of unknown mask (`mask_known` [n] bool; None for all known) are drawn among themselves.
    """
    weights = np.zeros((replicates, len(labels)))
    known = np.ones(len(labels), dtype=bool) if mask_known is None else mask_known
    for drawn_together in (labels == 0, (labels == 1) & known, (labels == 1) & ~known):
        images = np.flatnonzero(drawn_together)
        if len(images):
            weights[:, images] = random.multinomial(
                len(images), np.full(len(images), 1 / len(images)), size=replicates
            )
    return weights


def ranking_rows(positive: np.ndarray, negative: np.ndarray) -> dict[str, np.ndarray]:
    """AUROC, AP and F1-max of every row, bins sorted by falling score and all elements of a bin tied.

    Args:
        positive, negative: [R, bins] weights.

    Returns:
        {"auroc", "ap", "f1max"}: [R], NaN where a row has one label only.
    """
    true, false = np.cumsum(positive, axis=1), np.cumsum(negative, axis=1)
    positives, negatives = true[:, -1:], false[:, -1:]
    defined = (positives > 0) & (negatives > 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(true + false > 0, true / (true + false), 0.0)
        metrics = {
            "auroc": (negative * (true - positive / 2)).sum(1, keepdims=True) / (positives * negatives),
            "ap": (positive * precision).sum(1, keepdims=True) / positives,
            "f1max": (2 * true / (true + false + positives)).max(1, keepdims=True),
        }
    return {key: np.where(defined, value, np.nan)[:, 0] for key, value in metrics.items()}


def aupro_rows(
    overlap: np.ndarray, regions: np.ndarray, negative: np.ndarray, limit: float = PRO_LIMIT
) -> np.ndarray:
    """AUPRO of every row: weights [R, bins] of region overlap and normal pixels, regions [R]; NaN where undefined."""
    zero = np.zeros((len(overlap), 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        height = np.hstack([zero, np.cumsum(overlap, axis=1)]) / regions[:, None]
        rate = np.hstack([zero, np.cumsum(negative, axis=1)]) / negative.sum(1, keepdims=True)
        step, rise = np.diff(rate, axis=1), np.diff(height, axis=1)
        inside = np.clip(limit - rate[:, :-1], 0, step)  # part of each step up to the limit
        end = height[:, :-1] + np.where(step > 0, rise * inside / np.where(step > 0, step, 1), 0)
        return (inside * (height[:, :-1] + end) / 2).sum(1) / limit


def weighted_metrics(scores: ClassScores, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Every metric of a class's test set with its images counted `weights` times.

    Image metrics are exact; image scores are those of the original test set (upstream's fused score is not rescaled).
    Pixel metrics treat the pixels of one histogram bin as tied.

    Args:
        scores: evaluation.scores.ClassScores.
        weights: [R, n].

    Returns:
        {metric: [R]}, NaN where undefined.
    """
    positive, negative = (weights @ side.astype(np.float64) for side in (scores.positive, scores.negative))
    metrics = {f"pixel_{key}": value for key, value in ranking_rows(positive, negative).items()}
    regions = weights @ scores.regions.astype(np.float64)
    metrics["pixel_aupro"] = aupro_rows(weights @ scores.overlap, regions, negative)
    for image_score, ending in ((scores.fused, ""), (scores.own, "_unnormalised")):
        _, rank = np.unique(-image_score, return_inverse=True)  # equal scores share a bin
        member = np.zeros((len(rank), rank.max() + 1))
        member[np.arange(len(rank)), rank] = 1
        abnormal = scores.labels > 0
        rows = ranking_rows((weights * abnormal) @ member, (weights * ~abnormal) @ member)
        metrics |= {f"image_{key}{ending}": value for key, value in rows.items()}
    return metrics


def resampled(
    scores: ClassScores, exact: dict[str, float | None], weights: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Metrics of resampled test sets, moved so that the original test set has its exact value.

    Args:
        exact: the class's metrics (None where undefined).
        weights: [R, n] from `image_weights`; the same for all runs, which pairs them.

    Returns:
        ({metric: [R]} of the defined metrics, {pixel metric: exact minus histogram value}).
    """
    binned = weighted_metrics(scores, np.ones((1, len(scores.labels))))
    rows = weighted_metrics(scores, weights)
    errors = {key: exact[key] - float(binned[key][0]) for key in METRICS if exact[key] is not None}
    return {key: rows[key] + error for key, error in errors.items()}, {
        key: error for key, error in errors.items() if key in PIXEL_METRICS
    }


def image_shares(scores: ClassScores, exact: dict[str, float | None]) -> dict[str, np.ndarray]:
    """What each test image adds to a class's metrics: jackknife pseudo-values (Tukey, Annals of Mathematical Statistics
    29, 1958), n * metric - (n - 1) * metric without the image, divided by n.

    Returns:
        {metric: [n]} of the defined metrics that stay defined without any single image.
    """
    images = len(scores.labels)
    whole = weighted_metrics(scores, np.ones((1, images)))
    parts = []
    for begin in range(0, images, LEFT_OUT_AT_ONCE):
        weights = np.ones((min(LEFT_OUT_AT_ONCE, images - begin), images))
        weights[np.arange(len(weights)), begin + np.arange(len(weights))] = 0
        parts.append(weighted_metrics(scores, weights))
    without = {key: np.concatenate([part[key] for part in parts]) for key in whole}
    shares = {
        key: whole[key][0] - (images - 1) / images * without[key] for key in METRICS if exact[key] is not None
    }
    return {key: values for key, values in shares.items() if np.isfinite(values).all()}
