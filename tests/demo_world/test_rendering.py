"""The procedural world: scenes, captions, pixels."""

from dataclasses import replace

import numpy as np
import pytest

from demo_world.rendering import (
    COLOURS,
    OBJECTS,
    SURFACES,
    Mark,
    Scene,
    caption,
    is_held_out,
    render_scene,
    sample_scene,
    thing_names,
)
from demo_world.rendering.defects import DEFECTS, apply_defect
from demo_world.rendering.fields import fractal, make_grid, polygon
from demo_world.rendering.finish import pattern_mask
from demo_world.rendering.lighting import Light, shade
from demo_world.rendering.surfaces import layers


def draw(scene, seed=0, size=48):
    return render_scene(scene, size, np.random.default_rng(seed))


def test_the_vocabulary_is_large_enough_for_zero_shot_classification():
    assert len(OBJECTS) >= 16 and len(SURFACES) >= 10 and len(COLOURS) >= 9
    assert len(set(thing_names())) == len(OBJECTS) + len(SURFACES)


@pytest.mark.parametrize("name", thing_names())
def test_every_thing_renders_and_its_picture_is_not_flat(name):
    scene = sample_scene(np.random.default_rng(3), name=name)
    picture = draw(scene, size=64)
    assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8
    assert picture.std() > 3.0


def test_the_same_generator_state_gives_the_same_pixels_and_words():
    scene = sample_scene(np.random.default_rng(5))
    assert np.array_equal(draw(scene, 1), draw(scene, 1))
    assert not np.array_equal(draw(scene, 1), draw(scene, 2))
    assert caption(scene, np.random.default_rng(4)) == caption(scene, np.random.default_rng(4))


def test_training_scenes_are_never_held_out_and_held_out_scenes_always_are():
    rng = np.random.default_rng(0)
    assert not any(is_held_out(sample_scene(rng)) for _ in range(2000))
    assert all(is_held_out(sample_scene(rng, held_out=True)) for _ in range(200))


def test_about_one_combination_in_ten_is_held_out_whatever_else_the_scene_shows():
    combinations = [Scene(name, colour) for name in thing_names() for colour in COLOURS]
    assert 0.07 < np.mean([is_held_out(scene) for scene in combinations]) < 0.13
    for scene in combinations:
        dressed = replace(
            scene, background="wood", damage="scratch", marks=(Mark("star", "red", "on the left"),)
        )
        assert is_held_out(dressed) == is_held_out(scene)


def test_damage_is_rare_and_marks_are_frequent():
    rng = np.random.default_rng(1)
    scenes = [sample_scene(rng) for _ in range(3000)]
    assert 0.02 < np.mean([scene.damage is not None for scene in scenes]) < 0.04
    assert 0.35 < np.mean([bool(scene.marks) for scene in scenes]) < 0.45


def test_captions_name_the_thing_and_often_its_colour_and_marks():
    scene = Scene("gear", "red", "plastic", marks=(Mark("star", "yellow", "on the left"),))
    rng = np.random.default_rng(0)
    captions = [caption(scene, rng) for _ in range(300)]
    assert all("gear" in text or "cog" in text for text in captions)
    assert np.mean(["red" in text for text in captions]) > 0.8
    assert np.mean(["yellow star" in text for text in captions]) > 0.6
    assert len(set(captions)) > 100
    assert not any("  " in text or "{" in text or "None" in text for text in captions)


def test_captions_of_damaged_scenes_mostly_say_so_and_others_never_do():
    words = ("scratch", "damage", "flaw", "defect", "broken", "crack", "hole", "stain", "dirt", "missing")
    rng = np.random.default_rng(0)

    def share(scene):
        captions = [caption(scene, rng) for _ in range(300)]
        return np.mean([any(word in text for word in words) for text in captions])

    assert 0.7 < share(Scene("gear", "red", "plastic", damage="crack")) < 0.9
    assert share(Scene("gear", "red", "plastic")) == 0.0


@pytest.mark.parametrize("kind", DEFECTS)
def test_damage_changes_a_part_of_the_picture_and_leaves_the_rest(kind):
    scene = Scene("cardboard", "beige")
    changed = np.abs(draw(scene, 7, 96).astype(int) - draw(replace(scene, damage=kind), 7, 96)).max(2) > 10
    assert 0.0005 < changed.mean() < 0.3


def test_an_unknown_thing_defect_or_pattern_is_named_in_the_error():
    with pytest.raises(ValueError, match="teapot"):
        sample_scene(np.random.default_rng(0), name="teapot")
    with pytest.raises(ValueError, match="mould"):
        apply_defect("mould", None, 0.1, np.random.default_rng(0))
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="paisley"):
        pattern_mask(make_grid(8), "paisley", rng, rng)


def test_a_flat_white_surface_is_lit_to_one():
    flat = layers(np.ones((8, 8, 3)), np.zeros((8, 8)))
    light = Light(azimuth=0.3, elevation=0.9, ambient=0.4, cast=(1.0, 1.0, 1.0), falloff=0.0, reflection=0.0)
    assert shade(flat, light) == pytest.approx(np.ones((8, 8, 3)), abs=1e-5)


def test_a_slope_towards_the_light_is_brighter_than_one_away_from_it():
    axis = np.linspace(-1.0, 1.0, 16, dtype=np.float32)
    roof = layers(np.ones((16, 16, 3)), np.broadcast_to(-0.3 * np.abs(axis), (16, 16)))
    from_the_right = Light(
        azimuth=0.0, elevation=0.8, ambient=0.4, cast=(1.0, 1.0, 1.0), falloff=0.0, reflection=0.0
    )
    lit = shade(roof, from_the_right)
    assert lit[:, 12].mean() > lit[:, 3].mean() + 0.1


def test_a_polygon_distance_is_zero_on_its_side_and_negative_inside():
    grid = make_grid(64)
    distance = polygon(grid, 6, 0.5)
    assert distance[32, 32] < -0.45
    assert abs(distance[32, 47]) < 0.02  # x = 0.484


def test_noise_has_about_unit_deviation_at_any_size():
    for size in (48, 96):
        field = fractal(size, 12, np.random.default_rng(0))
        assert field.shape == (size, size) and 0.5 < field.std() < 1.3
