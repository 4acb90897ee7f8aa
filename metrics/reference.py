"""scikit-learn's word on ranking metrics: for images, and as the exact reference of the pixel metrics."""

import numpy as np
from numpy.typing import ArrayLike

from metrics.ranking import flat_and_finite


def reference_ranking_metrics(truth: ArrayLike, score: ArrayLike) -> dict[str, float | None]:
    """AUROC, average precision and the largest F1 over all thresholds; slower than `ranking_metrics`, same numbers.

    Args:
        truth: any shape, > 0 is positive.
        score: same number of elements, higher is more anomalous.

    Returns:
        {"auroc", "ap", "f1max"}, each in [0, 1], or None where only one label is present (undefined).

    Raises:
        ValueError: a score is not finite.
    """
    from sklearn.metrics import (  # takes a second
        average_precision_score,
        precision_recall_curve,
        roc_auc_score,
    )

    truth, score = flat_and_finite(truth, score)
    if truth.all() or not truth.any():
        return {"auroc": None, "ap": None, "f1max": None}
    precision, recall, _ = precision_recall_curve(truth, score)
    total = precision + recall
    f1 = np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)
    return {
        "auroc": float(roc_auc_score(truth, score)),
        "ap": float(average_precision_score(truth, score)),
        "f1max": float(f1.max()),
    }
