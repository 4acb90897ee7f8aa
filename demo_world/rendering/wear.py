"""Defects of wear, age and handling, which only DemoC has; drawn as those of defects.py, with the same signature."""

import cv2
import numpy as np
from numpy.random import Generator

from demo_world.rendering.fields import fractal, ramp
from demo_world.rendering.layer_changes import darken, dull, is_surface, paint, tone_under
from demo_world.rendering.regions import blob, place_on, smooth_path, stroke, walk
from demo_world.rendering.surfaces import Layers


def _patch(layers, extent, rng, **outline):
    """A blob on the thing, 0..1 [S, S]."""
    size = layers.height.shape[0]
    return blob(size, place_on(layers.coverage, rng), extent, rng, **outline) * layers.coverage


def rust(layers: Layers, extent: float, rng: Generator) -> None:
    """An orange-brown crust of uneven grain."""
    size = layers.height.shape[0]
    mask = _patch(layers, extent, rng, softness=0.5, rough=0.4, aspect=rng.uniform(1.0, 1.8))
    grain = fractal(size, 26, rng, octaves=3)
    crust = np.clip(mask * (1.0 + 0.25 * grain), 0.0, 1.0)
    tones = np.float32([0.55, 0.27, 0.10]) * (1.0 + 0.22 * grain)[..., None]
    paint(layers, crust, np.clip(tones, 0.02, 0.95), 0.9)
    layers.height += 0.012 * crust * grain
    dull(layers, crust)


def dent(layers: Layers, extent: float, rng: Generator) -> None:
    """Material pushed in: a smooth hollow that only its shading shows, the paint strained along its rim."""
    size = layers.height.shape[0]
    shape = dict(rough=0.1, aspect=rng.uniform(1.0, 1.7))
    centre, seed = place_on(layers.coverage, rng), int(rng.integers(2**31))
    hollow = blob(size, centre, extent, np.random.default_rng(seed), softness=1.2, **shape) * layers.coverage
    depth = 0.9 * extent * (1.0 if is_surface(layers) else 0.7)
    layers.height -= depth * hollow**1.5
    darken(layers, np.clip(4.0 * hollow * (1.0 - hollow), 0.0, 1.0), 0.86)
    darken(layers, hollow, 0.82)


def blister(layers: Layers, extent: float, rng: Generator) -> None:
    """Coating lifted in some domes of different size, paler where it is thin."""
    size = layers.height.shape[0]
    centre = np.array(place_on(layers.coverage, rng))
    for _ in range(int(rng.integers(2, 6))):
        spot, radius = centre + rng.normal(0.0, 0.4 * extent, 2), extent * rng.uniform(0.25, 0.6)
        dome = blob(size, spot, radius, rng, softness=1.0, rough=0.08) * layers.coverage
        layers.height += 0.9 * radius * np.sqrt(np.clip(dome, 0.0, 1.0))
        pale = 0.6 * layers.albedo + 0.4 * (0.9 if tone_under(layers, dome) < 0.55 else 0.35)
        paint(layers, dome, pale, 0.8)
        layers.gloss += 0.3 * dome * (1.0 - layers.gloss)


def smear(layers: Layers, extent: float, rng: Generator) -> None:
    """Grease or paint dragged by a wiping hand: parallel streaks that fade out."""
    size = layers.height.shape[0]
    angle, centre = rng.uniform(0, 2 * np.pi), np.array(place_on(layers.coverage, rng))
    across = np.array([-np.sin(angle), np.cos(angle)])
    film = np.zeros((size, size), np.float32)
    for offset in np.linspace(-0.35, 0.35, int(rng.integers(4, 7))) * extent:
        length = 2.2 * extent * rng.uniform(0.6, 1.0)
        path = smooth_path(walk(centre + offset * across, length, rng, steps=6, wander=0.06, angle=angle))
        film = np.maximum(film, rng.uniform(0.55, 1.0) * stroke(size, path, 0.14 * extent, taper=True))
    film *= layers.coverage
    tint = np.float32([[0.16, 0.14, 0.12], [0.75, 0.74, 0.66], [0.30, 0.36, 0.50]][int(rng.integers(3))])
    if abs(float(tint.mean()) - tone_under(layers, film)) < 0.25:
        tint = np.float32(0.12 if tone_under(layers, film) > 0.45 else 0.85) + 0.0 * tint
    paint(layers, film, tint, 0.8)


def fading(layers: Layers, extent: float, rng: Generator) -> None:
    """Colour bleached by light or liquid; relief and gloss stay."""
    size = layers.height.shape[0]
    mask = _patch(layers, extent, rng, softness=0.7, rough=0.3, aspect=rng.uniform(1.0, 2.0))
    mask *= np.clip(0.85 + 0.12 * fractal(size, 7, rng, octaves=3), 0.4, 1.0)
    grey = layers.albedo.mean(2, keepdims=True)
    target = 0.92 if tone_under(layers, mask) < 0.72 else 0.55  # what is pale already yellows instead
    bleached = 0.35 * grey + 0.65 * target * np.float32(
        [1.0, 0.99, 0.95] if target > 0.7 else [1.2, 1.05, 0.6]
    )
    paint(layers, mask, np.clip(bleached, 0.02, 0.97), 0.85)


def wrinkle(layers: Layers, extent: float, rng: Generator) -> None:
    """Two to four soft ridges side by side, as in material that was pushed together."""
    size = layers.height.shape[0]
    centre, angle = np.array(place_on(layers.coverage, rng)), rng.uniform(0, np.pi)
    across = np.array([-np.sin(angle), np.cos(angle)])
    count = int(rng.integers(2, 5))
    for offset in (np.arange(count) - (count - 1) / 2) * 0.45 * extent:
        path = smooth_path(walk(centre + offset * across, 2 * extent, rng, steps=7, wander=0.16, angle=angle))
        line = stroke(size, path, 0.13 * extent + 0.012, taper=True) * layers.coverage
        soft = cv2.GaussianBlur(line, (0, 0), 0.006 * size + 0.4)
        layers.height += 0.35 * extent * soft
        darken(layers, np.roll(soft, max(1, size // 70), (0, 1)) * layers.coverage, 0.55)
        paint(layers, soft, 0.5 * layers.albedo + 0.45, 0.5)


def pitting(layers: Layers, extent: float, rng: Generator) -> None:
    """A field of small round pits with dark bottoms."""
    size = layers.height.shape[0]
    centre = np.array(place_on(layers.coverage, rng))
    light = tone_under(layers, layers.coverage) < 0.2
    for _ in range(int(rng.integers(10, 22))):
        spot, radius = centre + rng.normal(0.0, 0.5 * extent, 2), extent * rng.uniform(0.06, 0.16)
        pit = blob(size, spot, max(radius, 0.014), rng, softness=0.5, rough=0.1) * layers.coverage
        layers.height -= 0.7 * radius * pit
        paint(layers, pit, (0.7, 0.68, 0.62) if light else (0.07, 0.06, 0.06), 0.85)
        dull(layers, pit)
    around = blob(size, centre, 0.8 * extent, rng, softness=1.0) * layers.coverage
    darken(layers, ramp(around, 0.0, 1.0), 0.93)


WEAR = {
    "rust": rust,
    "dent": dent,
    "blister": blister,
    "smear": smear,
    "fading": fading,
    "wrinkle": wrinkle,
    "pitting": pitting,
}
