"""Exact ranking metrics from one sort."""

import numpy as np
from numpy.typing import ArrayLike


def flat_and_finite(truth: ArrayLike, score: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """(truth as booleans, score), both flat.

    Raises:
        ValueError: a score is not finite.
    """
    truth, score = np.asarray(truth).reshape(-1) > 0, np.asarray(score).reshape(-1)
    if not np.isfinite(score).all():
        raise ValueError("scores hold NaN or infinity: the model's output is broken, check its checkpoint")
    return truth, score


def _curve(truth, score):
    """Cumulative true and false positives at every distinct threshold, highest first; None where one label only."""
    truth, score = flat_and_finite(truth, score)
    if truth.all() or not truth.any():
        return None
    order = np.argsort(-score, kind="stable")
    truth, score = truth[order], score[order]
    last = np.flatnonzero(np.append(np.diff(score) != 0, True))  # last element of each run of equal scores
    true_positives = np.cumsum(truth)[last].astype(np.float64)
    return true_positives, (last + 1) - true_positives


def ranking_metrics(truth: ArrayLike, score: ArrayLike) -> dict[str, float | None]:
    """AUROC, average precision and the largest F1 over all thresholds, exact, ties included.

    Args:
        truth: any shape, > 0 is positive.
        score: same number of elements, higher is more anomalous.

    Returns:
        {"auroc", "ap", "f1max"}, each in [0, 1], or None where only one label is present (undefined).

    Raises:
        ValueError: a score is not finite.
    """
    curve = _curve(truth, score)
    if curve is None:
        return {"auroc": None, "ap": None, "f1max": None}
    true_positives, false_positives = curve
    positives, negatives = true_positives[-1], false_positives[-1]
    width = np.diff(false_positives, prepend=0.0)
    height = true_positives - np.diff(true_positives, prepend=0.0) / 2  # trapezoid: ties count one half
    precision = true_positives / (true_positives + false_positives)
    return {
        "auroc": float((width * height).sum() / (positives * negatives)),
        "ap": float((np.diff(true_positives, prepend=0.0) * precision).sum() / positives),
        "f1max": float((2 * true_positives / (true_positives + false_positives + positives)).max()),
    }
