"""What the values of a mask file mean: which pixels are anomalous, by AA-CLIP's reading or by the robust one."""

import re
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

UPSTREAM, ROBUST = "upstream", "robust"
MASK_READINGS = (UPSTREAM, ROBUST)
AACLIP_SETS = frozenset(
    ("MVTec", "VisA", "BTAD", "MPDD", "Brain", "Liver", "Retina")
    + ("Colon_clinicDB", "Colon_colonDB", "Colon_Kvasir", "Colon_cvc300")
)
MEANINGS = {
    UPSTREAM: "as AA-CLIP reads them: every grey value that is not 0 is defect, JPEG noise and soft edges included; "
    "EXIF orientation is left alone; image and mask are resized each on its own",
    ROBUST: "every value that is not 0 is defect, whatever bit depth or palette; in JPEG masks and at soft edges what "
    "is above half of white",
}
ONLY_EDGES = (
    0.9  # share of a mask's grey pixels that lie between a darker and a brighter one where edges are soft
)
MANY_VALUES = 16  # more than this are noise unless they form areas
PHOTO_VALUES = 32  # colours of more brightnesses beside an alpha channel are a picture, not a mask


class MaskPixels(NamedTuple):
    """A mask's values; 0 is background."""

    values: np.ndarray  # [height, width], any number type
    white: float  # the brightest value of this bit depth
    is_lossy: bool  # JPEG and its like: values near an edge are noise
    in_alpha: bool = False  # taken from the alpha channel, the colours say nothing


def mask_reading_of(dataset_name: str, choice: str | None = None) -> str:
    """How a data set's masks are read: the choice, else AA-CLIP's way for its eleven sets and robustly for others.

    Raises:
        ValueError: an unknown choice.
    """
    if choice not in (None, *MASK_READINGS):
        raise ValueError(f"mask_reading is {choice!r}: expected {' or '.join(MASK_READINGS)}")
    return choice or (UPSTREAM if dataset_name in AACLIP_SETS else ROBUST)


def upstream_defect(mask: Image.Image) -> np.ndarray:
    """Anomalous pixels [height, width] by AA-CLIP's reading: every grey value that is not 0.

    Grey is Pillow's: palettes by their colours' brightness, 16 bits clipped to 255, alpha ignored.
    """
    return np.asarray(mask.convert("L")) != 0


def robust_defect(pixels: MaskPixels) -> np.ndarray:
    """Anomalous pixels [height, width]: every label that is not 0, without JPEG noise and the dark half of soft edges.

    A lossy or soft-edged mask is cut at half of white, one without a value above that at half of its brightest
    (lossy), or at 0 (lossless: defect numbers 1, 2, … have no white).

    Raises:
        ValueError: a value is not a number.
    """
    values, white = pixels.values, pixels.white
    brightest = values.max()
    if np.isnan(brightest):
        raise ValueError("it holds values that are not numbers")
    if pixels.is_lossy:
        return values > (white if brightest > white / 2 else brightest) / 2
    if brightest > white / 2 and has_soft_edges(values):
        return values > white / 2
    return values != 0


def has_soft_edges(values: np.ndarray) -> bool:
    """Whether the values between 0 and the brightest are edges or noise, not labels: [height, width], lossless.

    Most pixels of an edge, and of the noise of a JPEG kept as PNG, lie between a darker and a brighter neighbour; no
    pixel inside a labelled area does. Of many values those next to black and white are noise: not looked at.
    """
    brightest = values.max()
    grey = (values > 0) & (values < brightest)
    if not grey.any():
        return False
    if len(np.unique(values[grey])) > MANY_VALUES:
        near = brightest / 32
        grey = (values > near) & (values < brightest - near)
    values = values.astype(np.float32) if values.dtype not in (np.uint8, np.uint16) else values
    around = np.ones((3, 3), np.uint8)
    between = (cv2.erode(values, around) < values) & (values < cv2.dilate(values, around))
    return np.count_nonzero(grey & between) >= np.count_nonzero(grey) / 2


def mask_pixels(mask: Image.Image, path: str) -> MaskPixels:
    """The values of an opened mask file of any mode. `path` is read again for 16-bit colours, which Pillow halves."""
    is_lossy = is_lossy_file(mask, path)
    if is_deep(mask) and mask.mode in ("RGB", "RGBA", "LA"):
        return _with_alpha(_sixteen_bit_channels(path), 65535.0, is_lossy)
    if mask.has_transparency_data and not mask.mode.startswith("I"):
        return _with_alpha(np.asarray(mask.convert("RGBA")), 255.0, is_lossy)
    if mask.mode == "P":
        return MaskPixels(_palette_values(mask), 255.0, is_lossy)
    if mask.mode in ("1", "L", "F") or mask.mode.startswith("I"):
        values = np.asarray(mask)
        white = {"1": 1.0, "L": 255.0, "F": 1.0}.get(mask.mode, 65535.0)
        return MaskPixels(values.astype(np.uint8) if mask.mode == "1" else _native(values), white, is_lossy)
    if mask.mode == "RGB":
        return MaskPixels(np.asarray(mask).max(axis=-1), 255.0, is_lossy)
    return MaskPixels(np.asarray(mask.convert("L")), 255.0, is_lossy)  # CMYK, YCbCr, LAB: photographs' modes


def is_deep(image: Image.Image) -> bool:
    """Whether a file holds 16 bits a channel, also where Pillow decodes them to 8; asked before decoding."""
    return image.mode.startswith("I") or any(
        re.search(r";16", str(tile[3])) for tile in getattr(image, "tile", ())
    )


def is_lossy_file(image: Image.Image, path: str) -> bool:
    """Whether an opened file is compressed as JPEG is: values near edges are noise."""
    if image.format == "WEBP":
        return Path(path).open("rb").read(16)[12:] != b"VP8L"
    return image.format in ("JPEG", "MPO") or image.info.get("compression") == "jpeg"


def _palette_values(mask: Image.Image) -> np.ndarray:
    """Brightness of each pixel's colour [height, width], 0 for background, which is black.

    Where number 0 is black, other black numbers are labels without a colour and keep their number. Where no pixel is
    black, number 0 is background.
    """
    numbers = np.asarray(mask)
    palette = np.asarray(mask.getpalette("RGB"), np.uint8).reshape(-1, 3).max(axis=-1)
    palette = np.pad(palette, (0, 256 - len(palette)))
    used = np.flatnonzero(np.bincount(numbers.reshape(-1), minlength=256))
    if palette[0] == 0:
        palette = np.where(palette == 0, np.arange(256), palette).astype(np.uint8)
    elif palette[used].all() and len(used) > 1:
        palette[0] = 0
    return palette[numbers]


def _with_alpha(channels: np.ndarray, white: float, is_lossy: bool) -> MaskPixels:
    """Values of [height, width, 3 or 4] channels: of the colours where they are opaque, or of the alpha channel where
    the colours are all alike or a picture."""
    colours = channels[..., :3].max(axis=-1)
    if channels.shape[-1] == 3:
        return MaskPixels(colours, white, is_lossy)
    alpha = channels[..., 3]
    if alpha.min() == alpha.max():  # says nothing
        return MaskPixels(colours, white, is_lossy)
    if colours.min() == colours.max() or len(np.unique(colours)) > PHOTO_VALUES:
        return MaskPixels(alpha, white, is_lossy, in_alpha=True)
    return MaskPixels(np.where(alpha > 0, colours, 0), white, is_lossy)


def _sixteen_bit_channels(path: str) -> np.ndarray:
    """[height, width, 3 or 4] uint16, colours in any order, alpha last."""
    channels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if channels is None:
        raise OSError("OpenCV cannot decode its 16-bit colours")
    return channels


def _native(values: np.ndarray) -> np.ndarray:
    """The same numbers in the processor's byte order."""
    return values.astype(values.dtype.newbyteorder("="), copy=False)
