"""Pictures of product lines: a good one, or its damaged twin with the same pose, light, texture and noise."""

from functools import partial

import cv2
import numpy as np

from demo_world.rendering.defects import apply_defect
from demo_world.rendering.lighting import Camera, compose, expose, sample_light, shade
from demo_world.rendering.product_lines import PRODUCT_LINES, line_pose, line_streams
from demo_world.rendering.render import build_scene
from demo_world.rendering.twins import damage_twin


def render_line_picture(
    dataset: str, class_name: str, size: int, rng: np.random.Generator, defect: str | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One picture of a product line: (picture, undamaged twin) uint8 [S, S, 3] RGB, and its mask uint8 [S, S].

    Without `defect` the twin is the picture itself and the mask is empty. Raises RuntimeError when no fair defect
    comes out (see twins.py).
    """
    line = PRODUCT_LINES[dataset][class_name]
    state = int(rng.integers(2**62))
    twin = _draw(line, dataset, class_name, size, state)
    if defect is None:
        return twin, twin, np.zeros((size, size), np.uint8)

    def draw(extent, rng):
        damage = partial(_damage, defect, extent, rng)
        return _draw(line, dataset, class_name, size, state, damage)

    picture, mask = damage_twin(twin, draw, rng, f"'{defect}' on {dataset}/{class_name}")
    return picture, twin, mask


def _damage(defect, extent, rng, subject):
    apply_defect(defect, subject, extent, rng)


def _draw(line, dataset, class_name, size, state, damage=None):
    """The picture that `state` stands for; `damage(layers)` changes the subject's layers before it is lit."""
    streams = line_streams(dataset, class_name, np.random.default_rng(state))
    light = sample_light(streams.light, spread=0.35)
    camera = Camera(
        1.0 + streams.light.uniform(-0.06, 0.06),
        1.0 + streams.light.uniform(-0.06, 0.06),
        streams.light.uniform(0.0, 4.0),
        streams.light.uniform(0.006, 0.016),
    )
    front, back = build_scene(line.scene, size, line_pose(line, streams.pose), streams, jitter=0.35)
    subject = back if front is None else front
    if damage is not None:
        damage(subject)
    world = compose(front, back, light)
    add_dust(world.albedo, streams.marks)
    return expose(shade(world, light), camera, streams.sensor)


def add_dust(albedo: np.ndarray, rng: np.random.Generator) -> None:
    """Harmless specks and lint, in normal and defective pictures alike, drawn in place on colours [S, S, 3]."""
    size = albedo.shape[0]
    layer = np.zeros((size, size), np.float32)
    for _ in range(int(rng.integers(0, 4))):
        x, y = rng.uniform(0, size, 2)
        end = (x + rng.normal(0, 0.008 * size), y + rng.normal(0, 0.008 * size))
        points = [tuple(int(16 * value) for value in point) for point in ((x, y), end)]
        cv2.line(layer, points[0], points[1], float(rng.uniform(0.2, 0.5)), 1, cv2.LINE_8, 4)
    layer = cv2.GaussianBlur(layer, (0, 0), max(0.5, size / 320))
    albedo += layer[..., None] * (np.float32(rng.uniform(0.3, 0.9)) - albedo)
