"""Masks from annotations: polygons, run lengths."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from files.atomic import replacing


def polygon_mask(polygon: np.ndarray, width: int, height: int) -> np.ndarray:
    """Pixels [height, width] bool whose centre lies in a polygon [points, 2] of (x, y) in pixels.

    The pixel in column c and row r covers [c, c + 1] x [r, r + 1]. By the even-odd rule; of a polygon too thin to hold
    a centre the pixels its outline passes, so that no defect vanishes.
    """
    mask = np.zeros((height, width), bool)
    points = np.asarray(polygon, np.float64)
    ends = np.roll(points, -1, axis=0)
    first, last = max(0, int(points[:, 1].min())), min(height, int(np.ceil(points[:, 1].max())) + 1)
    columns = np.arange(width) + 0.5
    for row in range(first, last):
        y = row + 0.5
        crosses = (points[:, 1] <= y) != (ends[:, 1] <= y)
        (x, from_y), (to_x, to_y) = points[crosses].T, ends[crosses].T
        crossings = np.sort(x + (y - from_y) / (to_y - from_y) * (to_x - x))
        mask[row] = np.searchsorted(crossings, columns, side="right") % 2 == 1
    if not mask.any():
        outline = np.zeros((height, width), np.uint8)
        corners = np.floor(np.clip(points, -(2**15), 2**15)).astype(np.int32)
        cv2.polylines(outline, [corners], True, 1)
        mask = outline > 0
    return mask


def run_length_mask(counts: Sequence[int], width: int, height: int) -> np.ndarray:
    """COCO's uncompressed run lengths as pixels [height, width] bool: column by column, normal ones first.

    Raises:
        ValueError: the lengths do not add up to the picture.
    """
    lengths = np.asarray(counts, np.int64)
    if lengths.ndim != 1 or (lengths < 0).any() or lengths.sum() != width * height:
        raise ValueError(f"run lengths of {int(lengths.sum())} pixels for a picture of {width}x{height}")
    values = np.arange(len(lengths)) % 2 == 1
    return np.repeat(values, lengths).reshape(width, height).T


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Write pixels [height, width] bool as a PNG of 0 and 255; it appears complete or not at all."""
    with replacing(path) as file:
        Image.fromarray(mask.astype(np.uint8) * 255).save(file, format="PNG")
