"""AUPRO: how much of every defective region is found, whatever its size."""

import cv2
import numpy as np
from numpy.typing import ArrayLike

from metrics.ranking import cumulated

PRO_LIMIT = 0.3  # false-positive rate up to which AUPRO integrates


def region_weights(masks: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """What every pixel contributes to the per-region overlap: 1 / area of its 8-connected region, 0 outside.

    Args:
        masks: [n, H, W], > 0 is defective.

    Returns:
        (weights [n, H, W], regions per image [n]); an image's weights sum to its number of regions.
    """
    masks = np.asarray(masks)
    weights, regions = np.zeros(masks.shape), np.zeros(len(masks), dtype=np.int64)
    for i, mask in enumerate(masks):
        weights[i], regions[i] = image_region_weights(mask)
    return weights, regions


def image_region_weights(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """`region_weights` of one image: (weights [H, W], its regions)."""
    inside = np.asarray(mask) > 0
    count, labels, stats, _ = cv2.connectedComponentsWithStats(inside.astype(np.uint8), connectivity=8)
    weights = np.where(inside, 1.0 / stats[:, cv2.CC_STAT_AREA].astype(np.float64)[labels], 0.0)
    return weights, count - 1  # label 0 is the background


class Regions:
    """The weights of `region_weights`, flat and looked up where they are asked for: the regions' numbers take half the
    memory.

    `count`: regions of all images.
    """

    def __init__(self, masks: ArrayLike):
        """`masks` [n, H, W], > 0 is defective."""
        masks, self.count = np.asarray(masks), 0
        numbers, weights = np.zeros(masks.shape, np.int32), [np.zeros(1)]
        for i, mask in enumerate(masks):
            inside = mask > 0
            if not inside.any():
                continue
            count, labels, stats, _ = cv2.connectedComponentsWithStats(
                inside.astype(np.uint8), connectivity=8
            )
            numbers[i][inside] = labels[inside] + self.count
            weights.append(1.0 / stats[1:, cv2.CC_STAT_AREA].astype(np.float64))
            self.count += count - 1
        self._numbers, self._weights = numbers.reshape(-1), np.concatenate(weights)

    def __getitem__(self, pixels: np.ndarray) -> np.ndarray:
        """The weights of some pixels by their places in the flat masks."""
        return self._weights[self._numbers[pixels]]


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
    masks = np.asarray(masks)
    normal = (masks <= 0).reshape(-1)
    pixels, regions = int(np.count_nonzero(normal)), Regions(masks)
    if regions.count == 0 or pixels == 0:
        return None
    area, before = 0.0, (0.0, 0.0)  # rate and overlap at the threshold before
    for false_positives, overlap in cumulated(np.asarray(maps).reshape(-1), [normal, regions]):
        rate = np.concatenate([before[:1], false_positives / pixels])
        overlap = np.concatenate([before[1:], overlap / regions.count])
        inside = rate <= limit
        rate_in, overlap_in = rate[inside], overlap[inside]
        if not inside.all():  # the first threshold beyond: up to the limit on the line to it
            rate_in, overlap_in = (
                np.append(rate_in, limit),
                np.append(overlap_in, np.interp(limit, rate, overlap)),
            )
        area += float(np.trapezoid(overlap_in, rate_in))
        if not inside.all():
            break
        before = (rate[-1], overlap[-1])
    return area / limit
