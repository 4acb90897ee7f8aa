"""Pixel and image metrics: pure functions of arrays, without a model, a file or a setting."""

from metrics.binned import BinCounts, Estimate, binned_pixel_metrics
from metrics.class_metrics import (
    METRICS_VERSION,
    class_metrics,
    extremes,
    fused_image_score,
    fused_score_of_extremes,
    mean_row,
    metrics_eval,
    metrics_row,
    min_max,
    only,
    renamed,
    table_row,
    unnormalised_image_score,
    unnormalised_score_of_peak,
    upstream_row,
    with_old_names,
)
from metrics.exact import aupro, pixel_metrics
from metrics.ranking import ranking_metrics
from metrics.reference import reference_ranking_metrics
from metrics.regions import PRO_LIMIT, image_region_weights, region_shares, region_weights
from metrics.score_bins import ScoreBins

__all__ = [
    "BinCounts",
    "Estimate",
    "METRICS_VERSION",
    "PRO_LIMIT",
    "ScoreBins",
    "aupro",
    "binned_pixel_metrics",
    "class_metrics",
    "extremes",
    "fused_image_score",
    "fused_score_of_extremes",
    "mean_row",
    "image_region_weights",
    "metrics_eval",
    "metrics_row",
    "min_max",
    "only",
    "pixel_metrics",
    "ranking_metrics",
    "reference_ranking_metrics",
    "region_shares",
    "region_weights",
    "renamed",
    "table_row",
    "unnormalised_image_score",
    "unnormalised_score_of_peak",
    "upstream_row",
    "with_old_names",
]
