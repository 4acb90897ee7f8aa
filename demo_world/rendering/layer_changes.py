"""What defects are made of: colour, gloss and relief of a thing changed in place where a mask [S, S] says."""

import numpy as np
from numpy.typing import ArrayLike

from demo_world.rendering.surfaces import Layers


def paint(layers: Layers, mask: np.ndarray, colour: ArrayLike, strength: float = 1.0) -> None:
    """Move the colour towards `colour` ([3] or [S, S, 3])."""
    weight = (strength * mask)[..., None]
    layers.albedo += weight * (np.asarray(colour, np.float32) - layers.albedo)


def darken(layers: Layers, mask: np.ndarray, factor: ArrayLike) -> None:
    """Multiply the colour by `factor` (a number, [3] or [S, S, 1])."""
    layers.albedo *= 1.0 + mask[..., None] * (np.asarray(factor, np.float32) - 1.0)


def dull(layers: Layers, mask: np.ndarray) -> None:
    """Take gloss and mirror away."""
    layers.gloss *= 1.0 - mask
    layers.mirror *= 1.0 - mask


def is_surface(layers: Layers) -> bool:
    """Whether the thing fills the frame."""
    return float(layers.coverage.min()) > 0.5


def tone_under(layers: Layers, mask: np.ndarray) -> float:
    """Mean brightness where the mask is."""
    return float((layers.albedo.mean(2) * mask).sum() / (mask.sum() + 1e-6))
