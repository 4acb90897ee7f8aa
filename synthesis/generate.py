"""Drawing, sampling and judging synthetic anomalies, image by image, from normal ones."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from dataset.image_files import Reading, read_image_of, read_pair
from dataset.jsonl import Sample
from files.pictures import safe_name
from synthesis.compositing import Gate, paste, refusal
from synthesis.data import to_pixels
from synthesis.masks import keyed_rng, moved_mask, object_region, perlin_mask
from synthesis.perlin_defects import texture_defect


class Item(NamedTuple):
    """One image to be made."""

    name: str  # "<class>/<anomalous or sham>/<number>"
    class_name: str
    source: Sample  # normal image it starts from
    is_sham: bool


class Draft(NamedTuple):
    """An item with what one attempt drew for it."""

    item: Item
    source: np.ndarray  # RGB bytes [H, W, 3]
    label: np.ndarray  # bool [H, W]
    rng: np.random.Generator


def plan(normal: Sequence[Sample], count: int, sham_ratio: float, seed: int) -> list[Item]:
    """The items to be made: `count` per class, the sham ones last; normal images take turns in an order of the seed."""
    items = []
    for class_name in sorted({sample.class_name for sample in normal}):
        sources = [sample for sample in normal if sample.class_name == class_name]
        order = keyed_rng(seed, "sources", class_name).permutation(len(sources))
        anomalous = count - round(count * sham_ratio)
        for number in range(count):
            kind = "anomalous" if number < anomalous else "sham"
            source = sources[order[number % len(sources)]]
            items.append(
                Item(f"{safe_name(class_name)}/{kind}/{number:04}", class_name, source, kind == "sham")
            )
    return items


class Drafter:
    """Draws an item's mask from its name, the attempt and the seed alone."""

    def __init__(self, anomalous, kind, area, seed, reading=None):
        """anomalous: samples whose masks `kind` "real" moves about, read by `reading`; their own class's only."""
        self.anomalous, self.kind, self.area, self.seed = anomalous, kind, area, seed
        self.reading = reading or Reading()

    def __call__(self, item, attempt):
        """The Draft of an attempt. Raises ValueError without a real mask, RuntimeError when no mask fits."""
        rng = keyed_rng(self.seed, item.name, attempt)
        source = np.asarray(read_image_of(item.source, self.reading))
        region = object_region(source)
        if self.kind == "perlin":
            return Draft(item, source, perlin_mask(region, rng, self.area), rng)
        own = [sample for sample in self.anomalous if sample.class_name == item.class_name]
        if not own:
            raise ValueError(
                f"--masks real: class {item.class_name!r} has no anomalous image; use --masks perlin"
            )
        chosen = own[rng.integers(len(own))]
        _, real = read_pair(chosen, self.reading)
        return Draft(item, source, moved_mask(real, region, rng, self.area), rng)


class TextureSampler:
    """Samples by blending in another normal image of the training set, of another class if there is one."""

    def __init__(self, normal: list[Sample], reading: Reading | None = None):
        self.normal, self.reading = normal, reading or Reading()

    def __call__(self, drafts: list[Draft]) -> list[np.ndarray]:
        """RGB bytes [H, W, 3] per draft."""
        return [texture_defect(draft.source, self.texture(draft), draft.rng) for draft in drafts]

    def texture(self, draft: Draft) -> np.ndarray:
        """RGB bytes [H, W, 3] of the normal image that is blended in."""
        others = [
            sample for sample in self.normal if sample.class_name != draft.item.class_name
        ] or self.normal
        chosen = others[draft.rng.integers(len(others))]
        return np.asarray(read_image_of(chosen, self.reading))


def resized(pixels: np.ndarray, side: int, nearest: bool = False) -> np.ndarray:
    """RGB bytes [H, W, 3] at [side, side, 3]."""
    method = Image.Resampling.NEAREST if nearest else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(pixels).resize((side, side), method))


def back_to_size(sample: Tensor, source: np.ndarray) -> np.ndarray:
    """A sample [3, S, S] in [-1, 1] as RGB bytes of the source's height and width."""
    height, width = source.shape[:2]
    return np.asarray(Image.fromarray(to_pixels(sample)).resize((width, height), Image.Resampling.BICUBIC))


def make(
    items: list[Item],
    draft_of: Callable[[Item, int], Draft],
    sampler: Callable[[list[Draft]], list[np.ndarray]],
    *,
    gate: Gate,
    feather: float,
    attempts: int,
    keep: Callable[[Item, np.ndarray, np.ndarray], None],
) -> dict[Item, str]:
    """Make a batch's images; every accepted one goes to `keep(item, image, label)`, the others are tried again.

    Sham items are not asked for a change: there should be none to see.

    Args:
        items: all sham or all not.
        draft_of: (item, attempt) -> Draft.
        sampler: [Draft] -> [RGB bytes [H, W, 3]].
        gate, feather: see synthesis.compositing.

    Returns:
        {item: why it was refused last} of the items left out.
    """
    pending, reasons = items, {}
    for attempt in range(attempts):
        drafts, refused = [draft_of(item, attempt) for item in pending], []
        for draft, sample in zip(drafts, sampler(drafts), strict=True):
            image = paste(draft.source, sample, draft.label, feather)
            asked = gate._replace(min_change=0) if draft.item.is_sham else gate
            reasons[draft.item] = refusal(draft.source, image, draft.label, asked)
            if reasons[draft.item]:
                refused.append(draft.item)
            else:
                keep(draft.item, image, draft.label)
        pending = refused
        if not pending:
            break
    return {item: reasons[item] for item in pending}
