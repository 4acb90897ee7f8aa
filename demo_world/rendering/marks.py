"""Small harmless secondary things: stickers, letters, studs."""

import cv2
import numpy as np

from demo_world.rendering.fields import box, disc, fill, make_grid, ramp
from demo_world.rendering.finish import jitter_colour
from demo_world.rendering.scene import Mark
from demo_world.rendering.surfaces import Layers
from demo_world.rendering.vocabulary import PLACES


def draw_mark(world: Layers, mark: Mark, rng: np.random.Generator) -> None:
    """Draws `mark` into composed layers in place, near the place its words name."""
    size = world.height.shape[0]
    x, y = PLACES[mark.place]
    radius = rng.uniform(0.085, 0.16)
    centre = (x + rng.uniform(-0.12, 0.12), y + rng.uniform(-0.12, 0.12))
    grid = make_grid(size, centre=centre, scale=radius, angle=rng.uniform(-0.4, 0.4))
    colour = jitter_colour(mark.colour, rng)
    cover, dome = _silhouette(grid, mark)
    weight = cover[..., None]
    world.albedo[:] = world.albedo + weight * (colour - world.albedo)
    flat = float(world.height[_pixel(centre[1], size), _pixel(centre[0], size)])
    world.height[:] = world.height * (1 - cover) + cover * (0.4 * world.height + 0.6 * flat + radius * dome)
    world.gloss[:] = world.gloss * (1 - cover) + cover * (0.7 if mark.kind == "stud" else 0.2)
    world.mirror[:] = world.mirror * (1 - cover) + cover * (0.4 if mark.kind == "stud" else 0.0)


def _pixel(position: float, size: int) -> int:
    return int(np.clip((position + 1.0) / 2.0 * size, 0, size - 1))


def _silhouette(grid, mark):
    if mark.kind == "dot":
        return fill(disc(grid, 0.8), grid.pixel), 0.05
    if mark.kind == "stud":
        distance = disc(grid, 0.85)
        return fill(distance, grid.pixel), 0.8 * np.sqrt(np.clip(1 - np.hypot(grid.x, grid.y) ** 2, 0.0, 1.0))
    if mark.kind == "square":
        return fill(box(grid, 0.8, 0.8, 0.05), grid.pixel), 0.08
    if mark.kind == "cross":
        return fill(np.minimum(box(grid, 0.95, 0.3), box(grid, 0.3, 0.95)), grid.pixel), 0.05
    if mark.kind == "triangle":
        slope = np.maximum(0.87 * np.abs(grid.x) - 0.5 * grid.y - 0.45, grid.y - 0.7)
        return fill(slope, grid.pixel), 0.05
    if mark.kind == "star":
        theta = np.arctan2(grid.x, -grid.y)
        folded = np.abs((theta + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
        radius = np.hypot(grid.x, grid.y)
        edge = radius * np.cos(folded) * 0.59 + radius * np.sin(folded) * 0.81 - 0.59
        return fill(edge, grid.pixel), 0.05
    return _letter(grid, mark.letter), 0.03


def _letter(grid, letter: str) -> np.ndarray:
    """A sans-serif capital, drawn once at 48 px and mapped into the grid."""
    glyph = np.zeros((48, 48), np.uint8)
    (width, height), _ = cv2.getTextSize(letter, cv2.FONT_HERSHEY_SIMPLEX, 1.5, 5)
    cv2.putText(
        glyph,
        letter,
        ((48 - width) // 2, (48 + height) // 2),
        cv2.FONT_HERSHEY_SIMPLEX,
        1.5,
        255,
        5,
        cv2.LINE_AA,
    )
    turned = cv2.remap(
        glyph,
        ((grid.x + 1) * 24).astype(np.float32),
        ((grid.y + 1) * 24).astype(np.float32),
        cv2.INTER_LINEAR,
        borderValue=0,
    )
    return ramp(turned.astype(np.float32), 40.0, 200.0)
