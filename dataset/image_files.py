"""Decoding one image and one mask, with errors that name the file and the metadata line it came from."""

import struct

import numpy as np
from PIL import Image

# What Pillow raises for damaged, foreign or oversized files; everything else is a bug and passes through.
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


def read_image(path: str, source: str) -> Image.Image:
    """RGB image as stored: EXIF orientation is not applied, since masks are drawn on the stored pixels.

    `source` says where the path came from (file:line). Raises ValueError for a file that cannot be decoded.
    """
    try:
        with Image.open(path) as image:
            return _as_eight_bit(image).convert("RGB")
    except _DECODE_ERRORS as error:
        raise ValueError(_unreadable("image", path, source, error)) from error


def read_mask(path: str, image_size: tuple[int, int], source: str) -> np.ndarray:
    """Mask as a bool array [height, width] of the image's size, True where the image is anomalous.

    A pixel counts when it is brighter than half of white, which leaves JPEG noise out. A mask whose brightest value is
    below that (VisA publishes masks of defect numbers 1, 2, …) counts every pixel that is not 0.
    Raises ValueError for a file that cannot be decoded or a size other than `image_size` (width, height).
    """
    try:
        with Image.open(path) as mask:
            size = mask.size
            values = np.asarray(mask.convert("L"))
    except _DECODE_ERRORS as error:
        raise ValueError(_unreadable("mask", path, source, error)) from error
    if size != image_size:
        raise ValueError(
            f"{source}: mask {path!r} is {size[0]}x{size[1]} pixels and its image is {image_size[0]}x{image_size[1]}: "
            "both need the same size; resize the mask (nearest) or name the right one in mask_path"
        )
    return values > (127 if values.max() > 127 else 0)


def _as_eight_bit(image: Image.Image) -> Image.Image:
    """16-bit grey (medical PNG and TIFF) keeps its upper eight bits; Pillow's own conversion clips it to white."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode!r} has no defined white: save it with 8 or 16 bits a channel")
    return image


def _unreadable(what: str, path: str, source: str, error: Exception) -> str:
    return (
        f"{source}: cannot read {what} {path!r} ({type(error).__name__}: {error}): "
        "expected an intact PNG, JPEG, BMP or TIFF; copy the file again or take its line out"
    )
