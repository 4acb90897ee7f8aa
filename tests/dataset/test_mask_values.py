"""What counts as defect: mask_values' two readings, AA-CLIP's pinned for every kind of file its sets could hold."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from dataset.image_files import Reading, read_mask
from dataset.mask_values import (
    ROBUST,
    UPSTREAM,
    MaskPixels,
    has_soft_edges,
    mask_pixels,
    mask_reading_of,
    robust_defect,
    upstream_defect,
)

SQUARE = np.zeros((48, 48), np.uint8)
SQUARE[13:29, 13:29] = 255


def ellipse(blur=1.0):
    """A white ellipse whose edge was smoothed, as drawing programs do."""
    drawn = cv2.ellipse(np.zeros((64, 64), np.uint8), (32, 32), (20, 12), 30, 0, 360, 255, -1)
    return cv2.GaussianBlur(drawn, (0, 0), blur)


def both(path, array_or_image, **how):
    """(upstream's, robust) anomalous pixels of a mask saved at `path`."""
    image = array_or_image
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    image.save(path, **how)
    return tuple(read_mask(str(path), image.size, "row", Reading(kind)) for kind in (UPSTREAM, ROBUST))


def palette(numbers, colours):
    image = Image.fromarray(np.asarray(numbers, np.uint8), "P")
    image.putpalette([value for colour in colours for value in colour])
    return image


def test_the_eleven_sets_are_read_as_aa_clip_reads_them_and_others_robustly():
    eleven = ["MVTec", "VisA", "BTAD", "MPDD", "Brain", "Liver", "Retina"]
    eleven += ["Colon_clinicDB", "Colon_colonDB", "Colon_Kvasir", "Colon_cvc300"]
    assert {mask_reading_of(name) for name in eleven} == {UPSTREAM}
    assert mask_reading_of("Own") == mask_reading_of("DemoA") == ROBUST
    assert mask_reading_of("Own", UPSTREAM) == UPSTREAM and mask_reading_of("MVTec", ROBUST) == ROBUST
    with pytest.raises(ValueError, match="mask_reading is 'other': expected upstream or robust"):
        mask_reading_of("Own", "other")


def test_aa_clips_reading_of_grey_masks_counts_every_value_that_is_not_0(tmp_path):
    grey = np.array([[0, 1, 2], [127, 128, 255]], np.uint8)
    upstream, _ = both(tmp_path / "grey.png", grey)
    assert upstream.tolist() == [[False, True, True], [True, True, True]]


def test_aa_clips_reading_of_sixteen_bit_masks_counts_every_value_that_is_not_0(tmp_path):
    deep = np.kron(np.array([[0, 1, 255], [256, 300, 65535]], np.uint16), np.ones((4, 4), np.uint16))
    upstream, robust = both(tmp_path / "deep.png", deep)
    assert np.array_equal(upstream, deep > 0) and np.array_equal(robust, deep > 0)


def test_aa_clips_reading_of_palette_masks_goes_by_the_brightness_of_colours(tmp_path):
    colours = [(0, 0, 0), (128, 0, 0), (0, 0, 1), (0, 0, 0)]
    labels = np.kron([[0, 1], [2, 3]], np.ones((4, 4), int))
    upstream, robust = both(tmp_path / "labels.png", palette(labels, colours))
    assert np.array_equal(upstream, labels == 1)  # a blue of 1 is black as grey
    assert np.array_equal(robust, labels > 0)


def test_aa_clips_reading_of_jpeg_masks_counts_their_noise_and_the_robust_one_does_not(tmp_path):
    upstream, robust = both(tmp_path / "square.jpg", SQUARE, quality=60)
    assert robust.sum() == 256 and np.array_equal(robust, SQUARE > 0)
    decoded = np.asarray(Image.open(tmp_path / "square.jpg").convert("L"))
    assert np.array_equal(upstream, decoded != 0) and upstream.sum() > 300


def test_the_colour_mask_and_the_alpha_channel_as_aa_clip_reads_them(tmp_path):
    colours = np.zeros((1, 3, 4), np.uint8)
    colours[0, 0] = (0, 0, 1, 255)
    colours[0, 1] = (255, 0, 0, 0)
    upstream, robust = both(tmp_path / "colour.png", colours)
    assert upstream.tolist() == [[False, True, False]]  # alpha is not looked at
    assert robust.tolist() == [[True, False, False]]  # transparent pixels show nothing


@pytest.mark.parametrize("values", [(100, 255), (1, 2), (50, 200), (1, 255), (10, 20, 30, 255)])
def test_every_label_of_a_lossless_mask_counts_however_dark_it_is_beside_another(tmp_path, values):
    labels = np.zeros((40, 40), np.uint8)
    for number, value in enumerate(values):
        labels[2 + 8 * number : 8 + 8 * number, 4:20] = value
    _, robust = both(tmp_path / "labels.png", labels)
    assert np.array_equal(robust, labels > 0)


def test_labels_that_touch_and_lines_of_one_pixel_count_too(tmp_path):
    labels = np.zeros((40, 40), np.uint8)
    labels[5:15, 5:30], labels[15:25, 5:30], labels[35, 2:38] = 100, 255, 60
    _, robust = both(tmp_path / "labels.png", labels)
    assert np.array_equal(robust, labels > 0)


@pytest.mark.parametrize("blur", [0.6, 1.0, 3.0])
def test_the_dark_half_of_a_soft_edge_does_not_count(tmp_path, blur):
    soft = ellipse(blur)
    upstream, robust = both(tmp_path / "soft.png", soft)
    assert np.array_equal(robust, soft > 127) and np.array_equal(upstream, soft > 0)


def test_soft_edges_made_by_resizing_are_known_too():
    small = cv2.ellipse(np.zeros((20, 20), np.uint8), (10, 10), (6, 4), 30, 0, 360, 255, -1)
    for method in (cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_AREA):
        assert has_soft_edges(cv2.resize(small, (130, 130), interpolation=method))
        assert has_soft_edges(cv2.resize(ellipse(), (40, 40), interpolation=method))


def test_noise_of_a_jpeg_that_was_kept_as_png_does_not_count(tmp_path):
    for quality in (40, 75, 90):
        file = io.BytesIO()
        Image.fromarray(ellipse(0.5)).save(file, "JPEG", quality=quality)
        noisy = Image.open(file).convert("L")
        _, robust = both(tmp_path / "noisy.png", noisy)
        assert np.array_equal(robust, np.asarray(noisy) > 127)


def test_a_mask_without_a_bright_value_counts_all_of_it_or_half_of_its_brightest_if_lossy(tmp_path):
    _, numbers = both(tmp_path / "numbers.png", (SQUARE > 0).astype(np.uint8))
    assert np.array_equal(numbers, SQUARE > 0)
    _, dark = both(tmp_path / "dark.jpg", (SQUARE > 0).astype(np.uint8) * 90, quality=60)
    assert np.array_equal(dark, SQUARE > 0)


@pytest.mark.parametrize(
    ("colours", "numbers", "expected"),
    [
        ([(255, 255, 255), (0, 0, 0)], [[0, 1]], [[True, False]]),  # white may be number 0
        ([(0, 0, 0), (0, 0, 0), (9, 9, 9)], [[0, 1, 2]], [[False, True, True]]),  # labels without a colour
        ([(200, 200, 200), (255, 0, 0)], [[0, 1]], [[False, True]]),  # no black: number 0 is background
        ([(255, 255, 255), (0, 0, 0)], [[0, 0]], [[True, True]]),
        ([(0, 0, 0), (255, 255, 255)], [[0, 0]], [[False, False]]),
    ],
)
def test_a_palettes_background_is_black_or_else_number_0(tmp_path, colours, numbers, expected):
    _, robust = both(tmp_path / "palette.png", palette(numbers, colours))
    assert robust.tolist() == expected


def test_a_mask_in_the_alpha_channel_counts_where_the_colours_say_nothing(tmp_path):
    for colour in (0, 255):
        channels = np.full((48, 48, 4), colour, np.uint8)
        channels[..., 3] = SQUARE
        _, robust = both(tmp_path / "alpha.png", channels)
        assert np.array_equal(robust, SQUARE > 0)
    photo = np.random.default_rng(0).integers(1, 256, (48, 48, 4), np.uint8)  # a cut-out photograph
    photo[..., 3] = SQUARE
    assert np.array_equal(both(tmp_path / "cut.png", photo)[1], SQUARE > 0)
    opaque = np.dstack([SQUARE] * 3 + [np.full_like(SQUARE, 255)])
    assert np.array_equal(both(tmp_path / "opaque.png", opaque)[1], SQUARE > 0)


def test_colours_of_sixteen_bits_keep_their_lowest_labels(tmp_path):
    labels = np.zeros((16, 16, 3), np.uint16)
    labels[2:6, 2:6, 0], labels[9:14, 9:14, 2] = 1, 65535
    cv2.imwrite(str(tmp_path / "deep.png"), labels)
    robust = read_mask(str(tmp_path / "deep.png"), (16, 16), "row")
    assert np.array_equal(robust, labels.any(axis=-1))


@pytest.mark.parametrize("mode", ["1", "I", "F"])
def test_masks_of_one_bit_or_thirty_two_count_what_is_not_0(tmp_path, mode):
    values = {"1": SQUARE > 0, "I": (SQUARE > 0) * np.int32(70000), "F": (SQUARE > 0) * np.float32(0.25)}[
        mode
    ]
    _, robust = both(tmp_path / "mask.tiff", values)
    assert np.array_equal(robust, SQUARE > 0)


def test_values_that_are_not_numbers_are_refused():
    with pytest.raises(ValueError, match="not numbers"):
        robust_defect(MaskPixels(np.array([[0.0, np.nan]]), 1.0, False))


def test_jpeg_compression_is_known_inside_tiff_and_webp(tmp_path):
    for name, how, lossy in (
        ("a.tiff", {"compression": "jpeg"}, True),
        ("b.tiff", {}, False),
        ("c.webp", {"quality": 50}, True),
        ("d.webp", {"lossless": True}, False),
        ("e.png", {}, False),
    ):
        Image.fromarray(SQUARE).save(tmp_path / name, **how)
        with Image.open(tmp_path / name) as mask:
            assert mask_pixels(mask, str(tmp_path / name)).is_lossy == lossy


def test_both_readings_of_a_mask_of_two_values_are_one():
    image = Image.fromarray(SQUARE)
    assert np.array_equal(upstream_defect(image), robust_defect(mask_pixels(image, "")))
