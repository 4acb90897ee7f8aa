"""Decoding one picture and its masks, with errors that name the file and the metadata line it came from."""

import functools
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from PIL import Image
from PIL.Image import Transpose

from dataset.jsonl import Sample
from dataset.mask_values import (
    ROBUST,
    UPSTREAM,
    is_deep,
    is_lossy_file,
    mask_pixels,
    robust_defect,
    upstream_defect,
)

# Pillow's own limit (179 megapixels) calls intact line scans an attack.
PIXEL_LIMIT = 500_000_000
Image.MAX_IMAGE_PIXELS = PIXEL_LIMIT
RUNS_A_PROGRAM = ("EPS",)  # kinds Pillow decodes by another program
ORIENTATION = 0x0112  # EXIF tag: how to turn the stored pixels to see them upright
UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
END_MARKS = {"PNG": b"IEND", "JPEG": b"\xff\xd9", "MPO": b"\xff\xd9"}
TAIL = 1 << 14  # bytes at a file's end that are searched for its mark
# What Pillow raises for damaged or foreign files; everything else is a bug and passes through.
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error)


class Reading(NamedTuple):
    """How the files of a data set are read.

    `masks` is one of mask_values.MASK_READINGS; UPSTREAM also leaves EXIF orientation alone.
    `as_stored`: masks are drawn on the stored pixels wherever sizes do not tell (half turns, square pictures).
    """

    masks: str = ROBUST
    as_stored: bool = False


class Header(NamedTuple):
    """What a file says of itself before it is decoded."""

    size: tuple[int, int]  # (width, height) of the stored pixels
    orientation: int = 1  # EXIF's: 1 is upright
    mode: str = "RGB"
    format: str | None = "PNG"
    is_deep: bool = False  # 16 bits a channel
    is_transparent: bool = False
    is_lossy: bool = False
    is_cut_short: bool = False  # its format's end mark is missing

    @property
    def upright_size(self) -> tuple[int, int]:
        """(width, height) as the picture is to be seen."""
        return self.size[::-1] if self.orientation >= 5 else self.size


class Unsuitable(ValueError):
    """An intact file that is not what is read here; the message goes on from the file's name."""

    def __init__(self, kind: str, text: str):
        super().__init__(text)
        self.kind = kind


@contextmanager
def opened(what: str, path: str, source: str) -> Iterator[Image.Image]:
    """An image file of one picture of a size that is read; its pixels are not decoded yet.

    Args:
        what: "image" or "mask".
        source: where the path came from (file:line).

    Raises:
        ValueError: with the file, the reason and the remedy, for what goes wrong here or in the block.
    """
    try:
        with Image.open(path, formats=_formats()) as image:
            _require_one_picture(image)
            if image.format == "TIFF":
                image.filename = ""  # Pillow maps turned pixels into memory by the size before the turn
            yield image
    except Unsuitable as error:
        error.args = (f"{source}: {what} {path!r} {error}",)
        raise
    except Image.DecompressionBombError as error:
        raise Unsuitable("too large", f"{source}: {what} {path!r} {_too_large()}") from error
    except _DECODE_ERRORS as error:
        raise ValueError(
            f"{source}: cannot read {what} {path!r} ({type(error).__name__}: {error}): "
            "expected an intact PNG, JPEG, TIFF, WebP, …; copy the file again or take it out"
        ) from error


def header_of(what: str, path: str, source: str) -> Header:
    """What a file says of itself; its pixels are not decoded. Raises ValueError as `opened` does."""
    with opened(what, path, source) as image:
        if what == "image":
            _require_white(image)
        return Header(
            image.size,
            orientation_of(image),
            image.mode,
            image.format,
            is_deep(image),
            image.has_transparency_data,
            is_lossy_file(image, path),
            is_cut_short(path, image.format),
        )


def is_cut_short(path: str, kind: str | None) -> bool:
    """Whether a PNG or JPEG lacks the mark it ends with, as after an interrupted copy; other data may follow it."""
    mark = END_MARKS.get(kind)
    if mark is None:
        return False
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - TAIL))
        return mark not in file.read()


def read_image(path: str, source: str, upright: bool = True) -> Image.Image:
    """RGB image, turned upright by its EXIF orientation unless `upright` is False, as AA-CLIP reads it.

    Of 16 bits a channel the upper eight are kept, palettes are read by their colours, transparency is ignored.
    `source` says where the path came from (file:line). Raises ValueError for a file that cannot be decoded.
    """
    return _read_image(path, source, upright)[0]


def read_image_of(sample: Sample, reading: Reading) -> Image.Image:
    """A sample's RGB image, turned as training and testing turn it. Raises ValueError as `read_image` does."""
    return read_image(sample.image_path, sample.source, reading.masks != UPSTREAM)


def read_mask(
    path: str, image_size: tuple[int, int], source: str, reading: Reading | None = None
) -> np.ndarray:
    """Mask of an upright image as a bool array [height, width], True where the image is anomalous.

    Raises ValueError for a file that cannot be decoded or a size other than `image_size` (width, height).
    """
    return _read_mask(path, Header(image_size), source, reading or Reading())


def read_pair(
    sample: Sample, reading: Reading | None = None, any_size: bool = False
) -> tuple[Image.Image, np.ndarray | None]:
    """A sample's RGB image and its mask, bool [height, width] of the image's size; None without one, several united.

    Both are turned upright by the image's EXIF orientation, the mask where it was drawn on the stored pixels.

    Args:
        reading: how; robustly when None.
        any_size: with the upstream reading a mask of another size is returned as it is, as AA-CLIP resizes both.

    Raises:
        ValueError: a file cannot be decoded, or the mask fits the image neither upright nor as stored.
    """
    reading = reading or Reading()
    picture, header = _read_image(sample.image_path, sample.source, reading.masks != UPSTREAM)
    any_size = any_size and len(sample.mask_paths) == 1
    masks = [_read_mask(path, header, sample.source, reading, any_size) for path in sample.mask_paths]
    return picture, functools.reduce(np.logical_or, masks) if masks else None


def turn_of_mask(mask: Header, image: Header, as_stored: bool = False) -> int | None:
    """EXIF orientation by which a mask's stored pixels are turned to fit its upright image; None if it never fits.

    A mask may be drawn on the upright image (as labelling tools do), on its stored pixels, or carry an orientation of
    its own. Where sizes allow both of the first two, `as_stored` decides.
    """
    wanted = image.upright_size
    if mask.orientation != 1 and mask.upright_size == wanted:
        return mask.orientation
    fits_upright, fits_stored = mask.size == wanted, mask.size == image.size
    if fits_upright and not (fits_stored and as_stored):
        return 1
    return image.orientation if fits_stored else None


def sizes_differ(source: str, path: str, mask: Header, image: Header) -> str:
    """The message about a mask that does not fit its image."""
    (width, height), (image_width, image_height) = mask.size, image.upright_size
    stored = (
        f" (stored as {image_height}x{image_width}, turned by its EXIF orientation {image.orientation})"
        if image.size != image.upright_size
        else ""
    )
    return (
        f"{source}: mask {path!r} is {width}x{height} pixels and its image is {image_width}x{image_height}{stored}, "
        f"{width / image_width:.3f} x {height / image_height:.3f} of it: both need the same size; name the right "
        "one in mask_path, or resize the mask (nearest)"
    )


def orientation_of(image: Image.Image) -> int:
    """EXIF orientation of an opened file, 1 to 8. TIFF's is Pillow's own to apply: 1."""
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return 1  # a PNG without it would be decoded to look for it behind the pixels
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except _DECODE_ERRORS:  # damaged EXIF says nothing; the picture may be intact
        return 1
    return found if found in UPRIGHT else 1


def _read_image(path: str, source: str, upright: bool) -> tuple[Image.Image, Header]:
    with opened("image", path, source) as image:
        _require_white(image)
        header = Header(image.size, orientation_of(image) if upright else 1)
        return _turned(_as_eight_bit(image).convert("RGB"), header.orientation), header


def _read_mask(path: str, image: Header, source: str, reading: Reading, any_size: bool = False) -> np.ndarray:
    with opened("mask", path, source) as mask:
        upstream = reading.masks == UPSTREAM
        header = Header(mask.size, 1 if upstream else orientation_of(mask))
        turn = turn_of_mask(header, image, reading.as_stored)
        if turn is not None or (upstream and any_size):
            defect = upstream_defect(mask) if upstream else robust_defect(mask_pixels(mask, path))
            return np.asarray(_turned(Image.fromarray(defect), turn or 1))
    raise ValueError(sizes_differ(source, path, header, image))


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image


def _require_one_picture(image: Image.Image) -> None:
    """A camera's MPO file is one picture with small versions of it behind; of a TIFF's pages, so are previews."""
    if image.width * image.height > PIXEL_LIMIT:
        raise Unsuitable("too large", _too_large(image))
    if image.format == "MPO" or not getattr(image, "is_animated", False):
        return
    if image.format == "TIFF" and _pages(image) < 2:
        return
    raise Unsuitable(
        "several frames",
        f"holds {image.n_frames} frames or pages: which one is meant is not known; save one of them as a file",
    )


def _pages(image: Image.Image) -> int:
    """Pages of a TIFF that are no reduced version of another; the first one is current again afterwards."""
    count = 0
    for page in range(image.n_frames):
        image.seek(page)
        count += not image.tag_v2.get(254, 0) & 1  # NewSubfileType
    image.seek(0)
    return count


def _too_large(image: Image.Image | None = None) -> str:
    size = f"is {image.width}x{image.height} pixels" if image else f"has over {2 * PIXEL_LIMIT:,} pixels"
    return (
        f"{size}, more than the {PIXEL_LIMIT // 10**6} megapixels that are read (3 bytes each): "
        "scale it down or cut it into tiles, its mask likewise"
    )


def _require_white(image: Image.Image) -> None:
    if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):
        raise Unsuitable(
            "no defined white",
            f"has mode {image.mode!r}, numbers without a defined white: save it with 8 or 16 bits a channel",
        )


def _as_eight_bit(image: Image.Image) -> Image.Image:
    """16-bit grey (medical PNG and TIFF, PGM) keeps its upper eight bits; Pillow's own conversion clips it to white."""
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image


@functools.cache
def _formats() -> list[str]:
    Image.init()
    return [name for name in Image.OPEN if name not in RUNS_A_PROGRAM]
