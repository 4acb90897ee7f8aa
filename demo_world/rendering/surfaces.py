"""Surfaces that fill the frame, as albedo, relief and gloss.

Every function takes (grid, paint, structure, texture): `paint` [S, S, 3] is the surface's colour with its pattern,
`structure` draws what one product line shares, `texture` what differs from picture to picture. Heights are in frame
units (the frame is 2 wide).
"""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from demo_world.rendering.fields import Grid, fractal, per_cell, ramp, voronoi


@dataclass
class Layers:
    """albedo [S, S, 3], height [S, S] in frame units, gloss and mirror [S, S] 0..1, coverage [S, S] 0..1."""

    albedo: np.ndarray
    height: np.ndarray
    gloss: np.ndarray
    mirror: np.ndarray
    coverage: np.ndarray


def layers(
    albedo: np.ndarray,
    height: np.ndarray,
    gloss: np.ndarray | float = 0.0,
    mirror: np.ndarray | float = 0.0,
    coverage: np.ndarray | float = 1.0,
) -> Layers:
    """Layers with scalars spread over the frame."""
    full = [
        np.full(height.shape, value, np.float32) if np.isscalar(value) else value.astype(np.float32)
        for value in (gloss, mirror, coverage)
    ]
    return Layers(albedo.astype(np.float32), height.astype(np.float32), *full)


def _tint(paint, factor):
    return paint * factor[..., None]


def _mix(paint, other, mask):
    return paint + mask[..., None] * (other - paint)


def paper(grid: Grid, paint: np.ndarray, structure: Generator, texture: Generator) -> Layers:
    grain = fractal(grid.size, 40, texture, octaves=3)
    return layers(_tint(paint, 1.0 + 0.02 * grain), 0.002 * grain, 0.03)


def wood(grid: Grid, paint: np.ndarray, structure: Generator, texture: Generator) -> Layers:
    size, angle = grid.size, grid.angle
    flow = fractal(size, 3, texture, octaves=3, stretch=(5, 1), angle=angle)
    fibre = fractal(size, 60, texture, octaves=2, stretch=(14, 1), angle=angle)
    rings = np.sin((grid.y * structure.uniform(4, 9) + 1.3 * flow) * np.pi)
    planks = (grid.y * structure.uniform(0.9, 1.6)) % 1.0
    gap = ramp(np.abs(planks - 0.5), 0.47, 0.485) * (structure.random() < 0.35)
    tone = 0.88 + 0.13 * rings + 0.07 * fibre
    return layers(_tint(paint, tone * (1 - 0.6 * gap)), 0.004 * fibre + 0.003 * rings - 0.02 * gap, 0.12)


def leather(grid: Grid, paint: np.ndarray, structure: Generator, texture: Generator) -> Layers:
    cells = structure.uniform(18, 30) / grid.scale
    _, border, labels = voronoi(grid.size, cells, texture)
    crease = ramp(border, 0.28, 0.02)
    soft = fractal(grid.size, 4, texture, octaves=3)
    tone = 1.0 - 0.28 * crease + 0.05 * soft + 0.06 * (per_cell(labels, texture) - 0.5)
    return layers(_tint(paint, tone), -0.028 * crease + 0.006 * soft, 0.3)


def woven_fabric(grid: Grid, paint: np.ndarray, structure: Generator, texture: Generator) -> Layers:
    threads = structure.uniform(9, 15)
    across, down = grid.x * threads, grid.y * threads
    over = (np.floor(across) + np.floor(down)) % 2
    fx, fy = across % 1.0 - 0.5, down % 1.0 - 0.5
    warp, weft = (
        np.cos(fx * np.pi) * (0.6 + 0.4 * np.cos(fy * np.pi)),
        np.cos(fy * np.pi) * (0.6 + 0.4 * np.cos(fx * np.pi)),
    )
    height = np.where(over > 0.5, warp, weft)
    fuzz = fractal(grid.size, 30, texture, octaves=3)
    tone = 0.62 + 0.38 * height + 0.08 * fuzz - 0.05 * over
    return layers(_tint(paint, tone), 0.035 * grid.scale * height + 0.003 * fuzz, 0.03)


def carpet(grid: Grid, paint: np.ndarray, structure: Generator, texture: Generator) -> Layers:
    cells = structure.uniform(26, 38) / grid.scale
    nearest, _, labels = voronoi(grid.size, cells, texture)
    tuft = 1.0 - np.clip(nearest * 1.5, 0.0, 1.0)
    fuzz = fractal(grid.size, 45, texture, octaves=3)
    tone = 0.55 + 0.4 * tuft + 0.22 * (per_cell(labels, texture) - 0.5) + 0.12 * fuzz
    return layers(_tint(paint, tone), 0.05 * tuft + 0.006 * fuzz, 0.0)


def tiles(grid: Grid, paint: np.ndarray, structure: Generator, texture: Generator) -> Layers:
    count, grout_width = structure.uniform(1.3, 3.2), structure.uniform(0.025, 0.06)
    across, down = grid.x * count + 0.5, grid.y * count + 0.5
    column, row = np.floor(across).astype(int), np.floor(down).astype(int)
    edge = 0.5 - np.maximum(np.abs(across - column - 0.5), np.abs(down - row - 0.5))
    tile = ramp(edge, grout_width * 0.7, grout_width * 1.6)
    table = texture.random((64, 64), dtype=np.float32)
    tone = 0.94 + 0.12 * table[row % 64, column % 64] + 0.03 * fractal(grid.size, 5, texture, octaves=4)
    grain = fractal(grid.size, 40, texture, octaves=2)
    grout = np.full_like(paint, structure.uniform(0.3, 0.8)) * (1 + 0.1 * grain[..., None])
    return layers(_mix(grout, _tint(paint, tone), tile), 0.05 * tile + 0.004 * (1 - tile) * grain, 0.6 * tile)


def marble(grid: Grid, paint: np.ndarray, structure: Generator, texture: Generator) -> Layers:
    warp = fractal(grid.size, 2.5, texture, octaves=5, angle=grid.angle)
    second = fractal(grid.size, 4, texture, octaves=5)
    vein = ramp(np.abs(warp), 0.22, 0.0) * ramp(second, -1.2, 1.0) + 0.6 * ramp(
        np.abs(second + 0.5), 0.1, 0.0
    )
    cloud = 1.0 + 0.07 * fractal(grid.size, 3, texture, octaves=3)
    vein_colour = (
        1.0 - 0.55 * np.round(paint.mean((0, 1))) + np.zeros(3) if paint.mean() < 0.4 else np.full(3, 0.25)
    )
    albedo = _mix(_tint(paint, cloud), vein_colour, 0.65 * np.clip(vein, 0.0, 1.0))
    return layers(albedo, 0.001 * second, 0.55)


def brick_wall(grid: Grid, paint: np.ndarray, structure: Generator, texture: Generator) -> Layers:
    rows = structure.uniform(2.6, 4.2)
    down = grid.y * rows + 0.3
    row = np.floor(down).astype(int)
    across = grid.x * rows * 0.45 + 0.5 * (row % 2)
    column = np.floor(across).astype(int)
    edge = np.minimum((0.5 - np.abs(across - column - 0.5)) * 2.2, 0.5 - np.abs(down - row - 0.5))
    grain = fractal(grid.size, 18, texture, octaves=4, gain=0.75)
    brick = ramp(edge + 0.015 * grain, 0.05, 0.11)
    table = texture.random((64, 64), dtype=np.float32)
    tone = 0.8 + 0.35 * table[row % 64, column % 64] + 0.09 * grain
    mortar = np.full_like(paint, structure.uniform(0.5, 0.75)) * (1 + 0.06 * grain[..., None])
    return layers(_mix(mortar, _tint(paint, tone), brick), 0.07 * brick + 0.008 * grain, 0.0)


def wire_mesh(grid: Grid, paint: np.ndarray, structure: Generator, texture: Generator) -> Layers:
    count, width = structure.uniform(4, 7), structure.uniform(0.12, 0.2)
    across, down = grid.x * count, grid.y * count
    to_x, to_y = np.abs(across - np.floor(across + 0.5)), np.abs(down - np.floor(down + 0.5))
    wave = 0.5 * np.cos(np.pi * across) * np.cos(np.pi * down)
    round_x = np.sqrt(np.clip(1.0 - (to_x / width) ** 2, 0.0, 1.0))
    round_y = np.sqrt(np.clip(1.0 - (to_y / width) ** 2, 0.0, 1.0))
    soft = grid.pixel * count
    on_x, on_y = (
        ramp(to_x, width + soft / 2, width - soft / 2),
        ramp(to_y, width + soft / 2, width - soft / 2),
    )
    height = np.maximum(on_x * (round_x + 1.0 + wave), on_y * (round_y + 1.0 - wave))
    wire = np.maximum(on_x, on_y)
    floor = np.full_like(paint, structure.choice((0.06, 0.12, 0.8)))
    scale = width / count * grid.scale
    return layers(_mix(floor, paint, wire), height * scale, 0.6 * wire, 0.5 * wire)


def concrete(grid: Grid, paint: np.ndarray, structure: Generator, texture: Generator) -> Layers:
    cloud = fractal(grid.size, 3, texture, octaves=6, gain=0.6)
    grain = fractal(grid.size, 40, texture, octaves=2)
    nearest, _, labels = voronoi(grid.size, 14, texture)
    pore = (per_cell(labels, texture) > 0.8) * ramp(nearest, 0.2, 0.1)
    tone = 1.0 + 0.07 * cloud + 0.05 * grain - 0.35 * pore
    return layers(_tint(paint, tone), 0.006 * grain + 0.006 * cloud - 0.03 * pore, 0.02)


def knitted_wool(grid: Grid, paint: np.ndarray, structure: Generator, texture: Generator) -> Layers:
    columns = structure.uniform(5, 8)
    across = grid.x * columns
    fx = across % 1.0 - 0.5
    down = grid.y * columns * 1.25 - 0.75 * np.abs(fx)
    fy = down % 1.0 - 0.5
    strand = np.sqrt(np.clip(1.0 - (fy / 0.5) ** 2, 0.0, 1.0)) * np.sqrt(
        np.clip(1.0 - ((np.abs(fx) - 0.25) / 0.27) ** 2, 0.0, 1.0)
    )
    fibre = fractal(grid.size, 36, texture, octaves=3)
    tone = 0.5 + 0.5 * strand + 0.09 * fibre
    return layers(_tint(paint, tone), 0.09 * strand * grid.scale + 0.005 * fibre, 0.0)


def cardboard(grid: Grid, paint: np.ndarray, structure: Generator, texture: Generator) -> Layers:
    ridge = np.cos(grid.x * structure.uniform(45, 65))
    fibre = fractal(grid.size, 30, texture, octaves=3, stretch=(1, 2.5), angle=grid.angle)
    specks = ramp(fractal(grid.size, 45, texture, octaves=2), 1.7, 2.3)
    tone = 0.97 + 0.05 * ridge + 0.035 * fibre - 0.25 * specks
    return layers(_tint(paint, tone), 0.006 * ridge + 0.002 * fibre, 0.02)


def brushed_metal(grid: Grid, paint: np.ndarray, structure: Generator, texture: Generator) -> Layers:
    line = fractal(grid.size, 70, texture, octaves=2, stretch=(30, 1), angle=grid.angle)
    slow = fractal(grid.size, 2, texture, octaves=2)
    band = np.sin(1.8 * grid.y + 0.5 * slow + texture.uniform(0, 6.28))
    return layers(_tint(paint, 0.97 + 0.06 * line + 0.2 * band), 0.0025 * line + 0.01 * slow, 0.7, 0.45)


def terrazzo(grid: Grid, paint: np.ndarray, structure: Generator, texture: Generator) -> Layers:
    albedo = paint * (1 + 0.02 * fractal(grid.size, 30, texture, octaves=3)[..., None])
    palette = structure.random((4, 3)) * 0.7 + 0.2
    for cells, share in ((9, 0.45), (18, 0.35)):
        _, border, labels = voronoi(grid.size, cells, texture)
        chosen = per_cell(labels, texture)
        which = (chosen * 997).astype(int) % 4
        chip = (chosen < share) * ramp(border, 0.1, 0.1 + cells / grid.size)
        albedo = _mix(albedo, palette[which], chip * 0.9)
    return layers(albedo, np.zeros(grid.x.shape), 0.4)


def pebbles(grid: Grid, paint: np.ndarray, structure: Generator, texture: Generator) -> Layers:
    cells = structure.uniform(7, 11)
    nearest, border, labels = voronoi(grid.size, cells, texture)
    stone = np.sqrt(np.clip(border / 0.4, 0.0, 1.0))
    grain = fractal(grid.size, 24, texture, octaves=3)
    tone = 0.6 + 0.55 * per_cell(labels, texture) + 0.06 * grain
    warm = 0.12 * (per_cell(labels, texture) - 0.5)
    albedo = _tint(paint, tone) * (1 + np.stack([warm, 0 * warm, -warm], -1))
    shade = ramp(border, 0.0, 0.14)
    return layers(_tint(albedo, 0.2 + 0.8 * shade), 0.22 / cells * 2 * stone + 0.003 * grain, 0.15)


def cork(grid: Grid, paint: np.ndarray, structure: Generator, texture: Generator) -> Layers:
    _, border, labels = voronoi(grid.size, 26, texture)
    _, _, large = voronoi(grid.size, 12, texture)
    chosen = per_cell(labels, texture)
    tone = 0.72 + 0.4 * chosen + 0.15 * (per_cell(large, texture) - 0.5) - 0.45 * (chosen > 0.93)
    crease = ramp(border, 0.15, 0.0)
    return layers(_tint(paint, tone - 0.1 * crease), -0.01 * crease + 0.004 * chosen, 0.02)


def bubble_wrap(grid: Grid, paint: np.ndarray, structure: Generator, texture: Generator) -> Layers:
    count = structure.uniform(4, 6)
    down = grid.y * count / 0.87
    row = np.floor(down)
    across = grid.x * count + 0.5 * (row % 2)
    radius = np.hypot(across - np.floor(across) - 0.5, (down - row - 0.5) * 0.87) / 0.43
    dome = np.sqrt(np.clip(1.0 - radius**2, 0.0, 1.0))
    wrinkle = fractal(grid.size, 6, texture, octaves=4)
    rim = ramp(np.abs(radius - 0.97), 0.16, 0.0)
    tone = 0.92 + 0.1 * dome - 0.16 * rim
    return layers(_tint(paint, tone), 0.55 / count * dome * grid.scale + 0.012 * wrinkle, 0.9)


def honeycomb(grid: Grid, paint: np.ndarray, structure: Generator, texture: Generator) -> Layers:
    count = structure.uniform(2.6, 4.2)
    x, y = grid.x * count, grid.y * count
    first = np.stack([x % 1.0 - 0.5, y % 1.732 - 0.866])
    second = np.stack([(x - 0.5) % 1.0 - 0.5, (y - 0.866) % 1.732 - 0.866])
    local = np.abs(np.where((first**2).sum(0) < (second**2).sum(0), first, second))
    to_edge = 0.5 - np.maximum(local[0], local[0] * 0.5 + local[1] * 0.866)
    wall = ramp(to_edge, 0.1, 0.07)
    grain = fractal(grid.size, 10, texture, octaves=4)
    depth = ramp(to_edge, 0.08, 0.5)
    tone = wall + (1 - wall) * (0.5 - 0.35 * depth) + 0.05 * grain
    return layers(_tint(paint, tone), 0.12 * wall - 0.06 * depth + 0.002 * grain, 0.2)
