"""Defects of goods, drawn into the layers before the light falls on them, so that they are lit like the rest.

Every function takes (layers, extent, rng) and changes the layers in place. `extent` is the defect's radius or half
length in frame units (the frame is 2 wide). Objects know their outline through `layers.coverage`; a surface covers all.
"""

import cv2
import numpy as np
from numpy.random import Generator

from demo_world.rendering.fields import fractal, ramp
from demo_world.rendering.layer_changes import darken, dull, is_surface, paint, tone_under
from demo_world.rendering.regions import blob, place_on, smooth_path, stroke, walk
from demo_world.rendering.surfaces import Layers
from demo_world.rendering.wear import WEAR


def scratch(layers: Layers, extent: float, rng: Generator) -> None:
    """One to three nearly parallel grooves that bare lighter or darker material."""
    size = layers.height.shape[0]
    centre, angle = np.array(place_on(layers.coverage, rng)), rng.uniform(0, 2 * np.pi)
    tone = rng.choice((0.45, 1.75))
    for _ in range(int(rng.integers(1, 4))):
        start = centre + rng.normal(0.0, 0.12 * extent, 2)
        path = smooth_path(
            walk(start, 2 * extent * rng.uniform(0.6, 1.0), rng, steps=6, wander=0.12, angle=angle)
        )
        line = stroke(size, path, rng.uniform(0.012, 0.024), taper=True) * layers.coverage
        layers.albedo *= 1.0 + 0.7 * line[..., None] * (tone - 1.0)
        layers.albedo += (0.12 if tone > 1 else 0.0) * line[..., None]
        layers.height -= 0.018 * line


def hole(layers: Layers, extent: float, rng: Generator) -> None:
    """A punched or torn hole with a dark bottom and a slightly raised rim."""
    size = layers.height.shape[0]
    centre = place_on(layers.coverage, rng)
    shape = dict(rough=rng.uniform(0.05, 0.2), aspect=rng.uniform(1.0, 1.6))
    seed = int(rng.integers(2**31))
    inside = blob(size, centre, 0.75 * extent, np.random.default_rng(seed), softness=0.1, **shape)
    around = blob(size, centre, extent, np.random.default_rng(seed), softness=0.5, **shape)
    inside, around = inside * layers.coverage, around * layers.coverage
    layers.height += 0.03 * (around - inside) - 0.10 * inside
    darken(layers, np.clip(around - inside, 0.0, 1.0), 0.85)
    paint(layers, inside, rng.uniform(0.03, 0.1, 3), 0.92)
    dull(layers, inside)


def stain(layers: Layers, extent: float, rng: Generator) -> None:
    """A dried liquid: tinted, uneven, darker along its border."""
    size = layers.height.shape[0]
    mask = (
        blob(
            size,
            place_on(layers.coverage, rng),
            extent,
            rng,
            softness=0.3,
            rough=0.3,
            aspect=rng.uniform(1.0, 2.0),
        )
        * layers.coverage
    )
    border = np.clip(4.0 * mask * (1.0 - mask), 0.0, 1.0)
    tint = np.array(
        [(0.62, 0.47, 0.30), (0.45, 0.45, 0.48), (0.55, 0.62, 0.40), (0.72, 0.42, 0.36), (0.40, 0.48, 0.66)][
            int(rng.integers(5))
        ]
    )
    uneven = np.clip(0.75 + 0.15 * fractal(size, 6, rng, octaves=3), 0.3, 1.0)
    if tone_under(layers, mask) < 0.22:
        paint(layers, mask * uneven, np.clip(tint + 0.25, 0.0, 0.9), 0.4)
    else:
        darken(layers, mask * uneven, tint)
        darken(layers, border, 0.85)
    dull(layers, 0.5 * mask)


def missing_part(layers: Layers, extent: float, rng: Generator) -> None:
    """A piece broken away: of an object the background shows, of a surface the rough inside."""
    size = layers.height.shape[0]
    surface = is_surface(layers)
    centre = place_on(layers.coverage, rng, edge=not surface)
    mask = blob(size, centre, extent, rng, softness=0.06, rough=0.25, aspect=rng.uniform(1.0, 1.7))
    if not surface:
        layers.coverage *= 1.0 - mask
        return
    rough = fractal(size, 24, rng, octaves=4)
    layers.height += mask * (0.02 * rough - 0.06) - mask * 0.7 * (layers.height - layers.height.mean())
    paint(layers, mask, layers.albedo.mean((0, 1)) * rng.uniform(0.45, 0.75), 0.85)
    darken(layers, mask, (1.0 + 0.12 * rough)[..., None])
    dull(layers, mask)


def crack(layers: Layers, extent: float, rng: Generator) -> None:
    """A dark fissure that jags and forks."""
    size = layers.height.shape[0]
    path = walk(place_on(layers.coverage, rng), 2 * extent, rng, steps=12, wander=0.5)
    line = stroke(size, path, rng.uniform(0.014, 0.028), taper=True)
    for _ in range(int(rng.integers(0, 3))):
        start = path[int(rng.integers(3, 10))]
        branch = walk(start, rng.uniform(0.4, 0.9) * extent, rng, steps=6, wander=0.5)
        line = np.maximum(line, stroke(size, branch - branch[0] + start, 0.011, taper=True))
    line = line * layers.coverage
    darken(layers, line, 0.22)
    layers.height -= 0.035 * cv2.GaussianBlur(line, (0, 0), 0.004 * size + 0.3)
    dull(layers, line)


def contamination(layers: Layers, extent: float, rng: Generator) -> None:
    """Foreign particles: a loose cluster of small grains of one alien colour."""
    size = layers.height.shape[0]
    centre = np.array(place_on(layers.coverage, rng))
    colour = rng.uniform(0.05, 0.85, 3)
    for _ in range(int(rng.integers(4, 12))):
        spot = centre + rng.normal(0.0, 0.55 * extent, 2)
        radius = extent * rng.uniform(0.08, 0.24)
        grain = blob(size, spot, radius, rng, softness=0.25, rough=0.25, aspect=rng.uniform(1.0, 1.8))
        grain *= layers.coverage
        shadow = np.roll(grain, max(1, size // 90), (0, 1))
        darken(layers, shadow * layers.coverage * (1 - grain), 0.6)
        paint(layers, grain, np.clip(colour + rng.uniform(-0.08, 0.08, 3), 0.02, 0.95), 0.95)
        layers.height += 0.6 * radius * grain
        dull(layers, 0.6 * grain)


def bent(layers: Layers, extent: float, rng: Generator) -> None:
    """Part of the thing pushed sideways and down: everything in reach moves, the relief buckles."""
    size = layers.height.shape[0]
    centre = np.array(place_on(layers.coverage, rng, edge=not is_surface(layers)))
    axis = (np.arange(size, dtype=np.float32) + 0.5) * (2.0 / size) - 1.0
    x, y = np.meshgrid(axis - np.float32(centre[0]), axis - np.float32(centre[1]))
    reach = np.exp(-(((x * x + y * y) / (1.1 * extent) ** 2) ** 1.5)).astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    push = 0.55 * extent * size / 2.0
    columns, rows = np.meshgrid(np.arange(size, dtype=np.float32), np.arange(size, dtype=np.float32))
    columns += push * np.cos(angle) * reach
    rows += push * np.sin(angle) * reach
    for name in ("albedo", "height", "gloss", "mirror", "coverage"):
        moved = cv2.remap(
            getattr(layers, name), columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        getattr(layers, name)[:] = moved
    buckle = np.cos((np.cos(angle) * x + np.sin(angle) * y) / extent * 3.0)
    strength = 0.5 if is_surface(layers) else 0.25
    layers.height += strength * extent * reach * buckle


def chip(layers: Layers, extent: float, rng: Generator) -> None:
    """A flake off the edge (or out of the face): a bright fracture face with facets."""
    size = layers.height.shape[0]
    centre = place_on(layers.coverage, rng, edge=not is_surface(layers))
    mask = (
        blob(size, centre, extent, rng, softness=0.1, rough=0.3, aspect=rng.uniform(1.0, 2.0))
        * layers.coverage
    )
    facets = np.abs(fractal(size, 1.6 / extent, rng, octaves=3))
    depth = np.clip(layers.height - layers.height[layers.coverage > 0.5].min(), 0.0, None)
    layers.height -= mask * (0.6 * depth * (not is_surface(layers)) + 0.03 + 0.035 * facets)
    mean = layers.albedo[mask > 0.5].mean(0) if (mask > 0.5).any() else np.full(3, 0.5)
    fresh = 0.5 * mean + 0.5 * rng.uniform(0.55, 0.8) if mean.mean() < 0.6 else mean * 0.62
    paint(layers, mask, fresh, 0.85)
    darken(layers, mask, (0.85 + 0.15 * facets)[..., None])
    dull(layers, 0.8 * mask)


def burn(layers: Layers, extent: float, rng: Generator) -> None:
    """A scorch mark: black-brown core, brown fading halo, gloss gone."""
    size = layers.height.shape[0]
    mask = (
        blob(
            size,
            place_on(layers.coverage, rng),
            extent,
            rng,
            softness=1.1,
            rough=0.25,
            aspect=rng.uniform(1.0, 2.2),
        )
        * layers.coverage
    )
    mask *= np.clip(0.85 + 0.15 * fractal(size, 8, rng, octaves=3), 0.4, 1.0)
    if tone_under(layers, mask) < 0.2:
        paint(layers, mask, (0.42, 0.38, 0.34), 0.65)
    else:
        darken(layers, mask, (0.45, 0.36, 0.30))
        darken(layers, ramp(mask, 0.6, 1.0), (0.5, 0.45, 0.45))
    dull(layers, mask)


def thread(layers: Layers, extent: float, rng: Generator) -> None:
    """A stray fibre lying on top, with its thin shadow."""
    size = layers.height.shape[0]
    path = smooth_path(walk(place_on(layers.coverage, rng), 3.2 * extent, rng, steps=9, wander=0.55), 60)
    width = rng.uniform(0.014, 0.024)
    line = stroke(size, path, width)
    near = float(layers.albedo.mean())
    colour = rng.uniform(0.05, 0.3, 3) if near > 0.5 else rng.uniform(0.65, 0.95, 3)
    shadow = stroke(size, path + 0.016, 1.6 * width)
    darken(layers, shadow * (1.0 - line) * layers.coverage, 0.72)
    paint(layers, line, colour, 0.95)
    layers.coverage[:] = np.maximum(layers.coverage, line)
    layers.height += 0.03 * line
    dull(layers, line)


DEFECTS = {
    "scratch": scratch,
    "hole": hole,
    "stain": stain,
    "missing part": missing_part,
    "crack": crack,
    "contamination": contamination,
    "bent": bent,
    "chip": chip,
    "burn": burn,
    "thread": thread,
    **WEAR,
}


def apply_defect(kind: str, layers: Layers, extent: float, rng: Generator) -> None:
    """Draws defect `kind` into `layers` in place. Raises ValueError for an unknown kind."""
    if kind not in DEFECTS:
        raise ValueError(f"defect is '{kind}', expected one of {', '.join(DEFECTS)}.")
    DEFECTS[kind](layers, extent, rng)
