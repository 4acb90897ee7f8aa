"""The procedural world: nameable things drawn as height fields under one light, with captions.

`sample_scene` says what is shown, `render_scene` draws it, `caption` puts it into words.
"""

from demo_world.rendering.captions import caption
from demo_world.rendering.render import render_scene
from demo_world.rendering.scene import Mark, Scene, is_held_out, sample_scene
from demo_world.rendering.vocabulary import COLOURS, OBJECTS, SURFACES, thing_names

__all__ = [
    "COLOURS",
    "OBJECTS",
    "SURFACES",
    "Mark",
    "Scene",
    "caption",
    "is_held_out",
    "render_scene",
    "sample_scene",
    "thing_names",
]
