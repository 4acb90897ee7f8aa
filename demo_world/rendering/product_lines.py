"""The classes of DemoA, DemoB and DemoC as product lines: what they show, how they lie, which defects they suffer."""

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


# They share neither classes nor kinds of defects. DemoC is kept for the confirmation of declared hypotheses.
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
    "DemoC": {
        "battery": _goods("battery", "purple", None, ("paper", "white"), 0.9, 0.2, ("rust", "dent", "smear")),
        "bracket": _goods(
            "bracket", "black", "metal", ("wood", "beige"), 0.85, 0.15, ("rust", "pitting", "fading")
        ),
        "cardboard": _sheet("cardboard", "brown", 1.0, 0.2, ("wrinkle", "smear", "dent")),
        "coin": _goods(
            "coin", "orange", "metal", ("paper", "black"), 0.8, FULL_TURN, ("rust", "pitting", "smear")
        ),
        "concrete": _sheet("concrete", "gray", 1.0, FULL_TURN, ("rust", "pitting", "fading", "smear")),
        "connector": _goods(
            "connector", "white", "plastic", ("paper", "purple"), 0.9, 0.1, ("blister", "fading", "smear")
        ),
        "cookie": _goods(
            "cookie", "brown", None, ("paper", "white"), 0.82, FULL_TURN, ("dent", "fading", "blister")
        ),
        "cork": _sheet("cork", "beige", 1.0, FULL_TURN, ("dent", "smear", "fading")),
        "egg": _goods(
            "egg", "pink", None, ("cardboard", "gray"), 0.8, FULL_TURN, ("dent", "smear", "pitting")
        ),
        "knitted_wool": _sheet("knitted wool", "red", 1.0, 0.1, ("wrinkle", "fading", "smear")),
        "leaf": _goods(
            "leaf", "green", None, ("paper", "beige"), 0.92, 0.2, ("rust", "blister", "pitting", "fading")
        ),
        "spoon": _goods(
            "spoon",
            "turquoise",
            "ceramic",
            ("wood", "gray"),
            0.93,
            0.15,
            ("blister", "smear", "fading"),
            angle=0.4,
        ),
        "tablet": _goods(
            "tablet", "white", None, ("paper", "green"), 0.75, FULL_TURN, ("pitting", "smear", "rust")
        ),
        "terrazzo": _sheet("terrazzo", "beige", 1.0, FULL_TURN, ("rust", "fading", "blister", "pitting")),
        "washer": _goods(
            "washer", "gray", "metal", ("paper", "red"), 0.8, FULL_TURN, ("rust", "dent", "pitting")
        ),
        "wire_mesh": _sheet("wire mesh", "gray", 1.0, 0.06, ("dent", "rust", "smear")),
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
