"""From a scene to pixels: pose, build layers, damage, light, mark, expose."""

from dataclasses import dataclass

import numpy as np

from demo_world.rendering import shapes, shapes_flat, surfaces
from demo_world.rendering.defects import apply_defect
from demo_world.rendering.fields import Grid, make_grid
from demo_world.rendering.finish import finish_object, jitter_colour, patterned
from demo_world.rendering.lighting import compose, expose, sample_camera, sample_light, shade
from demo_world.rendering.marks import draw_mark
from demo_world.rendering.scene import Scene
from demo_world.rendering.vocabulary import OBJECTS, SURFACES

# Long things fill the frame's width; they are drawn larger than round ones.
_LONG = (
    "bolt",
    "capsule",
    "key",
    "spring",
    "spoon",
    "battery",
    "pencil",
    "leaf",
    "connector",
    "circuit board",
)


def _function(name, *modules):
    wanted = name.replace(" ", "_")
    for module in modules:
        if hasattr(module, wanted):
            return getattr(module, wanted)
    raise ValueError(f"nothing draws '{name}'; add a function {wanted}(grid, ...) to the shapes or surfaces.")


SHAPE_OF = {name: _function(name, shapes, shapes_flat) for name in OBJECTS}
SURFACE_OF = {name: _function(name, surfaces) for name in (*SURFACES, "paper")}


@dataclass(frozen=True)
class Pose:
    """Where the thing sits: centre and scale in frame units, angles in radians, perspective."""

    centre: tuple
    scale: float
    angle: float
    background_scale: float
    background_angle: float
    shear: float


@dataclass(frozen=True)
class Streams:
    """Independent generators, so that changing one part of a picture leaves the rest as it was."""

    structure: np.random.Generator
    colour: np.random.Generator
    texture: np.random.Generator
    pose: np.random.Generator
    light: np.random.Generator
    damage: np.random.Generator
    marks: np.random.Generator
    sensor: np.random.Generator


def make_streams(rng: np.random.Generator) -> Streams:
    """Eight generators seeded from `rng`."""
    return Streams(*(np.random.default_rng(int(seed)) for seed in rng.integers(2**62, size=8)))


def sample_pose(name: str, rng: np.random.Generator) -> Pose:
    """A random pose: objects fill 45-85 % of the frame at any angle, surfaces are seen from varied distances."""
    shear = rng.uniform(-0.12, 0.12)
    background_scale, background_angle = (
        rng.uniform(0.5, 1.0),
        rng.uniform(-0.4, 0.4) + 1.5708 * rng.integers(2),
    )
    if name in SURFACES:
        scale, angle = rng.uniform(0.65, 1.2), rng.uniform(-0.3, 0.3) + 1.5708 * rng.integers(2)
        if name in ("brick wall", "knitted wool"):
            angle = rng.uniform(-0.2, 0.2)
        return Pose((rng.uniform(-0.5, 0.5), rng.uniform(-0.5, 0.5)), scale, angle, scale, angle, shear)
    scale = rng.uniform(0.7, 1.0) if name in _LONG else rng.uniform(0.55, 0.9)
    room = max(0.0, 1.0 - scale) * 0.6
    centre = (rng.uniform(-room, room), rng.uniform(-room, room))
    return Pose(centre, scale, rng.uniform(-np.pi, np.pi), background_scale, background_angle, shear)


def build_surface(
    name: str, colour: np.ndarray, second: np.ndarray, pattern: str, grid: Grid, streams: Streams
) -> surfaces.Layers:
    """Layers of a surface seen in `grid`."""
    paint = patterned(grid, pattern, colour, second, streams.structure, streams.texture)
    return SURFACE_OF[name](grid, paint, streams.structure, streams.texture)


def build_scene(
    scene: Scene, size: int, pose: Pose, streams: Streams, jitter: float = 1.0
) -> tuple[surfaces.Layers | None, surfaces.Layers]:
    """(front or None, back): layers of the object and of what lies behind it, undamaged and unlit."""
    colour = jitter_colour(scene.colour, streams.colour, scene.material, jitter)
    second = jitter_colour(scene.second_colour, streams.colour, None, jitter)
    if scene.is_surface:
        grid = make_grid(size, centre=pose.centre, scale=pose.scale, angle=pose.angle, shear=pose.shear)
        return None, build_surface(scene.name, colour, second, scene.pattern, grid, streams)
    grid = make_grid(size, centre=pose.centre, scale=pose.scale, angle=pose.angle, shear=pose.shear)
    shape = SHAPE_OF[scene.name](grid, streams.structure, streams.texture)
    paint = patterned(grid, scene.pattern, colour, second, streams.structure, streams.texture)
    front = finish_object(shape, grid, paint, second, scene.material, streams.texture)
    ground = make_grid(size, scale=pose.background_scale, angle=pose.background_angle, shear=pose.shear)
    back_colour = jitter_colour(scene.background_colour, streams.colour, None, jitter)
    back_colour = 0.85 * back_colour + 0.15 * back_colour.mean()
    return front, build_surface(scene.background or "paper", back_colour, second, "plain", ground, streams)


def render_scene(scene: Scene, size: int, rng: np.random.Generator) -> np.ndarray:
    """The picture of `scene`, uint8 RGB [size, size, 3]; `rng` decides pose, light, camera and all chance detail."""
    streams = make_streams(rng)
    front, back = build_scene(scene, size, sample_pose(scene.name, streams.pose), streams)
    light, camera = sample_light(streams.light), sample_camera(streams.light)
    if scene.damage:
        extent = streams.damage.uniform(0.14, 0.34)
        apply_defect(scene.damage, back if front is None else front, extent, streams.damage)
    world = compose(front, back, light)
    for mark in scene.marks:
        draw_mark(world, mark, streams.marks)
    return expose(shade(world, light), camera, streams.sensor)
