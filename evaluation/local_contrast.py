"""The reference without learning: how much a pixel's surroundings differ from theirs. No weights, no text, no training.

What it finds needs no model to be found, so every table of a model shows it beside raw CLIP.
"""

from functools import cache

import numpy as np
import scipy
import torch
from torch import Tensor

from files.normalisation import CLIP_MEAN, CLIP_STD

GREY = (0.299, 0.587, 0.114)  # weights of red, green and blue (ITU-R BT.601)
SURROUNDINGS = 1 / 16  # sigma of the blur that is taken off, as a share of the image's side
SMOOTHING = 1 / 64  # sigma of the blur of what is left


class LocalContrast:
    """Scores images as an AnomalyScorer does: map blur(|grey - blur(grey)|), image score its maximum.

    Args:
        img_size: side of images and maps in pixels; both blurs scale with it (sigma 32 and 8 at 518 px).
        domain: "Industrial" or "Medical", of the dataset; the scores do not depend on it.
    """

    levels = 1

    def __init__(self, img_size: int, domain: str):
        self.img_size, self.domain = img_size, domain

    @torch.no_grad()
    def score(self, image: Tensor, class_name: str) -> tuple[Tensor, Tensor]:
        """Maps [B, S, S] in percent of the grey scale, and their maxima [B] as fractions of it.

        The two units make every image score of `metrics` rank pictures by the maximum alone.

        Args:
            image: [B, 3, S, S], normalised with CLIP's mean and deviation.
            class_name: not looked at.
        """
        grey = grey_of(image)
        contrast = blur((grey - blur(grey, SURROUNDINGS * self.img_size)).abs(), SMOOTHING * self.img_size)
        contrast = contrast[:, 0]
        return 100 * contrast, contrast.amax(dim=(1, 2))


def grey_of(image: Tensor) -> Tensor:
    """Brightness [B, 1, S, S] in [0, 1] of images normalised for CLIP [B, 3, S, S]."""
    deviation, mean, grey = (
        image.new_tensor(values)[:, None, None] for values in (CLIP_STD, CLIP_MEAN, GREY)
    )
    return ((image * deviation + mean) * grey).sum(dim=1, keepdim=True)


def blur(maps: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of maps [..., S, S], sigma in pixels; the border is mirrored."""
    matrix = blur_matrix(maps.shape[-1], sigma).to(maps)
    return matrix @ maps @ matrix.T


@cache
def blur_matrix(side: int, sigma: float) -> Tensor:
    """[side, side] weights of a Gaussian blur of one axis; two products cost less than one kernel as wide as this."""
    return torch.from_numpy(scipy.ndimage.gaussian_filter1d(np.eye(side), sigma, axis=0, mode="mirror"))
