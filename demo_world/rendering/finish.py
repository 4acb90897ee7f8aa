"""Colour, pattern and material on a shape: from a silhouette with relief to layers that can be lit."""

import numpy as np

from demo_world.rendering.fields import Grid, fill, fractal, per_cell, ramp, voronoi
from demo_world.rendering.shapes import Shape
from demo_world.rendering.surfaces import Layers, layers
from demo_world.rendering.vocabulary import COLOURS

# gloss, mirror
_MATERIALS = {
    None: (0.25, 0.0),
    "metal": (0.75, 0.75),
    "plastic": (0.45, 0.0),
    "wooden": (0.12, 0.0),
    "ceramic": (0.9, 0.06),
    "rubber": (0.14, 0.0),
}
_STEEL_TINT = {
    "gray": (0.68, 0.69, 0.71),
    "yellow": (0.86, 0.70, 0.33),
    "brown": (0.52, 0.36, 0.24),
    "orange": (0.80, 0.48, 0.30),
    "black": (0.20, 0.20, 0.22),
    "beige": (0.77, 0.70, 0.58),
}


def jitter_colour(
    name: str, rng: np.random.Generator, material: str | None = None, amount: float = 1.0
) -> np.ndarray:
    """A colour [3] that a person still calls by `name`."""
    base = _STEEL_TINT.get(name, COLOURS[name]) if material == "metal" else COLOURS[name]
    value = 1.0 + amount * rng.uniform(-0.10, 0.10)
    return np.clip(np.asarray(base) * value + amount * rng.uniform(-0.025, 0.025, 3), 0.02, 0.97).astype(
        np.float32
    )


def patterned(
    grid: Grid,
    pattern: str,
    colour: np.ndarray,
    second: np.ndarray,
    structure: np.random.Generator,
    texture: np.random.Generator,
) -> np.ndarray:
    """Paint [S, S, 3]: `colour` with a pattern of `second`. Raises ValueError for an unknown pattern."""
    mask = pattern_mask(grid, pattern, structure, texture)
    paint = np.broadcast_to(colour, (*grid.x.shape, 3)).astype(np.float32)
    if mask is None:
        return paint
    return paint + mask[..., None] * (second - paint)


def pattern_mask(
    grid: Grid, pattern: str, structure: np.random.Generator, texture: np.random.Generator
) -> np.ndarray | None:
    """Where the second colour goes, [S, S] 0..1, or None for plain."""
    period = structure.uniform(0.3, 0.5)
    if pattern == "plain":
        return None
    if pattern == "striped":
        across = np.abs((grid.x / period) % 1.0 - 0.5) * period - 0.25 * period
        return fill(across, grid.pixel)
    if pattern == "dotted":
        row = np.floor(grid.y / period)
        x = (grid.x / period + 0.5 * (row % 2)) % 1.0 - 0.5
        y = (grid.y / period) % 1.0 - 0.5
        return fill((np.hypot(x, y) - 0.27) * period, grid.pixel)
    if pattern == "checkered":
        wave = np.sin(np.pi * grid.x / period) * np.sin(np.pi * grid.y / period)
        return fill(-wave * period / np.pi, grid.pixel)
    if pattern == "speckled":
        nearest, _, labels = voronoi(grid.size, 26 / max(grid.scale, 0.4), texture)
        return (per_cell(labels, texture) < 0.55) * ramp(nearest, 0.36, 0.24)
    raise ValueError(f"pattern is '{pattern}', expected one of plain, striped, dotted, checkered, speckled.")


def finish_object(
    shape: Shape,
    grid: Grid,
    paint: np.ndarray,
    second: np.ndarray,
    material: str | None,
    texture: np.random.Generator,
) -> Layers:
    """Layers of a shape in frame units: material texture under the paint, the shape's own painted parts over it."""
    size = grid.size
    gloss, mirror = _MATERIALS[material]
    if shape.gloss is not None and material is None:
        gloss = shape.gloss
    albedo, bump = paint, 0.0
    if material == "wooden":
        flow = fractal(size, 3, texture, octaves=2, stretch=(4, 1), angle=grid.angle)
        fibre = fractal(size, 50, texture, octaves=2, stretch=(10, 1), angle=grid.angle)
        tone = 0.92 + 0.12 * np.sin((grid.y * 5 + flow) * np.pi) + 0.07 * fibre
        albedo, bump = paint * tone[..., None], 0.004 * fibre
    elif material == "metal":
        scuff = fractal(size, 24, texture, octaves=3)
        # Flat metal faces reflect the room as soft bands.
        band = np.sin(2.6 * (grid.x + 0.5 * grid.y) + texture.uniform(0, 6.28))
        albedo, bump = paint * (1.0 + 0.05 * scuff + 0.2 * band)[..., None], 0.002 * scuff
    else:
        grain = fractal(size, 10, texture, octaves=4, gain=0.8)
        rough = {"rubber": 0.05, "plastic": 0.015, "ceramic": 0.012}.get(material, 0.035)
        albedo, bump = paint * (1.0 + rough * grain)[..., None], 0.05 * rough * grain
    gloss_map = np.full((size, size), gloss, np.float32)
    mirror_map = np.full((size, size), mirror, np.float32)
    for mask, colour in shape.paints:
        colour = second if colour is None else np.asarray(colour, np.float32)
        albedo = albedo + mask[..., None] * (colour - albedo)
        if float(np.max(colour)) < 0.2:
            mirror_map *= 1.0 - mask
            gloss_map *= 1.0 - 0.6 * mask
    height = shape.height * grid.scale + bump
    coverage = fill(shape.distance, grid.pixel)
    return layers(albedo, height, gloss_map, mirror_map, coverage)
