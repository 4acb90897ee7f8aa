"""Decoding pictures with their masks: orientation, sizes, frames, limits, bit depths."""

import struct

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from dataset import image_files
from dataset.image_files import Header, Reading, header_of, read_image, read_pair, turn_of_mask
from dataset.jsonl import Sample
from dataset.mask_values import UPSTREAM

WIDE = np.zeros((12, 20), np.uint8)  # upright
WIDE[2:5, 3:9] = 255
# what a camera stores so that the viewer's turn gives the upright picture
STORED = {
    1: WIDE,
    2: WIDE[:, ::-1],
    3: WIDE[::-1, ::-1],
    4: WIDE[::-1],
    5: WIDE.T,
    6: np.rot90(WIDE),
    7: WIDE[::-1, ::-1].T,
    8: np.rot90(WIDE, -1),
}


def exif(orientation):
    found = Image.Exif()
    found[0x0112] = orientation
    return found


def pair(folder, orientation, mask, picture=None, mask_exif=None):
    """A sample whose picture is white where its upright mask is."""
    stored = STORED[orientation] if picture is None else picture
    rgb = Image.fromarray(np.ascontiguousarray(np.dstack([stored] * 3)))
    rgb.save(folder / "picture.jpg", exif=exif(orientation), quality=95)
    how = {"exif": mask_exif} if mask_exif else {}
    Image.fromarray(np.ascontiguousarray(mask)).save(folder / "mask.png", **how)
    return Sample(str(folder / "picture.jpg"), str(folder / "mask.png"), 1, "ring", "picture.jpg", "rows:1")


def agree(sample, reading=None):
    picture, mask = read_pair(sample, reading)
    bright = np.asarray(picture.convert("L")) > 127
    return bright.shape == mask.shape and (bright != mask).mean() < 0.05


@pytest.mark.parametrize("orientation", STORED)
def test_a_turned_picture_meets_a_mask_drawn_on_the_upright_picture(tmp_path, orientation):
    sample = pair(tmp_path, orientation, WIDE)
    picture, _ = read_pair(sample)
    assert picture.size == (20, 12) and agree(sample)


@pytest.mark.parametrize("orientation", STORED)
def test_a_turned_picture_meets_a_mask_drawn_on_the_stored_pixels(tmp_path, orientation):
    sample = pair(tmp_path, orientation, STORED[orientation])
    assert agree(sample, Reading(as_stored=True))
    if orientation >= 5:
        assert agree(sample)  # the sizes tell


@pytest.mark.parametrize("orientation", STORED)
def test_a_mask_with_an_orientation_of_its_own_is_turned_by_it(tmp_path, orientation):
    sample = pair(tmp_path, orientation, STORED[orientation], mask_exif=exif(orientation))
    assert agree(sample)
    if orientation >= 5:  # a tag that was kept when the pixels were turned
        assert agree(pair(tmp_path, orientation, WIDE, mask_exif=exif(orientation)))


def test_aa_clips_reading_leaves_pictures_and_masks_as_stored(tmp_path):
    sample = pair(tmp_path, 6, STORED[6])
    picture, mask = read_pair(sample, Reading(UPSTREAM))
    assert picture.size == (12, 20) and np.array_equal(mask, STORED[6] > 0)


def test_a_mask_that_fits_neither_way_is_refused_with_both_sizes_and_the_orientation(tmp_path):
    sample = pair(tmp_path, 6, np.zeros((12, 22), np.uint8))
    with pytest.raises(
        ValueError, match=r"is 22x12 pixels and its image is 20x12 \(stored as 12x20, .* EXIF orientation 6"
    ):
        read_pair(sample)


def test_aa_clips_reading_takes_a_mask_of_another_size_where_both_are_resized(tmp_path):
    sample = pair(tmp_path, 1, np.full((14, 20), 255, np.uint8))
    assert read_pair(sample, Reading(UPSTREAM), any_size=True)[1].shape == (14, 20)
    with pytest.raises(ValueError, match="20x14 pixels and its image is 20x12"):
        read_pair(sample, Reading(UPSTREAM))
    with pytest.raises(ValueError, match="20x14 pixels and its image is 20x12"):
        read_pair(sample, any_size=True)


def test_several_masks_of_a_picture_are_united(tmp_path):
    sample = pair(tmp_path, 1, WIDE)
    other = np.zeros_like(WIDE)
    other[8:10, 15:18] = 7
    Image.fromarray(other).save(tmp_path / "other.png")
    _, mask = read_pair(sample._replace(more_masks=(str(tmp_path / "other.png"),)))
    assert np.array_equal(mask, (WIDE > 0) | (other > 0))


@pytest.mark.parametrize(
    ("mask", "image", "as_stored", "turn"),
    [
        (Header((20, 12)), Header((20, 12)), False, 1),
        (Header((12, 20)), Header((20, 12)), False, None),
        (Header((20, 12)), Header((12, 20), 6), False, 1),
        (Header((12, 20)), Header((12, 20), 6), False, 6),
        (Header((9, 9)), Header((9, 9), 6), False, 1),
        (Header((9, 9)), Header((9, 9), 6), True, 6),
        (Header((9, 9), 8), Header((9, 9), 6), True, 8),
        (Header((9, 8)), Header((9, 9), 6), False, None),
    ],
)
def test_how_a_mask_is_turned_follows_from_the_headers(mask, image, as_stored, turn):
    assert turn_of_mask(mask, image, as_stored) == turn


def test_orientation_in_tiff_and_png_files_is_applied_once(tmp_path):
    upright = Image.fromarray(WIDE)
    for name, how in (("a.tiff", {"tiffinfo": {0x0112: 6}}), ("a.png", {"exif": exif(6)})):
        Image.fromarray(np.ascontiguousarray(STORED[6])).save(tmp_path / name, **how)
        assert np.array_equal(np.asarray(read_image(str(tmp_path / name), "row").convert("L")), upright)


def test_a_header_is_read_without_decoding_pixels(tmp_path, monkeypatch):
    Image.fromarray(WIDE).save(tmp_path / "a.png")
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("pixels were decoded"))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("pixels were decoded"))
    assert header_of("image", str(tmp_path / "a.png"), "row").size == (20, 12)


@pytest.mark.parametrize("name", ["frames.gif", "frames.png", "frames.webp", "frames.tiff"])
def test_files_of_several_frames_are_refused_with_their_number(tmp_path, name):
    frames = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (10, 200, 90)]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    with pytest.raises(
        ValueError, match=rf"row: image .*{name}.* holds 3 frames or pages: .*save one of them"
    ):
        read_image(str(tmp_path / name), "row")


def test_a_tiffs_preview_and_a_cameras_small_versions_are_no_frames(tmp_path):
    big, small = (Image.fromarray(np.full((side, side, 3), 90, np.uint8)) for side in (32, 8))
    big.save(tmp_path / "a.mpo", save_all=True, append_images=[small])
    assert read_image(str(tmp_path / "a.mpo"), "row").size == (32, 32)
    with TiffImagePlugin.AppendingTiffWriter(str(tmp_path / "a.tiff"), new=True) as file:
        big.save(file, format="TIFF")
        file.newFrame()
        small.save(file, format="TIFF", tiffinfo={254: 1})
    assert Image.open(tmp_path / "a.tiff").n_frames == 2
    assert read_image(str(tmp_path / "a.tiff"), "row").size == (32, 32)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_two_hundred_megapixels_are_read_and_more_than_the_limit_are_named_as_such(tmp_path, monkeypatch):
    Image.new("1", (14200, 14200), 1).save(tmp_path / "big.png")
    assert header_of("image", str(tmp_path / "big.png"), "row").size == (14200, 14200)
    monkeypatch.setattr(image_files, "PIXEL_LIMIT", 100)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for size, said in (((11, 10), "is 11x10 pixels"), ((40, 40), "has over 200 pixels")):
        Image.new("L", size).save(tmp_path / "small.png")
        with pytest.raises(ValueError, match=rf"row: image .*small\.png' {said}, more than .* scale it down"):
            read_image(str(tmp_path / "small.png"), "row")


def test_float_pictures_are_refused_without_calling_them_damaged(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(ValueError, match="mode 'F', .* 8 or 16 bits") as caught:
        read_image(str(tmp_path / "float.tiff"), "row")
    assert "copy the file again" not in str(caught.value)


def test_files_that_pillow_would_hand_to_another_program_are_refused(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *a, **b: pytest.fail("ghostscript was run"))
    with pytest.raises(ValueError, match="cannot read image"):
        read_image(str(tmp_path / "a.png"), "row")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_hide_an_intact_picture(tmp_path):
    Image.fromarray(np.dstack([WIDE] * 3)).save(
        tmp_path / "a.jpg", exif=b"Exif\0\0II*\0" + struct.pack("<I", 10**6)
    )
    assert read_image(str(tmp_path / "a.jpg"), "row").size == (20, 12)


def test_sixteen_bit_pgm_keeps_its_upper_eight_bits(tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5 2 1 65535\n" + struct.pack(">HH", 0x8001, 0xFFFF))
    assert np.asarray(read_image(str(tmp_path / "a.pgm"), "row").convert("L")).tolist() == [[128, 255]]
