"""AA-CLIP's training augmentation: colour jitter on the PIL image, then geometry on image and mask together."""

import torch
from PIL import Image

JITTER_PROBABILITY = 0.7
JITTER_STRENGTH = 0.5  # factors are drawn from [1 - strength, 1 + strength]
GEOMETRY_PROBABILITY = 0.5
MAX_ROTATION = 30.0  # degrees, both ways
MAX_TRANSLATION = 0.15  # of the side, both ways


def jitter_colour(image: Image.Image, generator: torch.Generator) -> Image.Image:
    """Brightness, contrast and saturation in this order, each applied with its own probability of 0.7."""
    from torchvision.transforms import functional as transform  # here, because importing it takes a second

    for adjust in (transform.adjust_brightness, transform.adjust_contrast, transform.adjust_saturation):
        applied = _chance(JITTER_PROBABILITY, generator)
        factor = _uniform(1 - JITTER_STRENGTH, 1 + JITTER_STRENGTH, generator)
        if applied:
            image = adjust(image, factor)
    return image


def move_together(
    image: torch.Tensor, mask: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate, translate and flip an image and its mask by the same amounts, each with probability 0.5.

    `image` [3, S, S] is normalised already, so the fill of 0 is CLIP's mean colour; `mask` [1, S, S] is 0/1 and stays
    so, because pixels are only ever moved (nearest). Returns (image, mask) of the same shapes.
    """
    from torchvision.transforms import functional as transform

    stacked = torch.cat([image, mask])  # [4, S, S]
    height, width = stacked.shape[-2:]
    # All numbers are drawn, used or not: what one step does never shifts the draws of the next.
    rotated, translated, flipped, flopped = (_chance(GEOMETRY_PROBABILITY, generator) for _ in range(4))
    angle = _uniform(-MAX_ROTATION, MAX_ROTATION, generator)
    across = round(_uniform(-MAX_TRANSLATION, MAX_TRANSLATION, generator) * width)
    down = round(_uniform(-MAX_TRANSLATION, MAX_TRANSLATION, generator) * height)
    if rotated:
        stacked = rotate(stacked, angle)
    if translated:
        stacked = translate(stacked, across, down)
    if flipped:
        stacked = transform.hflip(stacked)
    if flopped:
        stacked = transform.vflip(stacked)
    return stacked[:3], stacked[3:]


def rotate(stacked: torch.Tensor, angle: float) -> torch.Tensor:
    """[4, S, S] turned by degrees about its centre, nearest, 0 outside."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as transform

    # Outside is 0 without a fill too, which would cost a channel that says where outside is.
    return transform.rotate(stacked, angle, InterpolationMode.NEAREST, fill=None)


def translate(stacked: torch.Tensor, across: int, down: int) -> torch.Tensor:
    """[4, S, S] moved by whole pixels, 0 where nothing is moved to; |across| and |down| are at most S.

    The very values of torchvision's `affine`, which interpolates all of them to find the same.
    """
    height, width = stacked.shape[-2:]
    moved = torch.zeros_like(stacked)
    moved[:, max(0, down) : height + min(0, down), max(0, across) : width + min(0, across)] = stacked[
        :, max(0, -down) : height + min(0, -down), max(0, -across) : width + min(0, -across)
    ]
    return moved


def _chance(probability: float, generator: torch.Generator) -> bool:
    return torch.rand((), generator=generator).item() < probability


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * torch.rand((), generator=generator).item()
