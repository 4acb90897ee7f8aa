"""Exact ranking metrics from one sort, in little more memory than the scores and their order take."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike

BLOCK = 1 << 20  # elements of the curve that are held at once


def flat_and_finite(truth: ArrayLike, score: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """(truth as booleans, score), both flat.

    Raises:
        ValueError: a score is not finite.
    """
    truth, score = np.asarray(truth).reshape(-1), np.asarray(score).reshape(-1)
    if not np.isfinite(score).all():
        raise ValueError("scores hold NaN or infinity: the model's output is broken, check its checkpoint")
    return truth if truth.dtype == bool else truth > 0, score


def cumulated(score: np.ndarray, values: Sequence[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Sums of some values over all elements that score at least as high, at every distinct score, the highest first.

    Args:
        score: [n].
        values: arrays [n] of bool or numbers.

    Yields:
        block by block one float64 array per entry of `values`, as long as the block has distinct scores.
    """
    order = np.argsort(score)[::-1]
    sums = [0.0] * len(values)
    for start in range(0, len(order), BLOCK):
        # One element more, which tells whether the block's last score goes on in the next block.
        seen = order[start : start + BLOCK + 1]
        last = np.diff(score[seen]) != 0
        seen = seen[:BLOCK]
        if start + BLOCK >= len(order):
            last = np.append(last, True)
        found = []
        for i, value in enumerate(values):
            running = np.cumsum(np.concatenate([[sums[i]], value[seen]]))[1:]
            sums[i] = running[-1]
            found.append(running[last])
        if last.any():
            yield found


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
    positives = int(np.count_nonzero(truth))
    negatives = truth.size - positives
    if not positives or not negatives:
        return {"auroc": None, "ap": None, "f1max": None}
    area = precision_sum = f1 = 0.0
    before = [0.0, 0.0]  # true and false positives at the threshold before
    for true_positives, predicted in cumulated(score, [truth, np.broadcast_to(True, truth.shape)]):
        false_positives = predicted - true_positives
        gained = np.diff(true_positives, prepend=before[0])
        width = np.diff(false_positives, prepend=before[1])
        area += float((width * (true_positives - gained / 2)).sum())  # trapezoid: ties count one half
        precision_sum += float((gained * (true_positives / predicted)).sum())
        f1 = max(f1, float((2 * true_positives / (predicted + positives)).max()))
        before = [true_positives[-1], false_positives[-1]]
    return {"auroc": area / (positives * negatives), "ap": precision_sum / positives, "f1max": f1}
