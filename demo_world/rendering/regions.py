"""Where a defect sits and what outline it has: places on a thing, irregular blobs and strokes, as soft masks."""

import cv2
import numpy as np

from demo_world.rendering.fields import fractal, ramp


def place_on(
    coverage: np.ndarray, rng: np.random.Generator, *, edge: bool = False, margin: float = 0.06
) -> tuple[float, float]:
    """A random point (x, y) in frame units on the thing (`edge`: on its outline), `margin` away from the frame."""
    size = coverage.shape[0]
    rim = max(2, int(margin * size))
    solid = (coverage > 0.5).astype(np.uint8)
    if edge:
        allowed = solid - cv2.erode(solid, np.ones((3, 3), np.uint8))
    else:
        allowed = cv2.erode(solid, np.ones((max(3, size // 40) | 1,) * 2, np.uint8))
    inside = np.zeros_like(allowed)
    inside[rim:-rim, rim:-rim] = allowed[rim:-rim, rim:-rim]
    rows, columns = np.nonzero(inside if inside.any() else solid if solid.any() else np.ones_like(solid))
    index = int(rng.integers(len(rows)))
    return tuple((np.array([columns[index], rows[index]]) + 0.5) * (2.0 / size) - 1.0)


def blob(
    size: int,
    centre: tuple[float, float] | np.ndarray,
    radius: float,
    rng: np.random.Generator,
    *,
    softness: float = 0.15,
    rough: float = 0.22,
    aspect: float = 1.0,
) -> np.ndarray:
    """An irregular blob, 0..1 [S, S]: a turned ellipse whose radius noise wobbles; `softness` of the radius is edge."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) * (2.0 / size) - 1.0
    x, y = np.meshgrid(axis - np.float32(centre[0]), axis - np.float32(centre[1]))
    angle = rng.uniform(0, np.pi)
    along, across = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    distance = np.hypot(along / np.sqrt(aspect), across * np.sqrt(aspect)) / radius
    distance = distance + rough * fractal(size, max(1.2 / radius, 2), rng, octaves=3)
    softness = max(softness, 1.5 / (radius * size / 2.0))
    return ramp(distance, 1.0 + softness / 2, 1.0 - softness / 2)


def walk(
    start: tuple[float, float] | np.ndarray,
    length: float,
    rng: np.random.Generator,
    *,
    steps: int = 14,
    wander: float = 0.35,
    angle: float | None = None,
) -> np.ndarray:
    """Points [steps + 1, 2] of a random walk of about `length` frame units; `wander` = radians per step."""
    angle = rng.uniform(0, 2 * np.pi) if angle is None else angle
    turns = angle + np.cumsum(rng.normal(0.0, wander, steps))
    stride = length / steps * np.stack([np.cos(turns), np.sin(turns)], -1)
    path = np.vstack([[0.0, 0.0], np.cumsum(stride, 0)])
    return path - path.mean(0) + np.asarray(start)


def stroke(size: int, points: np.ndarray, width: float, *, taper: bool = False) -> np.ndarray:
    """An anti-aliased line of `width` frame units along `points`, 0..1 [S, S]; `taper` thins it to its ends."""
    fine = 4 * size
    canvas = np.zeros((fine, fine), np.uint8)
    pixels = ((points + 1.0) / 2.0 * fine * 8).astype(np.int32)
    thickness = width / 2.0 * fine
    count = len(points) - 1
    for index in range(count):
        local = thickness * (1.0 - abs(2.0 * (index + 0.5) / count - 1.0) ** 2 * 0.8 if taper else 1.0)
        cv2.line(
            canvas,
            tuple(map(int, pixels[index])),
            tuple(map(int, pixels[index + 1])),
            255,
            max(1, int(round(local))),
            cv2.LINE_AA,
            3,
        )
    return cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32) / 255.0


def smooth_path(points: np.ndarray, count: int = 40) -> np.ndarray:
    """`count` points of a soft curve through a coarse path (linear interpolation, twice averaged)."""
    positions = np.linspace(0, len(points) - 1, count)
    dense = np.stack([np.interp(positions, np.arange(len(points)), points[:, axis]) for axis in (0, 1)], -1)
    for _ in range(2):
        dense[1:-1] = (dense[:-2] + 2 * dense[1:-1] + dense[2:]) / 4
    return dense
