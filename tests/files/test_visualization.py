"""Pictures: colours, file names, one PNG per image: files/pictures.py, files/names.py."""

import cv2
import numpy as np
import pytest
import torch
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

from files.names import picture_names, safe_name
from files.pictures import GAP, heatmap, outline, overlay, sheet, to_picture, visualize, write_png

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def normalised(colour, size=8):
    """A tensor [3, size, size] of one RGB colour, as the dataset gives it."""
    pixels = torch.tensor(colour)[:, None, None].expand(3, size, size) / 255
    return (pixels - torch.tensor(OPENAI_DATASET_MEAN)[:, None, None]) / torch.tensor(OPENAI_DATASET_STD)[
        :, None, None
    ]


def read_rgb(path):
    return cv2.imread(str(path))[..., ::-1]


def test_a_normalised_image_becomes_its_pixels_again():
    colour = (200, 100, 3)
    assert (to_picture(normalised(colour)) == colour).all()
    assert to_picture(normalised((510, -255, 0)))[0, 0].tolist() == [255, 0, 0]


def test_heatmaps_are_blue_at_the_low_and_red_at_the_high_end():
    picture = heatmap(np.array([[0.0, 1.0], [-5.0, 7.0]]), 0.0, 1.0)
    assert picture[0, 0].tolist() == picture[1, 0].tolist() == [0, 0, 128]
    assert picture[0, 1].tolist() == picture[1, 1].tolist() == [128, 0, 0]


def test_a_constant_map_is_drawn_without_a_division_by_zero():
    assert (heatmap(np.full((2, 2), 3.0), 3.0, 3.0) == [0, 0, 128]).all()


def test_an_overlay_mixes_map_and_picture():
    picture = np.full((2, 2, 3), 100, np.uint8)
    mixed = overlay(picture, np.zeros((2, 2)), 0, 1, opacity=0.25)
    assert mixed[0, 0].tolist() == [75, 75, 107]


def test_the_outline_of_the_true_defect_is_green_and_the_picture_stays_as_it_was():
    picture, mask = np.zeros((6, 6, 3), np.uint8), np.zeros((6, 6))
    mask[1:5, 1:5] = 1
    drawn = outline(picture, mask)
    assert drawn[1, 1].tolist() == list(GREEN) and not drawn[2, 2].any() and not drawn[0, 0].any()
    assert not picture.any()


def test_a_sheet_has_white_between_and_beside_its_pictures():
    cell = np.zeros((5, 5, 3), np.uint8)
    picture = sheet([[cell, cell], [cell]])
    assert picture.shape == (2 * (5 + GAP), 2 * (5 + GAP), 3)
    assert not picture[:5, :5].any()
    assert (picture[:, 5 : 5 + GAP] == 255).all() and (picture[5 + GAP :, 9:] == 255).all()


def test_red_stays_red_in_the_file(tmp_path):
    write_png(tmp_path / "new" / "red.png", np.full((2, 2, 3), RED, np.uint8))
    assert read_rgb(tmp_path / "new" / "red.png")[0, 0].tolist() == list(RED)


def test_a_picture_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "taken.png").mkdir()
    with pytest.raises(OSError, match="cannot write .*taken.png"):
        write_png(tmp_path / "taken.png", np.zeros((2, 2, 3), np.uint8))


def test_file_names_cannot_leave_the_folder_or_hide():
    for name in ("../../etc/passwd", "/absolute", "..", ".hidden", "a\\b", "name\0", "CON:", "à/é"):
        safe = safe_name(name)
        assert not set(safe) & set("/\\\0:") and not safe.startswith(".") and safe
    assert safe_name("mvtec_ad/bottle/000") == "mvtec_ad__bottle__000"
    names = ["a/b", "a__b", "a_/b", "a/_b", "a_/_b", "a~2f~b", "a b", "a:b", ".a", "~2e~a"]
    assert len({safe_name(name) for name in names}) == len(names)


def test_pictures_drop_their_images_ending_unless_two_images_differ_in_nothing_else():
    assert picture_names(["a/0.png", "b/0.bmp"]) == ["a__0.png", "b__0.png"]
    assert picture_names(["a/0.png", "a/0.bmp"]) == ["a__0.png.png", "a__0.bmp.png"]


@pytest.fixture
def predictions():
    """Two images of a class: (masks, maps, images), red pictures, the second one's corner scored high."""
    masks, maps = np.zeros((2, 1, 8, 8)), np.zeros((2, 8, 8), np.float32)
    masks[1, 0, :4, :4] = maps[1, :4, :4] = 1
    return masks, maps, [normalised(RED), normalised(RED)]


def test_each_image_gets_a_png_with_original_truth_and_heatmap(predictions, tmp_path):
    masks, maps, images = predictions
    folder = visualize(
        masks, maps, ["set/good/000.png", "set/bad/000.png"], tmp_path, "MVTec", "bottle", images
    )
    assert folder == tmp_path / "visualization" / "MVTec" / "bottle"
    assert sorted(path.name for path in folder.iterdir()) == ["set__bad__000.png", "set__good__000.png"]
    row = read_rgb(folder / "set__bad__000.png")
    original, truth, heat = (row[:8, left : left + 8] for left in (0, 8 + GAP, 16 + 2 * GAP))
    assert original[0, 0].tolist() == list(RED) and truth[0, 0].tolist() == list(GREEN)
    assert truth[7, 7].tolist() == list(RED)
    assert heat[0, 0, 0] > 180 and heat[0, 0, 2] == 0 and heat[7, 7, 2] == 64  # red over red; blue over red


def test_one_colour_scale_serves_all_images_of_a_class(predictions, tmp_path):
    masks, maps, images = predictions
    folder = visualize(masks, maps, ["a.png", "b.png"], tmp_path, "MVTec", "bottle", images)
    nothing_high = read_rgb(folder / "a.png")[:8, 16 + 2 * GAP : 24 + 2 * GAP]
    assert (nothing_high[..., 2] == 64).all()


def test_files_that_differ_in_their_ending_only_get_a_picture_each(predictions, tmp_path):
    masks, maps, images = predictions
    folder = visualize(masks, maps, ["good/000.png", "good/000.bmp"], tmp_path, "BTAD", "01", images)
    assert len(list(folder.iterdir())) == 2


def test_any_dataset_can_be_drawn_also_without_images(predictions, tmp_path):
    masks, maps, _ = predictions
    folder = visualize(masks[:, 0], maps, ["a", "b"], tmp_path, "Colon/../set", "CVC-300")
    assert tmp_path in folder.resolve().parents
    assert read_rgb(folder / "b.png")[:8, :8].shape == (8, 8, 3)
    assert (
        read_rgb(folder / "b.png")[0, 0].tolist() == list(GREEN)
        and read_rgb(folder / "b.png")[7, 7, 2] == 128
    )


@pytest.mark.parametrize("letter", ["a", "ö", "漢", "🜁", "_", "/x"])
def test_names_fit_a_file_system_however_long_and_wide_the_users_are(tmp_path, letter):
    long = [f"data/{letter * 300}/{end}.png" for end in ("000", "001")]
    names = picture_names(long)
    assert len(set(names)) == 2 and all(len(name.encode()) <= 143 for name in names)
    for name in [*names, safe_name(letter * 300)]:
        (tmp_path / name).touch()
    assert safe_name("a" * 120) == "a" * 120 and safe_name("a" * 121).startswith("a" * 100)
