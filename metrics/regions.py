"""AUPRO: how much of every defective region is found, whatever its size."""

import cv2
import numpy as np
from numpy.typing import ArrayLike

PRO_LIMIT = 0.3  # false-positive rate up to which AUPRO integrates


def region_weights(masks: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """What every pixel contributes to the per-region overlap: 1 / area of its 8-connected region, 0 outside.

    Args:
        masks: [n, H, W], > 0 is defective.

    Returns:
        (weights [n, H, W], regions per image [n]); an image's weights sum to its number of regions.
    """
    masks = np.asarray(masks) > 0
    weights, regions = np.zeros(masks.shape), np.zeros(len(masks), dtype=np.int64)
    for i, mask in enumerate(masks):
        count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
        weights[i] = np.where(mask, 1.0 / stats[:, cv2.CC_STAT_AREA].astype(np.float64)[labels], 0.0)
        regions[i] = count - 1  # label 0 is the background
    return weights, regions


def aupro(masks: ArrayLike, maps: ArrayLike, limit: float = PRO_LIMIT) -> float | None:
    """Area under the per-region-overlap curve up to a false-positive rate (MVTec AD, doi 10.1007/s11263-020-01400-4).

    Every connected region (8-neighbourhood) counts the same; every distinct score is a threshold; the rate is over
    all normal pixels; the curve is interpolated at `limit` and the area divided by it.

    Args:
        masks: [n, H, W], > 0 is defective.
        maps: [n, H, W] scores.

    Returns:
        value in [0, 1], or None without a region or without a normal pixel.
    """
    masks, maps = np.asarray(masks) > 0, np.asarray(maps)
    weight, per_image = region_weights(masks)
    regions = per_image.sum()
    if regions == 0 or masks.all():
        return None
    order = np.argsort(-maps.reshape(-1), kind="stable")
    score = maps.reshape(-1)[order]
    last = np.flatnonzero(np.append(np.diff(score) != 0, True))
    overlap = np.concatenate([[0.0], np.cumsum(weight.reshape(-1)[order])[last] / regions])
    normal = ~masks.reshape(-1)[order]
    rate = np.concatenate([[0.0], np.cumsum(normal)[last] / normal.sum()])
    inside = rate <= limit
    rate_in, overlap_in = rate[inside], overlap[inside]
    if rate_in[-1] < limit:
        overlap_in = np.append(overlap_in, np.interp(limit, rate, overlap))
        rate_in = np.append(rate_in, limit)
    return float(np.trapezoid(overlap_in, rate_in) / limit)
