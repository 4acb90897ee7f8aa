"""Box-like and free-form objects: the second half of the objects, with the same signature as shapes.py."""

import numpy as np
from numpy.random import Generator

from demo_world.rendering.fields import Grid, bevel, box, disc, fill, fractal, ramp, segment
from demo_world.rendering.shapes import Shape

_STEEL, _GOLD, _DARK = (0.72, 0.73, 0.75), (0.83, 0.68, 0.25), (0.09, 0.09, 0.10)


def cookie(grid: Grid, structure: Generator, texture: Generator) -> Shape:
    bumps = fractal(grid.size, 14, texture, octaves=4)
    distance = disc(grid, 0.92) + 0.025 * fractal(grid.size, 6, texture, octaves=2)
    height = 0.25 * bevel(distance, 0.35) + 0.015 * bumps
    chips = np.zeros_like(height)
    for _ in range(int(structure.integers(9, 15))):
        angle, radius = texture.uniform(0, 6.28), 0.75 * np.sqrt(texture.random())
        chip = disc(grid, texture.uniform(0.07, 0.13), radius * np.cos(angle), radius * np.sin(angle))
        chips = np.maximum(chips, fill(chip + 0.02 * bumps, 1.5 * grid.pixel))
    return Shape(distance, height + 0.05 * chips, [(chips, (0.16, 0.09, 0.05))], gloss=0.05)


def key(grid: Grid, structure: Generator, texture: Generator) -> Shape:
    bow = np.maximum(disc(grid, 0.36, -0.58), -disc(grid, 0.15, -0.66))
    if structure.random() < 0.4:
        bow = np.maximum(box(grid, 0.34, 0.36, 0.12, x=-0.6), -disc(grid, 0.14, -0.7))
    blade = box(grid, 0.62, 0.11, 0.03, x=0.33)
    for index in range(5):
        depth = structure.uniform(0.03, 0.13)
        notch = np.abs(grid.x - 0.15 - 0.17 * index) * 0.9 + (0.13 - depth) - grid.y
        blade = np.maximum(blade, -notch)
    groove = 0.04 * ramp(np.abs(grid.y + 0.03), 0.03, 0.015) * ramp(grid.x, -0.2, -0.15)
    distance = np.minimum(bow, blade)
    return Shape(distance, 0.12 * bevel(distance, 0.05) - groove)


def circuit_board(grid: Grid, structure: Generator, texture: Generator) -> Shape:
    distance = np.maximum(box(grid, 0.88, 0.66, 0.04), -1e3)
    height = 0.06 * bevel(distance, 0.02)
    traces, pads, chips = (np.zeros_like(height) for _ in range(3))
    for _ in range(12):
        x, y = structure.uniform(-0.8, 0.8), structure.uniform(-0.6, 0.6)
        bend_x, bend_y = x + structure.uniform(-0.6, 0.6), y + structure.uniform(-0.4, 0.4)
        for start, end in (((x, y), (bend_x, y)), ((bend_x, y), (bend_x, bend_y))):
            start, end = (np.clip(point, (-0.8, -0.58), (0.8, 0.58)) for point in (start, end))
            traces = np.maximum(traces, fill(segment(grid, start, end, 0.012), grid.pixel))
        pads = np.maximum(pads, fill(disc(grid, 0.035, np.clip(x, -0.8, 0.8), y), grid.pixel))
    for corner_x in (-0.78, 0.78):
        for corner_y in (-0.56, 0.56):
            pads = np.maximum(pads, fill(disc(grid, 0.07, corner_x, corner_y), grid.pixel))
    legs = np.zeros_like(height)
    for _ in range(int(structure.integers(3, 6))):
        x, y = structure.uniform(-0.55, 0.55), structure.uniform(-0.38, 0.38)
        half_width, half_height = structure.uniform(0.1, 0.24), structure.uniform(0.08, 0.18)
        chip = box(grid, half_width, half_height, 0.01, x, y)
        comb = (np.abs(grid.x - x) < half_width) * (np.cos((grid.x - x) * 70) > 0)
        legs = np.maximum(legs, fill(box(grid, half_width, half_height + 0.05, 0.0, x, y), grid.pixel) * comb)
        chips = np.maximum(chips, fill(chip, grid.pixel))
    height = height + 0.012 * traces + 0.015 * pads + 0.03 * legs + 0.09 * chips
    paints = [(traces * 0.4, (0.75, 0.80, 0.55)), (pads, _GOLD), (legs, _STEEL), (chips, _DARK)]
    return Shape(distance, height, paints, gloss=0.25)


def die(grid: Grid, structure: Generator, texture: Generator) -> Shape:
    distance = box(grid, 0.8, 0.8, 0.16)
    pips = np.zeros_like(grid.x)
    number = int(structure.integers(1, 7))
    places = {1: "c", 2: "ai", 3: "aci", 4: "agbi", 5: "agbic", 6: "agbidf"}[number]
    spots = {"c": (0, 0), "a": (-1, -1), "i": (1, 1), "g": (-1, 1), "b": (1, -1), "d": (-1, 0), "f": (1, 0)}
    for place in places:
        x, y = spots[place]
        pips = np.maximum(pips, fill(disc(grid, 0.13, 0.45 * x, 0.45 * y), grid.pixel))
    return Shape(distance, 0.35 * bevel(distance, 0.16) - 0.06 * pips, [(pips, None)], gloss=0.5)


def connector(grid: Grid, structure: Generator, texture: Generator) -> Shape:
    rows, columns = int(structure.integers(1, 3)), int(structure.integers(4, 7))
    body = box(grid, 0.88, 0.28 + 0.16 * rows, 0.06)
    inner = box(grid, 0.76, 0.16 + 0.16 * rows, 0.03)
    tab = box(grid, 0.22, 0.12, 0.02, y=-(0.3 + 0.16 * rows))
    distance = np.minimum(body, tab)
    pins = np.zeros_like(grid.x)
    for row in range(rows):
        for column in range(columns):
            x = 1.3 * ((column + 0.5) / columns - 0.5)
            y = 0.32 * (row - (rows - 1) / 2)
            pins = np.maximum(pins, fill(box(grid, 0.055, 0.075, 0.0, x, y), grid.pixel))
    well = fill(inner, grid.pixel)
    height = 0.3 * bevel(distance, 0.04) - 0.14 * ramp(inner, 0.02, -0.02) + 0.12 * pins
    return Shape(distance, height, [(well * 0.45, _DARK), (pins, _GOLD)], gloss=0.35)


def leaf(grid: Grid, structure: Generator, texture: Generator) -> Shape:
    along = np.clip((grid.x + 0.85) / 1.75, 0.0, 1.0)
    bend = structure.uniform(-0.12, 0.12)
    across = grid.y - bend * np.sin(np.pi * along)
    half_width = structure.uniform(0.42, 0.58) * np.maximum(np.sin(np.pi * along**0.75), 0.0) ** 0.8
    saw = 0.03 * np.abs(((grid.x * 9) % 1.0) - 0.5)
    blade = np.maximum(np.abs(across) - half_width + saw, np.abs(grid.x - 0.025) - 0.88) * 0.8
    stem = segment(grid, (-0.98, 0.0), (-0.7, 0.0), 0.03)
    distance = np.minimum(blade, stem)
    veins = ramp(np.abs(((grid.x - 0.75 * np.abs(across)) * structure.uniform(4, 6)) % 1.0 - 0.5), 0.09, 0.03)
    middle = ramp(np.abs(across), 0.035, 0.01)
    lines = np.maximum(0.6 * veins, middle)
    height = 0.08 * bevel(distance, 0.1) - 0.25 * np.abs(across) * 0.4 - 0.03 * lines
    height += 0.015 * fractal(grid.size, 6, texture, octaves=3)
    return Shape(distance, height, [(0.35 * lines, (0.85, 0.85, 0.55))], gloss=0.2)


def spoon(grid: Grid, structure: Generator, texture: Generator) -> Shape:
    bowl = np.hypot((grid.x + 0.6) / 0.36, grid.y / structure.uniform(0.23, 0.28)) - 1.0
    handle_width = 0.05 + 0.05 * np.clip(grid.x, 0.0, 1.0)
    handle = np.maximum(np.abs(grid.y) - handle_width, np.maximum(-0.4 - grid.x, grid.x - 0.95))
    distance = np.minimum(bowl * 0.26, handle)
    hollow = 0.16 * np.sqrt(np.clip(-bowl, 0.0, 1.0))
    rim = 0.16 * ramp(bowl, 0.0, -0.2)
    height = np.where(bowl < 0.0, rim - hollow, 0.16 * bevel(handle, 0.05))
    return Shape(distance, height)


def battery(grid: Grid, structure: Generator, texture: Generator) -> Shape:
    width = structure.uniform(0.27, 0.34)
    body = box(grid, 0.86, width, 0.04, x=-0.06)
    nub = box(grid, 0.07, 0.11, 0.02, x=0.86)
    distance = np.minimum(body, nub)
    height = np.sqrt(np.maximum(width**2 - grid.y**2, 0.0)) - 0.12 * (grid.x > 0.79)
    band = fill(box(grid, 0.19, 1.0, x=0.5), grid.pixel)
    caps = np.maximum(fill(0.74 - grid.x, grid.pixel), fill(grid.x + 0.86, grid.pixel))
    sign = np.minimum(box(grid, 0.09, 0.025, x=0.5), box(grid, 0.025, 0.09, x=0.5))
    minus = box(grid, 0.025, 0.09, x=-0.65)
    paints = [
        (band, (0.78, 0.62, 0.28)),
        (caps, _STEEL),
        (fill(sign, grid.pixel), _DARK),
        (fill(minus, grid.pixel), (0.9, 0.9, 0.9)),
    ]
    return Shape(distance, height, paints, gloss=0.55)


def bracket(grid: Grid, structure: Generator, texture: Generator) -> Shape:
    arm = structure.uniform(0.5, 0.62)
    upright = box(grid, arm / 2, 0.82, 0.05, x=-0.82 + arm / 2)
    foot = box(grid, 0.82, arm / 2, 0.05, y=0.82 - arm / 2)
    distance = np.minimum(upright, foot)
    middle = -0.82 + arm / 2
    for x, y in ((middle, -0.55), (middle, 0.0), (0.0, -middle), (0.55, -middle), (middle, -middle)):
        distance = np.maximum(distance, -disc(grid, 0.11, x, y))
    return Shape(distance, 0.1 * bevel(distance, 0.05))


def cracker(grid: Grid, structure: Generator, texture: Generator) -> Shape:
    scallop = 0.025 * np.abs(np.sin(grid.x * 14.0)) + 0.025 * np.abs(np.sin(grid.y * 14.0))
    distance = box(grid, 0.84, 0.84, 0.08) - scallop
    bumps = fractal(grid.size, 9, texture, octaves=4)
    holes = np.zeros_like(bumps)
    count = int(structure.integers(3, 5))
    for x in (np.arange(count) + 0.5) / count * 1.5 - 0.75:
        for y in (np.arange(count) + 0.5) / count * 1.5 - 0.75:
            holes = np.maximum(holes, fill(disc(grid, 0.05, x, y), 2 * grid.pixel))
    toast = np.clip(0.3 * bumps, 0.0, 0.4)
    paints = [(toast, (0.55, 0.32, 0.12)), (0.7 * holes, (0.3, 0.18, 0.08))]
    return Shape(distance, 0.15 * bevel(distance, 0.12) + 0.015 * bumps - 0.05 * holes, paints, gloss=0.05)


def pencil(grid: Grid, structure: Generator, texture: Generator) -> Shape:
    width = structure.uniform(0.11, 0.15)
    tip = np.maximum(np.abs(grid.y) - np.clip((0.97 - grid.x) * 0.4, 0.0, width), np.abs(grid.x) - 0.97)
    facet = np.abs(grid.y) < width * 0.45
    height = np.where(facet, 0.2, 0.2 - 0.6 * (np.abs(grid.y) - width * 0.45))
    scallop = 0.64 - 0.03 * np.cos(grid.y / width * 6.0)
    bare, lead = fill(scallop - grid.x, grid.pixel), fill(0.88 - grid.x, grid.pixel)
    ferrule = fill(box(grid, 0.09, 1.0, x=-0.74), grid.pixel)
    rubber = fill(grid.x + 0.83, grid.pixel)
    paints = [
        (bare, (0.86, 0.68, 0.45)),
        (lead, None if structure.random() < 0.3 else _DARK),
        (ferrule, _STEEL),
        (rubber, (0.88, 0.50, 0.52)),
    ]
    return Shape(tip, height, paints, gloss=0.4)
