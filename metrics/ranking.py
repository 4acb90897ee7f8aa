"""Exact ranking metrics from two sorts, of positive and of negative elements' scores."""

import numpy as np
from numpy.typing import ArrayLike

from metrics.exact import check_finite, ranking_of, thresholds


def flat_and_finite(truth: ArrayLike, score: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """(truth as booleans [n], scores [n]), both flat.

    Args:
        truth: any shape, > 0 is positive.
        score: as many elements, n.

    Raises:
        ValueError: a score is not finite, or there is not one for every truth.
    """
    truth, score = np.asarray(truth).reshape(-1), np.asarray(score).reshape(-1)
    if len(truth) != len(score):
        raise ValueError(
            f"{len(score)} scores for {len(truth)} truths: expected one each, of the same images"
        )
    check_finite(score)
    return truth if truth.dtype == bool else truth > 0, score


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
    truth, score = flat_and_finite(truth, score)
    if truth.all() or not truth.any():
        return {"auroc": None, "ap": None, "f1max": None}
    positive, negative = score[truth], score[~truth]
    positive.sort()
    negative.sort()
    return ranking_of(thresholds(positive, negative))
