"""Semantic maps made from a picture: edges, brightness, or a mask drawn for it."""

import cv2
import numpy as np
from PIL import Image

MAPS = ("canny", "luminance", "mask")
CANNY_LOW, CANNY_HIGH = (
    100,
    200,
)  # gradient of grey levels: an edge starts above the second, goes on above the first


def canny_map(picture: Image.Image) -> Image.Image:
    """Edges of an RGB picture, white on black (J. Canny, PAMI 1986)."""
    edges = cv2.Canny(np.asarray(picture.convert("L")), CANNY_LOW, CANNY_HIGH)
    return Image.fromarray(edges).convert("RGB")


def luminance_map(picture: Image.Image) -> Image.Image:
    """The brightness of an RGB picture, as ITU-R BT.601 weighs its channels."""
    return picture.convert("L").convert("RGB")


def mask_map(mask: np.ndarray) -> Image.Image:
    """A mask, bool [H, W], white on black."""
    return Image.fromarray(mask.astype(np.uint8) * 255).convert("RGB")
