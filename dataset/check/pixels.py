"""What only the pixels of a picture and its mask say."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from dataset.anomaly_dataset import resize_mask
from dataset.findings import UNREADABLE, Finding
from dataset.image_files import Reading, Unsuitable, opened, read_image_of, read_pair
from dataset.jsonl import Sample
from dataset.mask_values import PHOTO_VALUES, UPSTREAM, is_deep, mask_pixels, robust_defect, upstream_defect

VALUES_SHOWN = 8
TWELVE_BITS = 4095


class Look(NamedTuple):
    """What is kept of a picture and its mask: digests of their pixels and what is odd about them."""

    picture: bytes | None = None
    mask: bytes | None = None
    findings: tuple[Finding, ...] = ()


def look_at_pixels(sample: Sample, reading: Reading, img_size: int, unused_masks: Sequence[str] = ()) -> Look:
    """Decode one sample as training and testing do. A picture whose mask cannot be read is looked at by itself.

    Args:
        unused_masks: masks that a normal picture's row names.
    """
    found = []

    def add(kind: str, text: str) -> None:
        found.append(Finding(kind, sample.file_name, sample.source, text))

    try:
        picture, anomalous = read_pair(sample, reading, any_size=True)
    except ValueError as error:
        kind = error.kind if isinstance(error, Unsuitable) else UNREADABLE
        if " pixels and its image is " not in str(error):  # sizes are compared by the headers
            add(kind, str(error))
        try:
            picture = read_image_of(sample, reading)
        except ValueError:
            return Look(findings=tuple(found))
        return Look(digest_of(np.asarray(picture)), None, tuple(found))
    texts = deep_image(sample)
    for path in unused_masks:
        texts += mask_of_normal(path, sample, reading)
    for path in sample.mask_paths:
        texts += values_of_mask(path, sample.source, reading)
    if anomalous is not None:
        texts += extent_of(anomalous, img_size)
    for kind, text in texts:
        add(kind, text)
    mask = digest_of(anomalous) if anomalous is not None and anomalous.any() else None
    return Look(digest_of(np.asarray(picture)), mask, tuple(found))


def digest_of(pixels: np.ndarray) -> bytes:
    """16 bytes that tell contents apart."""
    found = hashlib.blake2b(str(pixels.shape).encode(), digest_size=16)
    found.update(np.ascontiguousarray(pixels).data)
    return found.digest()


def deep_image(sample: Sample) -> list[tuple[str, str]]:
    """A 16-bit grey picture that uses so few of its bits that it is read as nearly black."""
    with opened("image", sample.image_path, sample.source) as image:
        if not is_deep(image) or image.mode == "RGB":
            return []
        brightest = int(np.asarray(image).max())
    if brightest > TWELVE_BITS:
        return []
    text = f"its brightest value is {brightest} of 65535, read as {brightest >> 8} of 255: nearly black; scale it up"
    return [("dark 16-bit image", text)]


def mask_of_normal(path: str, sample: Sample, reading: Reading) -> list[tuple[str, str]]:
    """A normal picture's mask that shows a defect."""
    try:
        with opened("mask", path, sample.source) as mask:
            defect = defect_of(mask, path, reading)
    except ValueError as error:
        return [("mask of a normal picture", str(error))]
    share = np.count_nonzero(defect) / defect.size
    return [("mask of a normal picture", f"{path}: {share:.2%} of its pixels are defect")] if share else []


def defect_of(mask: Image.Image, path: str, reading: Reading) -> np.ndarray:
    """Anomalous pixels of an opened mask, as its file stores them."""
    return upstream_defect(mask) if reading.masks == UPSTREAM else robust_defect(mask_pixels(mask, path))


def values_of_mask(path: str, source: str, reading: Reading) -> list[tuple[str, str]]:
    """More than two values, with those that count as defect; a mask that is a photograph."""
    with opened("mask", path, source) as mask:
        pixels = mask_pixels(mask, path)
        values, counts = np.unique(pixels.values, return_counts=True)
        if len(values) <= 2:
            return []
        defect = defect_of(mask, path, reading)
    if len(values) > PHOTO_VALUES and counts.max() < pixels.values.size / 2:
        return [("swapped", f"{path}: {len(values)} values, none on half of the picture")]
    counting, others = np.unique(pixels.values[defect]), np.unique(pixels.values[~defect])
    text = f"{path}: values {shown(values)}; defect are {shown(counting)}, normal {shown(others)}"
    return [("several values", text)]


def shown(values: np.ndarray) -> str:
    """A few values, or how many there are between which."""
    if not len(values):
        return "none"
    if len(values) <= VALUES_SHOWN:
        return ", ".join(f"{value:g}" for value in values.tolist())
    return f"{len(values)} from {values[0]:g} to {values[-1]:g}"


def extent_of(anomalous: np.ndarray, img_size: int) -> list[tuple[str, str]]:
    """Empty, inverted, vanishing and shrinking masks, and what resizing does to their share."""
    share = np.count_nonzero(anomalous) / anomalous.size
    if not share:
        return [("empty mask", "no pixel counts as defect")]
    found = []
    border = np.concatenate([anomalous[0], anomalous[-1], anomalous[:, 0], anomalous[:, -1]])
    if share > 0.5 and border.mean() > 0.9:
        found.append(
            ("inverted mask", f"{share:.0%} of the picture and {border.mean():.0%} of its border are defect")
        )
    left = float(resize_mask(anomalous, img_size).mean())
    size = f"{anomalous.shape[1]}x{anomalous.shape[0]}"
    if not left:
        text = f"{np.count_nonzero(anomalous)} defect pixels of {size}, none at {img_size}x{img_size}"
        found.append(("vanishing mask", text))
    elif left < share / 2:
        found.append(("shrinking mask", f"{share:.4%} of {size}, {left:.4%} at {img_size}x{img_size}"))
    return found
