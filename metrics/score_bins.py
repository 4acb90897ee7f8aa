"""Counts of scores in bins whose range follows the scores, in memory that does not grow with their number."""

import math

import cv2
import numpy as np

from metrics.binned import BinCounts
from metrics.exact import check_finite

SIZE = 2**20  # bins in the window
SAMPLED = 2**18  # scores that choose the window
TAIL = 1e-3  # share of the sample on either side that may lie far out
CORE = 4  # the window is at least so many times as wide as what lies between the tails
FAR_PIXELS, FAR_BINS = 2**-12, 2**16  # share of the pixels, and bins, beyond the window until it widens
FINEST = -60  # exponent of the width where all scores are 0
PER_CALL = 2**24 - 1  # OpenCV counts in float32, exact up to here


class ScoreBins:
    """Counts of all and of defective pixels, and of regions' overlap, in bins [k * 2**exponent, (k + 1) * 2**exponent).

    A window of `size` bins is dense; scores beyond it have bins of the same width, kept sparsely, so that a few
    outliers cost no resolution. Where many lie beyond, the width doubles: as borders are whole multiples of it, two
    bins become one and every count stays exact.

    Args:
        sample: scores that the window is chosen to fit, any shape; no pixel of them is counted.
        size: bins of the window.

    Raises:
        ValueError: a score of the sample is not finite.
    """

    def __init__(self, sample: np.ndarray, size: int = SIZE):
        self.size = size
        self.exponent, self.first = fitting_window(sample, size)
        self.counts = np.zeros((3, size))  # all pixels, defective ones, overlap; exact to 2**53
        self.far_keys, self.far_counts = np.zeros(0), np.zeros((3, 0))
        self.regions = 0
        self.pixels = self.far_pixels = 0
        self.waiting, self.waiting_pixels = [], 0  # (scores, shares) of defective pixels
        self.tied = True  # until a score is seen that is no border

    @property
    def width(self) -> float:
        """Width of a bin."""
        return math.ldexp(1.0, self.exponent)

    @property
    def ends(self) -> tuple[float, float]:
        """Lowest score of the window and the first above it."""
        return self.first * self.width, (self.first + self.size) * self.width

    def add(self, maps: np.ndarray, defect: np.ndarray, shares: np.ndarray, regions: int) -> None:
        """Count the pixels of some images.

        Args:
            maps: [n, H, W] float32 scores.
            defect: [p] scores of their defective pixels.
            shares: [p] 1 / area of the regions of these.
            regions: number of them.

        Raises:
            ValueError: a score is not finite.
        """
        least, most = maps.min(), maps.max()
        check_finite(np.array([least, most]))  # NaN passes through both, infinity is one of them
        self.pixels += maps.size
        beyond = self._make_room(maps, least, most)
        if self.tied:
            scaled = np.ldexp(maps, -self.exponent)
            self.tied = bool((scaled == np.floor(scaled)).all())
        self.counts[0] += histogram(maps.reshape(-1, maps.shape[-1]), self.size, *self.ends)
        if beyond.size:
            self.far_pixels += beyond.size
            self._add_far(bin_keys(beyond, self.exponent), np.ones(beyond.size), 0, 0)
        if defect.size:
            self.waiting.append((defect, shares))
        self.waiting_pixels += defect.size
        if self.waiting_pixels >= self.size // 4:
            self._count_defects()
        self.regions += regions
        while len(self.far_keys) > FAR_BINS:
            self.widen()

    def _count_defects(self):
        """Put the defective pixels that wait into their bins: many at once, as each time touches every bin."""
        defect, shares = (np.concatenate(part) for part in zip(*self.waiting, strict=True))
        self.waiting, self.waiting_pixels = [], 0
        keys = bin_keys(defect, self.exponent)
        inside, places = self._places(keys)
        self.counts[1] += np.bincount(places, minlength=self.size)
        self.counts[2] += np.bincount(places, shares[inside], minlength=self.size)
        if not inside.all():
            self._add_far(keys[~inside], 0, np.ones(np.sum(~inside)), shares[~inside])

    def _places(self, keys):
        """(which bins are in the window, their numbers there)"""
        inside = (keys >= self.first) & (keys < self.first + self.size)
        return inside, (keys[inside] - self.first).astype(np.int64)

    def _make_room(self, maps, least, most):
        """Widen until few scores lie beyond the window; these."""
        while True:
            low, high = self.ends
            beyond = maps[:0].reshape(-1)
            if least < low or most >= high:
                beyond = maps[(maps < low) | (maps >= high)]
            if self.far_pixels + beyond.size <= self.pixels * FAR_PIXELS:
                return beyond
            self.widen()

    def _add_far(self, keys, *counts):
        counts = np.stack([np.broadcast_to(row, keys.shape) for row in counts])
        counts = np.concatenate([self.far_counts, counts], axis=1)
        keys = np.append(self.far_keys, keys)
        self.far_keys, place = np.unique(keys, return_inverse=True)
        self.far_counts = np.stack([np.bincount(place, row, len(self.far_keys)) for row in counts])

    def widen(self) -> None:
        """Double the width of every bin, in the window around the same middle and beyond it."""
        second = self.counts[0, 1 - self.first % 2 :: 2].any() or (self.far_keys % 2).any()
        self.tied = self.tied and not second  # where only the first of each pair is used, nothing is mixed
        old_first, halves = self.first, self.counts
        if self.first % 2:  # the pairs begin at even numbers
            old_first, halves = self.first - 1, np.pad(self.counts, ((0, 0), (1, 1)))
        merged = halves.reshape(3, -1, 2).sum(axis=2)
        self.exponent += 1
        self.first = old_first // 2 - self.size // 4
        self.counts = np.zeros((3, self.size))
        self.counts[:, self.size // 4 : self.size // 4 + merged.shape[1]] = merged
        keys, counts = self.far_keys // 2, self.far_counts
        inside, places = self._places(keys)
        for row, far in zip(self.counts, counts, strict=True):
            row += np.bincount(places, far[inside], minlength=self.size)
        self.far_keys, self.far_counts = np.zeros(0), np.zeros((3, 0))
        self._add_far(keys[~inside], *counts[:, ~inside])
        self.far_pixels = int(self.far_counts[0].sum())

    def falling(self) -> BinCounts:
        """The counts of the bins that hold a pixel, the highest scores first."""
        if self.waiting:
            self._count_defects()
        below = np.searchsorted(self.far_keys, self.first)
        used = np.flatnonzero(self.counts[0])
        parts = [self.far_counts[:, :below], self.counts[:, used], self.far_counts[:, below:]]
        total, defect, overlap = np.concatenate(parts, axis=1)[:, ::-1]
        return BinCounts(
            defect.astype(np.int64), (total - defect).astype(np.int64), overlap, self.regions, self.tied
        )


def fitting_window(sample: np.ndarray, size: int) -> tuple[int, int]:
    """(exponent of the bins' width, number of the first bin) of a window that fits scores and lies around them."""
    check_finite(sample)
    scores = sample.reshape(-1)
    scores = scores[:: max(1, scores.size // SAMPLED)]
    low, high = np.quantile(scores.astype(np.float64), [TAIL, 1 - TAIL])
    largest = np.float32(max(abs(low), abs(high)))
    finest = (
        math.frexp(float(np.spacing(largest)))[1] - 1 if largest else FINEST
    )  # float32 has no finer scores
    exponent = finest
    if high > low:
        exponent = max(finest, math.ceil(math.log2((high - low) * CORE / size)))
    middle = math.floor(math.ldexp((low + high) / 2, -exponent))
    return exponent, (middle - size // 2) // 2 * 2  # even: both ends are then float32


def bin_keys(scores: np.ndarray, exponent: int) -> np.ndarray:
    """Number of each score's bin of width 2**exponent, counted from score 0; whole numbers in float64, which has the
    range for every float32 score and every width."""
    return np.floor(np.ldexp(scores.astype(np.float64), -exponent))


def histogram(scores: np.ndarray, size: int, low: float, high: float) -> np.ndarray:
    """How many float32 scores [rows, columns] lie in each of `size` bins of equal width from `low` to below `high`;
    exact, as the width is a power of two. [size] float64."""
    counts = np.zeros(size)
    rows = max(1, PER_CALL // scores.shape[1])
    for start in range(0, len(scores), rows):
        part = np.ascontiguousarray(scores[start : start + rows], np.float32)
        counts += cv2.calcHist([part], [0], None, [size], [low, high]).reshape(-1)
    return counts
