"""Defective regions, each of which counts the same in AUPRO, whatever its size."""

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
    masks = np.asarray(masks)
    weights, regions = np.zeros(masks.shape), np.zeros(len(masks), dtype=np.int64)
    for i, mask in enumerate(masks):
        weights[i], regions[i] = image_region_weights(mask)
    return weights, regions


def image_region_weights(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """`region_weights` of one image: (weights [H, W], its regions)."""
    inside = np.asarray(mask) > 0
    weights = np.zeros(inside.shape)
    weights[inside], regions = region_shares(inside)
    return weights, regions


def region_shares(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """What every defective pixel of one image contributes to the per-region overlap.

    Args:
        mask: [H, W] bool.

    Returns:
        (1 / area of its 8-connected region, per defective pixel in reading order, number of regions)
    """
    if not mask.any():
        return np.zeros(0), 0
    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    part = mask[top : top + height, left : left + width]
    count, labels = cv2.connectedComponents(part.astype(np.uint8), connectivity=8)
    own = labels[part]
    areas = np.maximum(np.bincount(own, minlength=count), 1)  # label 0 is the background
    return (1.0 / areas)[own], count - 1
