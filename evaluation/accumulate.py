"""One pass over a class too large to keep: pixel metrics, image scores and a comparison's histograms, image by image.

The first images choose what scores are counted in; from then on an image leaves counts behind, never a map or a mask.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from evaluation.image_rows import ImageRows, sampled
from metrics import Estimate, ScoreBins, binned_pixel_metrics, extremes, region_shares

EXACT_PIXELS = 64 * 518**2  # pixels of a class up to which its metrics are exact
WARM_UP = 32  # images that choose the bins
ORDER_SEED = 0


def is_exact(images: Dataset, exact_pixels: int) -> bool:
    """Whether a class's pixels are few enough to be kept."""
    return len(images) * pixels_of(images) <= exact_pixels


def warm_up_images(images: Dataset, exact_pixels: int) -> int:
    """How many images of a class may be kept until its bins are chosen."""
    return max(1, min(WARM_UP, exact_pixels // pixels_of(images)))


def pixels_of(images: Dataset) -> int:
    """Pixels of one image of a class."""
    side = getattr(images, "img_size", None)
    return side**2 if side else images[0]["mask"].numel()


def spread_order(images: Dataset) -> list[int]:
    """The images' numbers in an order whose beginning shows the class: drawn, normal and anomalous ones in turn."""
    drawn = np.random.default_rng(ORDER_SEED).permutation(len(images)).tolist()
    samples = getattr(images, "samples", None)
    if samples is None:
        return drawn
    by_label = {}
    for number in drawn:
        sample = samples[number]
        by_label.setdefault((sample.label, sample.mask_known), []).append(number)
    turns = sorted(
        (turn, place) for place, group in enumerate(by_label.values()) for turn in range(len(group))
    )
    groups = list(by_label.values())
    return [groups[place][turn] for turn, place in turns]


class ClassAccumulator:
    """What evaluation needs of a class's predictions, in memory of a few kB an image.

    Args:
        images: number of images of the class.
        warm_up: images kept whole until the bins are chosen; one batch at least.
    """

    def __init__(self, images: int, warm_up: int = WARM_UP):
        self.warm_up, self.kept, self.waiting = warm_up, [], 0
        self.bins: ScoreBins | None = None
        self.rows: ImageRows | None = None
        self.ends = np.zeros((images, 2), np.float32)
        self.head = np.zeros(images, np.float32)
        self.labels = np.zeros(images, np.int64)
        self.mask_known = np.zeros(images, bool)
        self.files = [""] * images

    def add(self, numbers: Sequence[int], batch: dict[str, Any]) -> None:
        """Take the predictions of some images.

        Args:
            numbers: [b] of the images in the class.
            batch: as evaluation.predictions.predict_class gives them, of these images.
        """
        numbers = np.asarray(numbers)
        self.ends[numbers] = extremes(batch["maps"])
        for key in ("head", "labels", "mask_known"):
            getattr(self, key)[numbers] = batch[key]
        for number, file in zip(numbers.tolist(), batch["files"], strict=True):
            self.files[number] = file
        part = (numbers, batch["maps"], batch["masks"] > 0)
        if self.rows is None:
            self.kept.append(part)
            self.waiting += len(numbers)
            if self.waiting >= self.warm_up:
                self._begin()
        else:
            self._count(*part)

    def _counted(self, numbers):
        return (self.labels[numbers] >= 0) & self.mask_known[numbers]

    def _begin(self):
        """Choose the rows' borders and reference from the kept images, count these and let them go."""
        chosen = [self._counted(numbers) for numbers, *_ in self.kept]
        maps = [maps for _, maps, _ in self.kept]
        self.rows = ImageRows(len(self.files), maps, [masks for *_, masks in self.kept], chosen)
        seen = sampled([one[counted] for one, counted in zip(maps, chosen, strict=True)])
        self.bins = ScoreBins(seen) if seen.size else None
        del maps
        while self.kept:
            self._count(*self.kept.pop(0))

    def _count(self, numbers, maps, masks):
        chosen = self._counted(numbers)
        shares = [region_shares(mask) if known else None for mask, known in zip(masks, chosen, strict=True)]
        labelled = self.labels[numbers] >= 0
        for place in np.flatnonzero(labelled):
            self.rows.add(numbers[place], maps[place], masks[place], shares[place])
        if not chosen.any():
            return
        seen = maps if chosen.all() else maps[chosen]
        defect = maps[masks & chosen[:, None, None]]
        known = [one for one in shares if one is not None]
        if self.bins is None:
            self.bins = ScoreBins(seen)
        self.bins.add(seen, defect, np.concatenate([share for share, _ in known]), sum(n for _, n in known))

    def finish(self) -> dict[str, Any]:
        """The class's predictions without maps and masks.

        Returns:
            {"ends" [n, 2] lowest and highest score of every map, "head" [n], "labels" [n], "mask_known" [n],
            "files" [n], "pixel" {metric: Estimate}, "rows": ImageRows}, in the class's order.
        """
        if self.rows is None:
            self._begin()
        undefined = dict.fromkeys(("auroc", "ap", "f1max", "aupro"), Estimate(None, None))
        found = {key: getattr(self, key) for key in ("ends", "head", "labels", "mask_known", "files", "rows")}
        pixel = undefined if self.bins is None else binned_pixel_metrics(self.bins.falling())
        return found | {"pixel": pixel}
