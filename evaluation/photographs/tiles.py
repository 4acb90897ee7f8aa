"""Overlapping tiles of pictures larger than the model, and their maps joined without seams."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np


class Box(NamedTuple):
    """A part of a picture in pixels, right and bottom excluded."""

    left: int
    top: int
    right: int
    bottom: int


class Tiling(NamedTuple):
    """Tiles as large as the model's image: `side` in pixels; neighbours share `overlap` of it at least."""

    side: int
    overlap: float = 0.25

    def boxes(self, size: tuple[int, int]) -> list[Box]:
        """The tiles of a picture of (width, height), row by row; [] where it is not larger than the model.

        A picture whose shorter side is below the model's is cut into squares of that side.
        """
        if max(size) <= self.side:
            return []
        side = min(self.side, *size)
        lefts, tops = (starts(length, side, self.overlap) for length in size)
        return [Box(left, top, left + side, top + side) for top in tops for left in lefts]


def starts(length: int, side: int, overlap: float) -> list[int]:
    """Where tiles of a side begin along a length, evenly spread from its begin to its end."""
    step = max(1.0, side * (1 - overlap))
    count = 1 + math.ceil((length - side) / step)
    return [round(place) for place in np.linspace(0, length - side, count)]


class TiledMap:
    """The map [H, W] of a picture from the maps of its tiles: their mean, weighted down towards a tile's edges.

    Args:
        size: (width, height).
        boxes: of `Tiling.boxes`.
    """

    def __init__(self, size: tuple[int, int], boxes: Sequence[Box]):
        self._side = boxes[0].right - boxes[0].left
        self._ramp = ramp(self._side)
        self._sum = np.zeros(size[::-1], np.float32)
        # Tiles lie on a grid, so that the sum of their weights is a product of one sum per axis.
        self._across = self._weights(size[0], sorted({box.left for box in boxes}))
        self._down = self._weights(size[1], sorted({box.top for box in boxes}))

    def _weights(self, length: int, begins: Sequence[int]) -> np.ndarray:
        total = np.zeros(length, np.float32)
        for begin in begins:
            total[begin : begin + self._side] += self._ramp
        return total

    def add(self, box: Box, scores: np.ndarray) -> None:
        """Add a tile's map [S, S]."""
        own = cv2.resize(scores, (self._side, self._side), interpolation=cv2.INTER_LINEAR)
        self._sum[box.top : box.bottom, box.left : box.right] += own * self._ramp[:, None] * self._ramp

    def finish(self) -> np.ndarray:
        """The map, [H, W] float32."""
        self._sum /= self._down[:, None]
        self._sum /= self._across
        return self._sum


def ramp(side: int) -> np.ndarray:
    """Weights [side] of a tile along one axis: 1 in its middle, falling towards its ends, never 0."""
    places = np.arange(side, dtype=np.float32) + 0.5
    return np.minimum(places, side - places) / (side / 2)
