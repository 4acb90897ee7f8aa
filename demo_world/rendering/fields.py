"""Scalar fields over the frame: coordinates, noise, Voronoi cells and signed distances.

The frame spans [-1, 1] in x (right) and y (down). All fields are float32 [S, S] for a frame of S pixels.
"""

from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True)
class Grid:
    """Coordinates of a posed thing: `x`, `y` [S, S] in the thing's own units, `pixel` = its units per pixel."""

    x: np.ndarray
    y: np.ndarray
    pixel: float
    scale: float
    angle: float

    @property
    def size(self) -> int:
        return self.x.shape[0]


def make_grid(
    size: int,
    *,
    centre: tuple[float, float] = (0.0, 0.0),
    scale: float = 1.0,
    angle: float = 0.0,
    shear: float = 0.0,
) -> Grid:
    """Coordinates in which the unit disc is a disc of radius `scale` (frame units) around `centre`, turned by `angle`.

    `shear` tilts the plane away from the camera: a slight perspective along y.
    """
    axis = (np.arange(size, dtype=np.float32) + 0.5) * (2.0 / size) - 1.0
    x, y = np.meshgrid(axis - np.float32(centre[0]), axis - np.float32(centre[1]))
    depth = 1.0 + shear * y
    x, y = x * depth, y * depth
    cosine, sine = np.float32(np.cos(angle) / scale), np.float32(np.sin(angle) / scale)
    return Grid(cosine * x + sine * y, cosine * y - sine * x, 2.0 / size / scale, scale, angle)


def fractal(
    size: int,
    frequency: float,
    rng: np.random.Generator,
    *,
    octaves: int = 4,
    gain: float = 0.55,
    stretch: tuple[float, float] = (1.0, 1.0),
    angle: float = 0.0,
) -> np.ndarray:
    """Multi-octave noise of about unit standard deviation; `frequency` = cells over the frame in the first octave.

    `stretch` lengthens the cells along x and y (wood fibres); `angle` turns them.
    """
    canvas = size if angle == 0.0 else int(size * 1.45)
    total = np.zeros((canvas, canvas), np.float32)
    amplitude, power = 1.0, 0.0
    for octave in range(octaves):
        cells_x = min(max(int(frequency * 2**octave / stretch[0]), 1) + 2, canvas)
        cells_y = min(max(int(frequency * 2**octave / stretch[1]), 1) + 2, canvas)
        cells = rng.standard_normal((cells_y, cells_x), dtype=np.float32)
        total += amplitude * cv2.resize(cells, (canvas, canvas), interpolation=cv2.INTER_CUBIC)
        power += amplitude**2
        amplitude *= gain
        if cells_x == canvas and cells_y == canvas:
            break
    total *= 1.0 / np.sqrt(power)
    if canvas == size:
        return total
    turn = cv2.getRotationMatrix2D((canvas / 2, canvas / 2), -np.degrees(angle), 1.0)
    turn[:, 2] -= (canvas - size) / 2
    return cv2.warpAffine(total, turn, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


def voronoi(
    size: int, cells: float, rng: np.random.Generator, *, jitter: float = 0.9
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Voronoi cells of a jittered lattice with `cells` cells over the frame.

    Returns (distance to the nearest seed, distance to the nearest border) in units of one cell, and an
    integer label per pixel [S, S] that indexes seeds.
    """
    fine = 2 * size
    count = int(np.ceil(cells)) + 2
    lattice = np.stack(np.meshgrid(np.arange(count), np.arange(count)), -1).reshape(-1, 2).astype(np.float32)
    lattice[:, 0] += 0.5 * (lattice[:, 1] % 2)
    seeds = (lattice + jitter * (rng.random(lattice.shape, dtype=np.float32) - 0.5) - 0.75) * (fine / cells)
    seeds = seeds.astype(np.int32)
    seeds = seeds[(seeds >= 0).all(1) & (seeds < fine).all(1)]
    canvas = np.ones((fine, fine), np.uint8)
    canvas[seeds[:, 1], seeds[:, 0]] = 0
    nearest, labels = cv2.distanceTransformWithLabels(canvas, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    inner = np.ones((fine, fine), np.uint8)
    inner[:, 1:][labels[:, 1:] != labels[:, :-1]] = 0
    inner[1:][labels[1:] != labels[:-1]] = 0
    border = cv2.distanceTransform(inner, cv2.DIST_L2, 5)
    unit = cells / fine
    shrink = dict(dsize=(size, size), interpolation=cv2.INTER_AREA)
    return cv2.resize(nearest, **shrink) * unit, cv2.resize(border, **shrink) * unit, labels[::2, ::2]


def per_cell(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One uniform random number per Voronoi label, as a field [S, S]."""
    return rng.random(int(labels.max()) + 1, dtype=np.float32)[labels]


def fill(distance: np.ndarray, pixel: float) -> np.ndarray:
    """Anti-aliased inside of a signed distance (negative inside), 0..1."""
    return np.clip(0.5 - distance / pixel, 0.0, 1.0)


def ramp(value: np.ndarray, low: float, high: float) -> np.ndarray:
    """Smoothstep from 0 at `low` to 1 at `high`."""
    t = np.clip((value - low) / (high - low), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def bevel(distance: np.ndarray, width: float) -> np.ndarray:
    """Height 0..1 of a rounded edge: a quarter circle over `width` inside the signed distance."""
    t = 1.0 - np.clip(-distance / width, 0.0, 1.0)
    return np.sqrt(1.0 - t * t)


def disc(grid: Grid, radius: float, x: float = 0.0, y: float = 0.0) -> np.ndarray:
    """Signed distance to a disc."""
    return np.hypot(grid.x - x, grid.y - y) - radius


def box(
    grid: Grid, half_width: float, half_height: float, rounding: float = 0.0, x: float = 0.0, y: float = 0.0
) -> np.ndarray:
    """Signed distance to a box with rounded corners."""
    across = np.abs(grid.x - x) - (half_width - rounding)
    down = np.abs(grid.y - y) - (half_height - rounding)
    outside = np.hypot(np.maximum(across, 0.0), np.maximum(down, 0.0))
    return outside + np.minimum(np.maximum(across, down), 0.0) - rounding


def polygon(grid: Grid, sides: int, inner_radius: float) -> np.ndarray:
    """Signed distance (exact at the sides) to a regular polygon."""
    step = 2.0 * np.pi / sides
    theta = np.arctan2(grid.y, grid.x)
    folded = (theta + step / 2) % step - step / 2
    return np.hypot(grid.x, grid.y) * np.cos(folded) - inner_radius


def segment(grid: Grid, start: tuple[float, float], end: tuple[float, float], radius: float) -> np.ndarray:
    """Signed distance to a round-ended stroke from `start` to `end`."""
    delta_x, delta_y = end[0] - start[0], end[1] - start[1]
    along = ((grid.x - start[0]) * delta_x + (grid.y - start[1]) * delta_y) / (delta_x**2 + delta_y**2 + 1e-9)
    along = np.clip(along, 0.0, 1.0)
    return np.hypot(grid.x - start[0] - along * delta_x, grid.y - start[1] - along * delta_y) - radius
