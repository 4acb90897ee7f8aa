"""Heatmaps of photographs at their own size, beside a colour bar and the score; masks; small pictures for a page."""

import base64
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from files.pictures import heatmap, overlay

SMALLEST_FONT, LARGEST_FONT = 11, 72  # pixels
LINES = 12  # of text that a colour bar and what stands above it need at least
JPEG_QUALITY = 82


def labelled_heatmap(
    photograph: np.ndarray, scores: np.ndarray, scale: tuple[float, float], lines: list[str]
) -> np.ndarray:
    """A heatmap over its photograph [H, W, 3], pixel for pixel at the upper left, and a strip right of it.

    Args:
        scores: [H, W].
        scale: the scores that are blue and red.
        lines: what stands above the strip's colour bar.
    """
    height, width = scores.shape
    fitting = min(max(height, width) // 36, int(height / (LINES * 1.4)), LARGEST_FONT)
    font = font_of(max(fitting, SMALLEST_FONT))
    line = round(font.size * 1.4)
    low, high = (f"{value:.4g}" for value in scale)
    bar = round(font.size * 1.5)
    words = max(font.getlength(text) for text in [*lines, "0" * 4])
    numbers = bar + font.size // 2 + max(font.getlength(text) for text in (low, high))
    strip = font.size + round(max(words, numbers)) + font.size
    canvas = np.full((max(height, LINES * line), width + strip, 3), 255, np.uint8)
    canvas[:height, :width] = overlay(photograph, scores, *scale)
    left, top = width + font.size, line * len(lines) + line
    bottom = min(canvas.shape[0] - line // 2, top + 24 * line)
    canvas[top:bottom, left : left + bar] = heatmap(np.linspace(1, 0, bottom - top)[:, None], 0, 1)
    # only the strip goes through Pillow: the photograph may have half a gigapixel
    panel = Image.fromarray(canvas[:, width:])
    draw = ImageDraw.Draw(panel)
    for number, text in enumerate(lines):
        draw.text((font.size, line * number + line // 3), text, (20, 20, 20), font)
    beside = font.size + bar + font.size // 2
    draw.text((beside, top), high, (20, 20, 20), font, anchor="lt")
    draw.text((beside, bottom), low, (20, 20, 20), font, anchor="ls")
    canvas[:, width:] = np.asarray(panel)
    return canvas


@cache
def font_of(size: int) -> ImageFont.FreeTypeFont:
    """The font Pillow brings along, at a height in pixels."""
    return ImageFont.load_default(size)


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Write a mask [H, W] bool as a grey PNG of 0 and 255. Raises OSError where it cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), mask.astype(np.uint8) * 255):
        raise OSError(f"cannot write {path}: check the folder's permissions and free space")


def small(picture: np.ndarray, side: int) -> np.ndarray:
    """A picture [H, W] or [H, W, C] scaled down so that its longer side has `side` pixels at most."""
    height, width = picture.shape[:2]
    factor = side / max(height, width)
    if factor >= 1:
        return picture
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def data_uri(picture: np.ndarray) -> str:
    """An RGB picture [H, W, 3] as the source of an HTML image, JPEG."""
    _, encoded = cv2.imencode(
        ".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    )
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()
