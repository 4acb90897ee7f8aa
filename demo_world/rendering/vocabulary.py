"""What the world contains: colours, materials, patterns, objects and surfaces, by their names in captions."""

from dataclasses import dataclass

COLOURS = {
    "red": (0.78, 0.13, 0.12),
    "orange": (0.93, 0.50, 0.12),
    "yellow": (0.92, 0.80, 0.18),
    "green": (0.20, 0.55, 0.22),
    "blue": (0.14, 0.30, 0.72),
    "purple": (0.45, 0.20, 0.58),
    "pink": (0.92, 0.56, 0.68),
    "brown": (0.43, 0.26, 0.14),
    "black": (0.13, 0.13, 0.14),
    "white": (0.91, 0.91, 0.89),
    "gray": (0.53, 0.54, 0.55),
    "beige": (0.82, 0.72, 0.55),
    "turquoise": (0.20, 0.67, 0.66),
}
MATERIALS = ("metal", "plastic", "wooden", "ceramic", "rubber")
PATTERNS = ("plain", "striped", "dotted", "checkered", "speckled")
ALL = tuple(COLOURS)


@dataclass(frozen=True)
class Thing:
    """How a thing is named and which looks it has; `materials` empty = the name already says it."""

    name: str
    colours: tuple = ALL
    materials: tuple = ()
    patterns: tuple = ("plain",)
    synonyms: tuple = ()


_DECORATED = ("plain", "striped", "dotted", "checkered", "speckled")
_METALS = ("gray", "yellow", "brown", "black", "orange", "beige")
_FOOD = ("brown", "beige", "black", "orange", "pink", "white")

OBJECTS = {
    thing.name: thing
    for thing in (
        Thing("hex nut", materials=("metal", "plastic", "rubber"), synonyms=("nut",)),
        Thing("washer", materials=("metal", "plastic", "rubber"), synonyms=("flat washer",)),
        Thing("gear", materials=("metal", "plastic", "wooden"), synonyms=("gear wheel", "cog")),
        Thing(
            "bolt",
            colours=(*_METALS, "blue", "red", "white"),
            materials=("metal", "plastic"),
            synonyms=("screw", "hex bolt"),
        ),
        Thing("coin", colours=_METALS, materials=("metal",)),
        Thing(
            "button",
            materials=("plastic", "wooden", "metal", "ceramic"),
            patterns=_DECORATED,
            synonyms=("shirt button",),
        ),
        Thing("tablet", patterns=("plain", "speckled"), synonyms=("pill", "round pill")),
        Thing("capsule", synonyms=("medicine capsule",)),
        Thing("cookie", colours=_FOOD, synonyms=("biscuit",)),
        Thing(
            "bottle cap",
            materials=("metal", "plastic"),
            patterns=("plain", "striped", "dotted"),
            synonyms=("crown cap",),
        ),
        Thing("key", materials=("metal", "plastic"), synonyms=("door key",)),
        Thing(
            "circuit board",
            colours=("green", "blue", "red", "black", "white", "yellow", "purple"),
            synonyms=("pcb", "printed circuit board"),
        ),
        Thing("candle", patterns=("plain", "speckled"), synonyms=("candle seen from above",)),
        Thing("die", materials=("plastic", "wooden", "ceramic"), synonyms=("dice",)),
        Thing("ring", materials=("metal", "plastic", "rubber", "wooden"), synonyms=("o-ring",)),
        Thing("connector", materials=("plastic",), synonyms=("plug", "pin connector")),
        Thing("spring", materials=("metal", "plastic"), synonyms=("coil spring",)),
        Thing(
            "leaf", colours=("green", "yellow", "red", "brown", "orange", "purple"), synonyms=("plant leaf",)
        ),
        Thing("spoon", materials=("metal", "plastic", "wooden", "ceramic")),
        Thing("battery", synonyms=("round battery cell",)),
        Thing("ball bearing", colours=_METALS, materials=("metal",), synonyms=("bearing",)),
        Thing("bracket", materials=("metal", "plastic", "wooden"), synonyms=("angle bracket",)),
        Thing("cracker", colours=_FOOD, synonyms=("salted cracker",)),
        Thing(
            "donut",
            colours=(*_FOOD, "red", "purple", "turquoise"),
            patterns=("plain", "speckled"),
            synonyms=("doughnut",),
        ),
        Thing(
            "egg",
            colours=("white", "beige", "brown", "blue", "pink", "yellow", "red", "green", "turquoise"),
            patterns=_DECORATED,
            synonyms=("easter egg",),
        ),
        Thing("pencil", synonyms=("crayon pencil",)),
    )
}

SURFACES = {
    thing.name: thing
    for thing in (
        Thing(
            "wood",
            colours=("brown", "beige", "gray", "red", "white", "black", "orange", "blue", "green"),
            synonyms=("wood surface", "a wooden board", "wooden planks"),
        ),
        Thing("leather", synonyms=("leather surface", "a piece of leather")),
        Thing(
            "woven fabric",
            patterns=("plain", "striped", "checkered"),
            synonyms=("cloth", "fabric", "linen cloth"),
        ),
        Thing("carpet", patterns=("plain", "striped", "checkered", "dotted"), synonyms=("a carpet", "rug")),
        Thing(
            "tiles", patterns=("plain", "checkered", "speckled"), synonyms=("tiled floor", "ceramic tiles")
        ),
        Thing("marble", synonyms=("marble surface", "a marble slab")),
        Thing(
            "brick wall",
            colours=("red", "brown", "orange", "gray", "beige", "white", "black", "yellow"),
            synonyms=("bricks", "a wall of bricks"),
        ),
        Thing("wire mesh", synonyms=("metal mesh", "wire grid")),
        Thing(
            "concrete",
            colours=("gray", "beige", "white", "black", "brown", "green", "pink"),
            synonyms=("concrete wall", "cement surface"),
        ),
        Thing("knitted wool", patterns=("plain", "striped"), synonyms=("wool sweater", "knitting")),
        Thing(
            "cardboard",
            colours=("brown", "beige", "gray", "white", "red", "blue"),
            synonyms=("corrugated cardboard", "a sheet of cardboard"),
        ),
        Thing("brushed metal", synonyms=("metal plate", "a brushed steel plate")),
        Thing("terrazzo", synonyms=("terrazzo floor",)),
        Thing(
            "pebbles",
            colours=("gray", "brown", "white", "black", "beige", "red", "blue"),
            synonyms=("gravel", "small stones"),
        ),
        Thing("cork", colours=("brown", "beige", "orange", "black", "gray"), synonyms=("cork board",)),
        Thing("bubble wrap", synonyms=("bubble foil",)),
        Thing("honeycomb", synonyms=("a hexagon grid",)),
    )
}

BACKGROUNDS = (
    "paper",
    "paper",
    "paper",
    "wood",
    "woven fabric",
    "concrete",
    "leather",
    "marble",
    "brushed metal",
    "cardboard",
    "tiles",
    "carpet",
)
MARKS = ("star", "dot", "triangle", "square", "letter", "stud", "cross")
PLACES = {
    "on the left": (-0.62, 0.0),
    "on the right": (0.62, 0.0),
    "at the top": (0.0, -0.62),
    "at the bottom": (0.0, 0.62),
    "in the top left corner": (-0.66, -0.66),
    "in the top right corner": (0.66, -0.66),
    "in the bottom left corner": (-0.66, 0.66),
    "in the bottom right corner": (0.66, 0.66),
    "in the middle": (0.0, 0.0),
}
DAMAGES = ("scratch", "hole", "stain", "crack", "contamination", "missing part")


def thing_names() -> tuple:
    """All nameable things, objects first: the classes of zero-shot classification."""
    return (*OBJECTS, *SURFACES)


def thing(name: str) -> Thing:
    """The entry of an object or surface. Raises ValueError for a name outside the vocabulary."""
    entry = OBJECTS.get(name) or SURFACES.get(name)
    if entry is None:
        raise ValueError(f"'{name}' is not in the vocabulary; known things are: {', '.join(thing_names())}.")
    return entry
