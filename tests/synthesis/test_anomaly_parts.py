"""What synthetic anomalies are made of: synthesis/{masks,compositing,perlin_defects,generate}.py."""

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip("diffusers", reason="semantic fill needs requirements-synthesis.txt")

from synthesis.codec import DctCodec
from synthesis.compositing import Gate, change_inside, paste, refusal
from synthesis.fill_sampler import codec_round_trip
from synthesis.masks import Area, keyed_rng, moved_mask, object_region, perlin_mask, perlin_noise
from synthesis.perlin_defects import texture_defect

WIDE = Area(0.01, 0.5)


@pytest.fixture
def disc():
    """A red disc of radius 20 on flat grey, [64, 64, 3], and where it is."""
    y, x = np.ogrid[:64, :64]
    where = np.hypot(y - 30, x - 34) < 20
    return np.where(where[..., None], np.uint8([200, 30, 30]), np.uint8(110)), where


def noisy(height=40, width=50, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_perlin_noise_is_smooth_zero_on_its_lattice_and_drawn_by_the_generator():
    noise = perlin_noise(64, 96, 8, keyed_rng(1))
    assert noise.shape == (64, 96) and 0.2 < noise.std() < 0.35
    assert np.abs(noise[::8, ::12]).max() < 1e-12
    assert np.abs(np.diff(noise, axis=0)).max() < 0.3 and np.abs(np.diff(noise, axis=1)).max() < 0.3
    assert np.array_equal(noise, perlin_noise(64, 96, 8, keyed_rng(1)))
    assert not np.array_equal(noise, perlin_noise(64, 96, 8, keyed_rng(2)))


def test_keys_draw_apart_and_every_part_of_a_key_counts():
    draws = {keyed_rng(*key).random() for key in ((1, "a"), (2, "a"), (1, "b"), (1, "a", 0), (1, "a", 1))}
    assert len(draws) == 5


def test_the_object_is_what_stands_out_from_the_border_and_a_texture_fills_the_image(disc):
    image, where = disc
    found = object_region(image)
    assert (found & where).sum() / (found | where).sum() > 0.9
    assert object_region(noisy()).all()
    assert object_region(np.full((40, 50, 3), 77, np.uint8)).all()


@pytest.mark.parametrize("number", range(5))
def test_a_perlin_mask_is_one_part_of_the_object_within_the_area(disc, number):
    mask = perlin_mask(disc[1], keyed_rng(number), WIDE)
    assert mask.dtype == bool and not (mask & ~disc[1]).any()
    assert WIDE.low <= mask.mean() <= WIDE.high
    assert cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[0] == 2


def test_a_moved_mask_keeps_at_least_half_of_a_real_defect_and_stays_on_the_object(disc):
    real = np.zeros((128, 128), bool)  # twice the image's size
    real[4:16, 4:40] = True
    masks = [moved_mask(real, disc[1], keyed_rng(number), Area(0.002, 0.5)) for number in range(40)]
    assert all(mask.shape == (64, 64) and not (mask & ~disc[1]).any() for mask in masks)
    sizes = [mask.sum() for mask in masks]
    assert 0.5 * 108 <= min(sizes) < 0.7 * 108 and max(sizes) <= 1.2 * 108


def test_real_masks_come_at_many_places_and_turns():
    real, region = np.zeros((64, 64), bool), np.ones((64, 64), bool)
    real[30:34, 20:44] = True
    masks = [moved_mask(real, region, keyed_rng(number), WIDE) for number in range(20)]
    heights = [np.ptp(np.argwhere(mask)[:, 0]) for mask in masks]
    assert min(heights) < 8 and max(heights) > 16
    assert np.std([np.argwhere(mask).mean(axis=0)[1] for mask in masks]) > 8


def test_an_area_nothing_fits_is_refused_with_its_bounds_and_an_empty_real_mask_too(disc):
    for draw in (perlin_mask, lambda *rest: moved_mask(disc[1], *rest)):
        with pytest.raises(RuntimeError, match="between 60.00% and 90.00% of the image.*--min_area"):
            draw(disc[1], keyed_rng(1), Area(0.6, 0.9))
    with pytest.raises(ValueError, match="mask of a real defect is empty"):
        moved_mask(np.zeros((8, 8), bool), disc[1], keyed_rng(1), WIDE)


def test_pixels_outside_the_label_are_the_sources_bytes_and_inside_the_samples():
    source, sample, label = noisy(seed=1), noisy(seed=2), np.zeros((40, 50), bool)
    label[5:20, 10:30] = True
    for feather in (0, 3):
        image = paste(source, sample, label, feather)
        assert image.dtype == np.uint8 and np.array_equal(image[~label], source[~label])
        assert np.array_equal(image[12, 20], sample[12, 20])
    assert np.array_equal(paste(source, sample, label, 0)[label], sample[label])


def test_the_feather_blends_from_the_labels_edge_inwards():
    source, sample = np.zeros((1, 9, 3), np.uint8), np.full((1, 9, 3), 120, np.uint8)
    label = np.zeros((1, 9), bool)
    label[0, 2:] = True
    assert paste(source, sample, label, 3)[0, :, 0].tolist() == [0, 0, 30, 60, 90, 120, 120, 120, 120]


def test_a_sample_of_another_size_or_a_negative_feather_is_refused():
    for sample, feather in ((noisy(41), 0), (noisy(), -1)):
        with pytest.raises(ValueError, match="expected RGB images and a label of one size"):
            paste(noisy(), sample, np.ones((40, 50), bool), feather)


def test_the_gate_refuses_too_little_change_and_areas_out_of_bounds_with_the_values():
    source, label = np.full((10, 10, 3), 100, np.uint8), np.zeros((10, 10), bool)
    label[:2] = True
    image = source.copy()
    image[:2] += 6
    image[2:] += 90  # outside the label: does not count
    gate = Gate(min_change=5, area=Area(0.1, 0.3))
    assert change_inside(source, image, label) == 6.0 and refusal(source, image, label, gate) is None
    assert refusal(source, image, label, gate._replace(min_change=7)) == (
        "the image changes by 6.0 grey levels inside the label, less than 7"
    )
    for area in (Area(0.21, 0.5), Area(0.01, 0.19)):
        assert refusal(source, image, label, gate._replace(area=area)).startswith(
            "the label covers 20.00% of the im"
        )


def test_a_texture_defect_mixes_a_changed_texture_with_the_image():
    image, texture = np.full((20, 30, 3), 200, np.uint8), noisy(16, 16)
    made = texture_defect(image, texture, keyed_rng(3))
    assert made.shape == image.shape and made.dtype == np.uint8 and made.std() > 5
    assert np.array_equal(made, texture_defect(image, texture, keyed_rng(3)))
    assert not np.array_equal(made, texture_defect(image, texture, keyed_rng(4)))


def test_the_codec_round_trip_keeps_what_the_codec_can_hold():
    flat = torch.full((2, 3, 16, 16), 0.5)
    assert torch.allclose(codec_round_trip(DctCodec(), flat), flat, atol=1e-5)
