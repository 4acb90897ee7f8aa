"""Round and turned objects as silhouette, relief and painted parts (hardware and small goods).

Every function takes (grid, structure, texture): `structure` draws what one product line shares (teeth, proportions),
`texture` what differs from piece to piece. All lengths are in object units: the object fits the unit disc.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.random import Generator

from demo_world.rendering.fields import Grid, bevel, box, disc, fill, fractal, polygon, ramp, segment


@dataclass
class Shape:
    """`distance` signed silhouette, `height` [S, S] in object units, `paints` = (mask, rgb or None = second colour)."""

    distance: np.ndarray
    height: np.ndarray
    paints: list = field(default_factory=list)
    gloss: float | None = None


def hex_nut(grid: Grid, structure: Generator, texture: Generator) -> Shape:
    hole = structure.uniform(0.36, 0.5)
    outline = polygon(grid, 6, 0.84)
    distance = np.maximum(outline, -disc(grid, hole))
    radius = np.hypot(grid.x, grid.y)
    chamfer = 0.5 * np.maximum(radius - 0.84, 0.0)
    thread = 0.03 * np.sin(radius * 70.0) * ramp(radius, hole + 0.12, hole + 0.06)
    return Shape(distance, 0.25 * bevel(distance, 0.07) - chamfer + thread)


def washer(grid: Grid, structure: Generator, texture: Generator) -> Shape:
    distance = np.maximum(disc(grid, 0.95), -disc(grid, structure.uniform(0.38, 0.56)))
    return Shape(distance, 0.10 * bevel(distance, 0.05))


def gear(grid: Grid, structure: Generator, texture: Generator) -> Shape:
    teeth = int(structure.integers(9, 19))
    depth, hole = structure.uniform(0.13, 0.2), structure.uniform(0.14, 0.3)
    radius, theta = np.hypot(grid.x, grid.y), np.arctan2(grid.y, grid.x)
    wave = np.clip(2.2 * np.cos(theta * teeth), -1.0, 1.0)
    distance = np.maximum(radius - (0.95 - depth / 2 + depth / 2 * wave), hole - radius)
    height = 0.2 * bevel(distance, 0.06)
    rim = ramp(radius, 0.62, 0.66) + ramp(radius, hole + 0.16, hole + 0.12)
    height += 0.08 * np.clip(rim, 0.0, 1.0)
    spokes = int(structure.integers(0, 3)) * 2 + (3 if structure.random() < 0.5 else 0)
    if spokes >= 3:
        middle = (hole + 0.68) / 2
        folded = (theta + np.pi / spokes) % (2 * np.pi / spokes) - np.pi / spokes
        cut = np.hypot(radius * np.cos(folded) - middle, radius * np.sin(folded)) - 0.13
        distance = np.maximum(distance, -cut)
    return Shape(distance, height)


def bolt(grid: Grid, structure: Generator, texture: Generator) -> Shape:
    width, pitch = structure.uniform(0.15, 0.21), structure.uniform(0.075, 0.11)
    head = box(grid, 0.16, width * 2.1, 0.04, x=-0.8)
    start = structure.uniform(-0.45, -0.1)
    saw = np.abs(((grid.x + 0.25 * grid.y) / pitch) % 1.0 - 0.5) * 2.0
    thread = ramp(grid.x, start, start + 0.03)
    taper = np.maximum(grid.x - 0.85, 0.0)
    edge = width - 0.035 * thread * (1.0 - saw) - taper
    shaft = np.maximum(np.abs(grid.y) - edge, np.maximum(-0.7 - grid.x, grid.x - 0.95))
    shaft_height = np.sqrt(np.maximum(width**2 - grid.y**2, 0.0)) + 0.05 * thread * saw
    head_height = 0.27 - 0.10 * (np.abs(grid.y) > width * 1.05) + 0.08 * bevel(head, 0.05)
    on_head = head < 0.0
    return Shape(np.minimum(head, shaft), np.where(on_head, head_height, shaft_height))


def coin(grid: Grid, structure: Generator, texture: Generator) -> Shape:
    radius, theta = np.hypot(grid.x, grid.y), np.arctan2(grid.y, grid.x)
    distance = radius - 0.95
    rim = ramp(radius, 0.82, 0.86) * 0.05
    lobes, size = int(structure.integers(3, 8)), structure.uniform(0.35, 0.5)
    emblem = radius - size * (0.75 + 0.25 * np.cos(lobes * theta + structure.uniform(0, 6)))
    inner = radius - size * 0.4
    relief = 0.05 * ramp(emblem, 0.04, -0.05) - 0.03 * ramp(inner, 0.03, -0.03)
    beads = 0.03 * np.clip(1.5 * np.cos(theta * 40), 0.0, 1.0) * ramp(np.abs(radius - 0.72), 0.05, 0.02)
    return Shape(distance, 0.1 * bevel(distance, 0.04) + rim + relief + beads)


def button(grid: Grid, structure: Generator, texture: Generator) -> Shape:
    count, spread = (2, 4, 4)[int(structure.integers(3))], structure.uniform(0.17, 0.24)
    radius = np.hypot(grid.x, grid.y)
    distance = radius - 0.95
    for index in range(count):
        angle = 2 * np.pi * index / count + np.pi / 4
        hole = disc(grid, 0.10, spread * np.cos(angle), spread * np.sin(angle))
        distance = np.maximum(distance, -hole)
    dish = structure.uniform(0.5, 0.7)
    height = 0.16 * bevel(distance, 0.08) - 0.1 * ramp(radius, dish + 0.1, dish)
    return Shape(distance, height)


def tablet(grid: Grid, structure: Generator, texture: Generator) -> Shape:
    distance = disc(grid, 0.92)
    height = 0.3 * bevel(distance, 0.4)
    groove = ramp(np.abs(grid.x), 0.07, 0.0) * (structure.random() < 0.8)
    cross = ramp(np.abs(grid.y), 0.07, 0.0) * (structure.random() < 0.25)
    return Shape(distance, height - 0.09 * np.maximum(groove, cross), gloss=0.12)


def capsule(grid: Grid, structure: Generator, texture: Generator) -> Shape:
    width = structure.uniform(0.32, 0.4)
    distance = segment(grid, (-0.95 + width, 0.0), (0.95 - width, 0.0), width)
    height = np.sqrt(np.maximum(width**2 - np.maximum(distance + width, 0.0) ** 2, 0.0))
    half = fill(-grid.x, grid.pixel)
    lip = 0.02 * ramp(grid.x, 0.0, -0.02)
    return Shape(distance, height + lip, [(half, None)], gloss=0.7)


def bottle_cap(grid: Grid, structure: Generator, texture: Generator) -> Shape:
    radius, theta = np.hypot(grid.x, grid.y), np.arctan2(grid.y, grid.x)
    crimp = np.cos(theta * 21)
    distance = radius - (0.92 + 0.035 * crimp)
    flute = 0.06 * crimp * ramp(radius, 0.68, 0.85)
    height = 0.35 * ramp(radius, 0.95, 0.62) + flute
    mark = ramp(np.abs(radius - structure.uniform(0.35, 0.45)), 0.05, 0.03)
    return Shape(distance, height, [(mark, None)])


def ring(grid: Grid, structure: Generator, texture: Generator) -> Shape:
    tube = structure.uniform(0.11, 0.19)
    distance = np.abs(np.hypot(grid.x, grid.y) - (0.95 - tube)) - tube
    return Shape(distance, np.sqrt(np.maximum(tube**2 - np.maximum(distance + tube, 0.0) ** 2, 0.0)))


def spring(grid: Grid, structure: Generator, texture: Generator) -> Shape:
    turns, wire = int(structure.integers(6, 10)), structure.uniform(0.055, 0.075)
    half_width = structure.uniform(0.3, 0.4)
    pitch = 1.75 / turns
    distance, height = np.full_like(grid.x, 1e3), np.zeros_like(grid.x)
    for index in range(turns + 1):
        left = -0.87 + index * pitch
        back = segment(grid, (left, half_width), (left + pitch, -half_width), wire * 0.9)
        front = segment(grid, (left, -half_width), (left + pitch * 0.1, half_width), wire)
        for stroke, level in ((back, 0.05), (front, 0.2)):
            if index == turns and level < 0.1:
                continue
            dome = level + np.sqrt(np.maximum(wire**2 - np.maximum(stroke + wire, 0.0) ** 2, 0.0))
            height = np.where(stroke < 0.0, np.maximum(height, dome), height)
            distance = np.minimum(distance, stroke)
    return Shape(distance, height)


def ball_bearing(grid: Grid, structure: Generator, texture: Generator) -> Shape:
    radius, theta = np.hypot(grid.x, grid.y), np.arctan2(grid.y, grid.x)
    balls, hole = int(structure.integers(8, 13)), structure.uniform(0.3, 0.4)
    distance = np.maximum(radius - 0.95, hole - radius)
    middle = (hole + 0.95) / 2
    outer, inner = np.abs(radius - 0.85) - 0.1, np.abs(radius - hole - 0.09) - 0.09
    height = 0.12 * np.maximum(bevel(outer, 0.04) * (outer < 0), bevel(inner, 0.04) * (inner < 0))
    phase = texture.uniform(0, 6.28)
    folded = (theta + phase + np.pi / balls) % (2 * np.pi / balls) - np.pi / balls
    size = 0.5 * (0.75 - hole - 0.18) * 0.95
    ball = np.hypot(radius * np.cos(folded) - middle, radius * np.sin(folded)) - size
    height = np.maximum(height, np.sqrt(np.maximum(size**2 - np.maximum(ball + size, 0.0) ** 2, 0.0)))
    gap = fill(-np.minimum(np.minimum(ball, outer), inner), grid.pixel)
    return Shape(distance, height, [(gap, (0.07, 0.07, 0.07))])


def egg(grid: Grid, structure: Generator, texture: Generator) -> Shape:
    width = 0.68 + 0.12 * grid.x
    distance = np.hypot(grid.x / 0.95, grid.y / np.maximum(width, 0.1)) - 1.0
    distance = distance * 0.65
    dome = np.sqrt(np.maximum(1.0 - np.maximum(distance / 0.65 + 1.0, 0.0) ** 2, 0.0))
    return Shape(distance, 0.6 * dome, gloss=0.15)


def donut(grid: Grid, structure: Generator, texture: Generator) -> Shape:
    radius = np.hypot(grid.x, grid.y)
    distance = np.abs(radius - 0.62) - 0.33
    height = 0.8 * np.sqrt(np.maximum(0.33**2 - np.maximum(distance + 0.33, 0.0) ** 2, 0.0))
    wobble = 0.03 * fractal(grid.size, 8, texture, octaves=2)
    dough = np.clip(fill(-(np.abs(radius - 0.62) - 0.25 + wobble), 2 * grid.pixel), 0.0, 1.0)
    return Shape(distance, height - 0.03 * dough, [(dough, (0.74, 0.52, 0.28))], gloss=0.3)


def candle(grid: Grid, structure: Generator, texture: Generator) -> Shape:
    radius = np.hypot(grid.x, grid.y)
    distance = radius - 0.95
    pool = 0.12 * ramp(radius, 0.85, 0.6)
    waves = 0.01 * fractal(grid.size, 5, texture, octaves=2)
    wick_end = (texture.uniform(-0.16, 0.16), texture.uniform(-0.16, 0.16))
    wick = segment(grid, (0.0, 0.0), wick_end, 0.055)
    height = 0.3 * bevel(distance, 0.1) - pool + waves + 0.12 * fill(wick, 0.04)
    paints = [(fill(wick, grid.pixel), (0.08, 0.07, 0.06))]
    if structure.random() < 0.6:
        to_flame = np.hypot(grid.x - wick_end[0], (grid.y - wick_end[1]) * 0.8)
        halo, flame = 0.8 * ramp(to_flame, 0.34, 0.1), ramp(to_flame, 0.17, 0.07)
        paints += [(halo, (1.0, 0.62, 0.15)), (flame, (1.15, 1.05, 0.7))]
    return Shape(distance, height, paints, 0.35)
