"""What a comparison needs of every image, made image by image: its histograms and its small map of rarity.

Borders and the normal scores that rarity is measured by come from a class's first images, so that no map waits for the
last. `evaluation.scores` makes both from the whole class where that fits into memory.
"""

from collections.abc import Sequence

import numpy as np

from evaluation.scores import BINS, RAREST, THUMBNAIL, quantile_borders, rarity, shrunk
from metrics.score_bins import bin_keys, fitting_window, histogram

STEPS = 2**16  # width of the finest step between borders: the window has so many
BORDER_SCORES = 2**20  # per side, that borders are quantiles of


class ImageRows:
    """Histograms and thumbnails of a class's images, as `ClassScores` holds them, in the class's order.

    Args:
        images: number of images of the class.
        maps, masks: [b, H, W] scores and defects of the first images, in batches.
        counted: [b] bool, the images whose pixels count, likewise.
    """

    def __init__(
        self,
        images: int,
        maps: Sequence[np.ndarray],
        masks: Sequence[np.ndarray],
        counted: Sequence[np.ndarray],
    ):
        first = list(zip(maps, masks, counted, strict=True))
        seen = sampled([one[known] for one, _, known in first])
        self.exponent, self.start = fitting_window(seen if seen.size else np.zeros(1), STEPS)
        sides = [
            sampled([one[known][mask[known] == defective] for one, mask, known in first])
            for defective in (True, False)
        ]
        borders = quantile_borders([side for side in sides if side.size])
        borders = np.zeros(0) if borders is None else borders
        edges = np.clip(bin_keys(borders, self.exponent) - self.start, 0, STEPS)
        self.edges = np.unique(edges).astype(np.int64)
        side = min(THUMBNAIL, maps[0].shape[-1])
        small, normal = [], []
        for one, mask, known in first:
            small += [shrunk(part, side) for part in one]
            normal += [
                shrunk(part, side)[shrunk(where, side) == 0]
                for part, where in zip(one[known], mask[known], strict=True)
            ]
        reference = np.concatenate(normal) if normal else np.zeros(0)
        self.normal = np.sort(reference if reference.size else np.stack(small).reshape(-1))
        # Pages of images without defects are never written to, and take no memory.
        self.positive = np.zeros((images, BINS + 1), np.uint32)
        self.negative = np.zeros((images, BINS + 1), np.uint32)
        self.overlap = np.zeros((images, BINS + 1))
        self.regions = np.zeros(images, np.int64)
        self.thumbnails = np.zeros((images, side, side), np.uint8)

    def add(self, number: int, scores: np.ndarray, mask: np.ndarray, found: tuple | None) -> None:
        """Fill the rows of one image.

        Args:
            number: of the image in the class.
            scores: [H, W] float32.  mask: [H, W] bool.
            found: `metrics.region_shares` of the mask; None where the mask is unknown and no pixel counts.
        """
        rare = rarity(shrunk(scores, len(self.thumbnails[number])), self.normal)
        self.thumbnails[number] = (rare / RAREST * 255).round()
        if found is None:
            return
        shares, self.regions[number] = found
        every = self.segments(scores)
        if shares.size:
            places = np.searchsorted(
                self.edges, bin_keys(scores[mask], self.exponent) - self.start, side="right"
            )
            self.positive[number] = falling(np.bincount(places, minlength=len(self.edges) + 1))
            self.overlap[number] = falling(np.bincount(places, shares, minlength=len(self.edges) + 1))
        self.negative[number] = falling(every) - self.positive[number]

    def segments(self, scores: np.ndarray) -> np.ndarray:
        """Pixels of a map [H, W] below the first border, between two, and from the last on."""
        width = 2.0**self.exponent
        low, high = self.start * width, (self.start + STEPS) * width
        below = np.append(0, np.cumsum(histogram(scores, STEPS, low, high)))
        below += np.count_nonzero(scores < low)
        return np.diff(below[self.edges], prepend=0, append=scores.size).astype(np.uint32)


def falling(segments: np.ndarray) -> np.ndarray:
    """Counts by rising score as a row of `ClassScores`, whose last column has the lowest scores: [BINS + 1]."""
    return np.pad(segments[::-1], (BINS + 1 - len(segments), 0))


def sampled(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Scores of several arrays, flat, evenly thinned to about BORDER_SCORES."""
    step = (
        sum(part.size for part in parts) // BORDER_SCORES | 1
    )  # odd, so that no column of a map is left out
    return np.concatenate([part.reshape(-1)[::step] for part in parts])
