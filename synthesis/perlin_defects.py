"""Defects without a model: a foreign texture blended into a mask (after DRAEM, Zavrtanik et al., ICCV 2021)."""

import cv2
import numpy as np

MIN_OPACITY, MAX_OPACITY = 0.2, 1.0
CHANGES = 3  # of the six in `foreign_texture`


def texture_defect(image: np.ndarray, texture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The whole image as if it were defective, to be pasted inside a mask: RGB bytes [H, W, 3].

    opacity · texture + (1 - opacity) · image, the opacity drawn evenly from [0.2, 1].

    Args:
        image: RGB bytes [H, W, 3].
        texture: RGB bytes of any size, changed by `foreign_texture` and resized. DRAEM takes photographs of textures
            (DTD); any other image serves, also one of another class.
    """
    height, width = image.shape[:2]
    foreign = cv2.resize(foreign_texture(texture, rng), (width, height), interpolation=cv2.INTER_LINEAR)
    opacity = rng.uniform(MIN_OPACITY, MAX_OPACITY)
    return (opacity * foreign + (1 - opacity) * image.astype(np.float32)).round().astype(np.uint8)


def foreign_texture(texture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A texture [H, W, 3] after three of six changes, chosen and sized by `rng`; RGB bytes of another size."""
    changes = (_turned, _brightened, _recoloured, _posterised, _solarised, _enlarged)
    for index in sorted(rng.choice(len(changes), CHANGES, replace=False)):
        texture = changes[index](texture, rng)
    return np.ascontiguousarray(texture)


def _turned(pixels, rng):
    return np.rot90(pixels, rng.integers(1, 4))


def _brightened(pixels, rng):
    gain, offset = rng.uniform(0.5, 1.5), rng.uniform(-50, 50)
    return (gain * pixels.astype(np.float32) + offset).clip(0, 255).astype(np.uint8)


def _recoloured(pixels, rng):
    hsv = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2HSV).astype(np.int32)
    hsv[..., 0] = (hsv[..., 0] + rng.integers(30, 150)) % 180  # OpenCV's hue is in steps of two degrees
    hsv[..., 1] = (hsv[..., 1] + rng.integers(-60, 61)).clip(0, 255)
    return cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)


def _posterised(pixels, rng):
    return pixels & np.uint8(256 - 2 ** rng.integers(4, 7))  # the upper two to four bits


def _solarised(pixels, rng):
    return np.where(pixels < rng.integers(32, 129), pixels, 255 - pixels)


def _enlarged(pixels, rng):
    height, width = (max(1, int(side * rng.uniform(0.3, 0.8))) for side in pixels.shape[:2])
    top, left = (
        int(rng.integers(side - part + 1)) for side, part in zip(pixels.shape, (height, width), strict=False)
    )
    return pixels[top : top + height, left : left + width]
