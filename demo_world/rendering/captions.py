"""Sentences in the language of image captions for a scene."""

import numpy as np

from demo_world.rendering import vocabulary as words
from demo_world.rendering.scene import Scene

TEMPLATES = (
    "a photo of {}.",
    "a photo of {}.",
    "{}.",
    "{}",
    "{}",
    "a close-up of {}",
    "a close-up photo of {}.",
    "a picture of {}",
    "a good photo of {}.",
    "an image showing {}",
    "product photo: {}",
    "macro photo of {}",
    "a small photo of {}.",
    "this is {}.",
    "top view of {}",
    "a bright photo of {}.",
    "a blurry photo of {}.",
)
DAMAGE_WORDS = {
    "scratch": ("scratched {}", "{} with a scratch", "damaged {}", "{} with scratches", "{} with damage"),
    "hole": ("{} with a hole", "damaged {}", "{} with a defect", "{} with flaw"),
    "stain": ("stained {}", "{} with a stain", "dirty {}", "{} with a flaw"),
    "crack": ("cracked {}", "broken {}", "{} with a crack", "damaged {}"),
    "contamination": ("dirty {}", "{} with dirt", "{} with defect"),
    "missing part": ("broken {}", "{} with a missing piece", "damaged {}", "{} with a defect"),
}


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """A caption of the scene; it leaves out details at random (colour 12 %, material 25 %, background 45 %, ...)."""
    phrase, fixed_article = _noun(scene, rng)
    if scene.damage and rng.random() < 0.8:
        phrase = _pick(rng, DAMAGE_WORDS[scene.damage]).format(phrase)
    if not fixed_article and not scene.is_surface:
        phrase = _with_article(phrase, rng)
    elif not fixed_article and rng.random() < 0.2:
        phrase = _pick(rng, ("the {}", "some {}", "a piece of {}", "the surface of {}")).format(phrase)
    if scene.background and rng.random() < 0.55:
        phrase += _background(scene, rng)
    if scene.marks and rng.random() < 0.75:
        phrase += " with " + _marks(scene.marks, rng)
    return _pick(rng, TEMPLATES).format(phrase)


def _pick(rng, options):
    return options[int(rng.integers(len(options)))]


def _with_article(phrase, rng):
    draw = rng.random()
    if draw < 0.15:
        return phrase
    if draw < 0.3:
        return f"the {phrase}"
    return _article(phrase)


def _article(phrase):
    return f"{'an' if phrase[0] in 'aeio' else 'a'} {phrase}"


def _noun(scene, rng):
    """Adjectives and noun, and whether the noun brings its own article."""
    noun, entry = scene.name, words.thing(scene.name)
    if entry.synonyms and rng.random() < 0.15:
        noun = _pick(rng, entry.synonyms)
    adjectives = []
    if scene.pattern != "plain" and rng.random() < 0.85:
        adjectives.append(scene.pattern)
        if rng.random() < 0.4:
            adjectives += [scene.second_colour, "and"]
    if rng.random() < 0.88 or adjectives[-1:] == ["and"]:
        adjectives.append(scene.colour)
    if scene.material and rng.random() < 0.75:
        adjectives.append(scene.material)
    for article in ("a ", "an "):
        if noun.startswith(article):
            if not adjectives:
                return noun, True
            return _article(" ".join([*adjectives, noun[len(article) :]])), True
    return " ".join([*adjectives, noun]), False


def _background(scene, rng):
    surface, colour = scene.background, scene.background_colour
    if surface == "paper":
        return _pick(rng, (f" on a {colour} background", f" on {colour} paper", f" on {colour}"))
    return _pick(rng, (f" on {colour} {surface}", f" on {surface}", f" lying on {colour} {surface}"))


def _marks(marks, rng):
    phrases = []
    for mark in marks:
        what = f"letter {mark.letter}" if mark.kind == "letter" else mark.kind
        small = "small " if rng.random() < 0.5 else ""
        where = f" {mark.place}" if rng.random() < 0.75 else ""
        phrases.append(_article(f"{small}{mark.colour} {what}") + where)
    return " and ".join(phrases[: 1 + int(rng.integers(len(phrases)))])
