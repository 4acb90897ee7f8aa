"""Pixel and image metrics: pure functions of arrays, without a model, a file or a setting."""

from metrics.class_metrics import (
    METRICS_VERSION,
    class_metrics,
    fused_image_score,
    mean_row,
    metrics_eval,
    min_max,
    only,
    renamed,
    table_row,
    unnormalised_image_score,
    with_old_names,
)
from metrics.ranking import ranking_metrics
from metrics.reference import reference_ranking_metrics
from metrics.regions import PRO_LIMIT, aupro, image_region_weights, region_weights

__all__ = [
    "METRICS_VERSION",
    "PRO_LIMIT",
    "aupro",
    "class_metrics",
    "fused_image_score",
    "image_region_weights",
    "mean_row",
    "metrics_eval",
    "min_max",
    "only",
    "ranking_metrics",
    "reference_ranking_metrics",
    "region_weights",
    "renamed",
    "table_row",
    "unnormalised_image_score",
    "with_old_names",
]
