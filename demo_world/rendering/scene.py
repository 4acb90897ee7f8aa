"""What a picture shows, as plain data, and how such scenes are drawn at random."""

import hashlib
from dataclasses import dataclass

import numpy as np

from demo_world.rendering import vocabulary as words

DAMAGE_SHARE = 0.03
MARK_SHARE = 0.4
HELD_OUT_TENTHS = 1


@dataclass(frozen=True)
class Mark:
    """A small harmless secondary thing; `place` is a key of PLACES, `letter` is set for letters only."""

    kind: str
    colour: str
    place: str
    letter: str = ""


@dataclass(frozen=True)
class Scene:
    """One thing and its surroundings. `material` is None where the name says it; surfaces have no background."""

    name: str
    colour: str
    material: str | None = None
    pattern: str = "plain"
    second_colour: str = "white"
    background: str | None = None
    background_colour: str = "white"
    damage: str | None = None
    marks: tuple = ()

    @property
    def is_surface(self) -> bool:
        return self.name in words.SURFACES


def is_held_out(scene: Scene) -> bool:
    """Whether the combination name x colour x material x pattern is kept from training (about one in ten)."""
    key = f"{scene.name}|{scene.colour}|{scene.material}|{scene.pattern}"
    return hashlib.sha256(key.encode()).digest()[0] * 10 // 256 < HELD_OUT_TENTHS


def sample_scene(rng: np.random.Generator, held_out: bool = False, name: str | None = None) -> Scene:
    """A random scene from numpy generator `rng`: never a held-out combination, or with `held_out` only those.

    `name` fixes the thing. Raises ValueError when the fixed thing has no such combination in 1000 draws.
    """
    for _ in range(1000):
        scene = _draw(rng, name)
        if is_held_out(scene) == held_out:
            return scene
    kind = "held-out" if held_out else "training"
    raise ValueError(
        f"no {kind} combination of '{name}' found in 1000 draws; widen its colours in vocabulary.py."
    )


def _pick(rng, options):
    return options[int(rng.integers(len(options)))]


def _draw(rng, name):
    if name is None:
        group = words.OBJECTS if rng.random() < 0.6 else words.SURFACES
        name = _pick(rng, tuple(group))
    thing = words.thing(name)
    colour = _pick(rng, thing.colours)
    pattern = _pick(rng, thing.patterns) if rng.random() < 0.5 else "plain"
    others = tuple(other for other in words.COLOURS if other != colour)
    background, background_colour = None, "white"
    if name in words.OBJECTS:
        background = _pick(rng, words.BACKGROUNDS)
        allowed = words.ALL if background == "paper" else words.SURFACES[background].colours
        background_colour = _pick(rng, tuple(other for other in allowed if other != colour))
    return Scene(
        name=name,
        colour=colour,
        material=_pick(rng, thing.materials) if thing.materials else None,
        pattern=pattern,
        second_colour=_pick(rng, others),
        background=background,
        background_colour=background_colour,
        damage=_pick(rng, words.DAMAGES) if rng.random() < DAMAGE_SHARE else None,
        marks=_draw_marks(rng) if rng.random() < MARK_SHARE else (),
    )


def _draw_marks(rng):
    places = rng.permutation(len(words.PLACES))[: 1 + int(rng.integers(3))]
    marks = []
    for place in places:
        kind = _pick(rng, words.MARKS)
        letter = chr(ord("A") + int(rng.integers(26))) if kind == "letter" else ""
        marks.append(Mark(kind, _pick(rng, words.ALL), tuple(words.PLACES)[place], letter))
    return tuple(marks)
