"""The classes of DemoA and DemoB as product lines: what they show, how they lie, which defects they suffer."""

from dataclasses import dataclass
from zlib import crc32

import numpy as np

from demo_world.rendering.render import Pose, Streams
from demo_world.rendering.scene import Scene

FULL_TURN = np.pi


@dataclass(frozen=True)
class ProductLine:
    """One class: its scene, size in the frame, the angle it varies by (radians), its defects."""

    scene: Scene
    scale: float
    turn: float
    defects: tuple
    angle: float = 0.0


def _goods(name, colour, material, ground, scale, turn, defects, **other):
    """A product on a ground (surface, colour); other: `second` colour, `angle` of its pose."""
    scene = Scene(name, colour, material, "plain", other.get("second", "white"), *ground)
    return ProductLine(scene, scale, turn, defects, other.get("angle", 0.0))


def _sheet(name, colour, scale, turn, defects, *, pattern="plain", second="white"):
    return ProductLine(Scene(name, colour, None, pattern, second), scale, turn, defects)


# DemoA and DemoB share neither classes nor kinds of defects.
PRODUCT_LINES = {
    "DemoA": {
        "button": _goods(
            "button",
            "blue",
            "plastic",
            ("paper", "beige"),
            0.78,
            FULL_TURN,
            ("scratch", "hole", "stain", "missing part"),
        ),
        "capsule": _goods(
            "capsule",
            "red",
            None,
            ("paper", "gray"),
            0.88,
            0.25,
            ("scratch", "hole", "stain", "missing part"),
            angle=0.5,
        ),
        "carpet": _sheet(
            "carpet", "gray", 1.0, 0.3, ("hole", "stain", "missing part"), pattern="striped", second="beige"
        ),
        "circuit_board": _goods(
            "circuit board",
            "green",
            None,
            ("paper", "white"),
            0.92,
            0.06,
            ("scratch", "hole", "stain", "missing part"),
        ),
        "hex_nut": _goods(
            "hex nut",
            "gray",
            "metal",
            ("paper", "black"),
            0.8,
            FULL_TURN,
            ("scratch", "stain", "missing part"),
        ),
        "leather": _sheet("leather", "brown", 1.0, 0.3, ("scratch", "hole", "stain")),
        "tiles": _sheet("tiles", "white", 0.9, 0.05, ("scratch", "hole", "stain", "missing part")),
        "wood": _sheet("wood", "brown", 1.0, 0.08, ("scratch", "hole", "stain")),
    },
    "DemoB": {
        "bottle_cap": _goods(
            "bottle cap",
            "yellow",
            "metal",
            ("paper", "gray"),
            0.8,
            FULL_TURN,
            ("chip", "burn", "contamination", "thread"),
            second="red",
        ),
        "brushed_metal": _sheet(
            "brushed metal", "gray", 1.0, 0.06, ("bent", "burn", "contamination", "thread")
        ),
        "candle": _goods(
            "candle",
            "white",
            None,
            ("wood", "brown"),
            0.8,
            FULL_TURN,
            ("chip", "burn", "contamination", "thread"),
        ),
        "cracker": _goods(
            "cracker",
            "beige",
            None,
            ("paper", "turquoise"),
            0.82,
            0.12,
            ("crack", "chip", "burn", "contamination"),
        ),
        "gear": _goods(
            "gear",
            "blue",
            "plastic",
            ("paper", "white"),
            0.85,
            FULL_TURN,
            ("chip", "thread", "burn", "contamination"),
        ),
        "key": _goods(
            "key",
            "gray",
            "metal",
            ("paper", "brown"),
            0.93,
            0.15,
            ("bent", "burn", "chip", "thread"),
            angle=-0.6,
        ),
        "marble": _sheet("marble", "white", 1.0, FULL_TURN, ("crack", "chip", "contamination", "thread")),
        "woven_fabric": _sheet(
            "woven fabric", "blue", 1.0, 0.05, ("burn", "contamination", "thread"), pattern="striped"
        ),
    },
}


def line_streams(dataset: str, class_name: str, rng: np.random.Generator) -> Streams:
    """Generators of one picture of a line: `structure` is the line's own, the rest comes from `rng`."""
    structure = np.random.default_rng(crc32(f"{dataset}/{class_name}".encode()))
    seeds = (np.random.default_rng(int(seed)) for seed in rng.integers(2**62, size=7))
    return Streams(structure, *seeds)


def line_pose(line: ProductLine, rng: np.random.Generator) -> Pose:
    """A pose as a fixture allows it: small shifts for goods, any part of the sheet for surfaces."""
    scale = line.scale * rng.uniform(0.96, 1.04)
    angle = line.angle + rng.uniform(-line.turn, line.turn)
    reach = 0.5 if line.scene.is_surface else 0.06
    centre = tuple(rng.uniform(-reach, reach, 2))
    return Pose(centre, scale, angle, 0.8, rng.uniform(-0.05, 0.05), rng.uniform(-0.03, 0.03))
