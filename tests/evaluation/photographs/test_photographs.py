"""Parts of single photographs' scoring: tiles, masks, subjects, inputs, drawing."""

import numpy as np
import pytest

from dataset.constants import REAL_NAMES
from evaluation.photographs.drawing import labelled_heatmap, small
from evaluation.photographs.inputs import given_pictures, names_of
from evaluation.photographs.scorer import Joining, PhotographScorer, at_size, mask_of
from evaluation.photographs.subject import Subject, subject_of_class, subject_of_text
from evaluation.photographs.tiles import TiledMap, Tiling, starts
from evaluation.photographs.views import Place, Views
from forward_utils import prompts_of


@pytest.mark.parametrize("size", [(33, 32), (100, 70), (200, 33), (90, 20)])
def test_tiles_cover_a_picture_overlap_and_stay_inside(size):
    width, height = size
    boxes, covered = Tiling(32, 0.25).boxes(size), np.zeros((height, width), int)
    for box in boxes:
        assert 0 <= box.left and 0 <= box.top and box.right <= width and box.bottom <= height
        assert box.right - box.left == box.bottom - box.top == min(32, *size)
        covered[box.top : box.bottom, box.left : box.right] += 1
    assert covered.min() >= 1
    for begins in ({box.left for box in boxes}, {box.top for box in boxes}):
        begins = sorted(begins)
        assert all(
            after - before <= 0.75 * min(32, *size) for before, after in zip(begins, begins[1:], strict=False)
        )


def test_a_picture_that_is_no_larger_than_the_model_has_no_tiles():
    assert Tiling(32).boxes((32, 20)) == []
    assert starts(10, 10, 0.25) == [0]


def test_maps_of_tiles_join_to_the_map_they_were_cut_from():
    whole = np.add.outer(np.arange(40), np.arange(90)).astype(np.float32)
    boxes = Tiling(32).boxes((90, 40))
    tiled = TiledMap((90, 40), boxes)
    for box in boxes:
        tiled.add(box, whole[box.top : box.bottom, box.left : box.right])
    assert np.allclose(tiled.finish(), whole, atol=1e-3)


def test_a_seam_between_tiles_that_disagree_is_a_slope():
    boxes = Tiling(32, 0.5).boxes((48, 32))
    tiled = TiledMap((48, 32), boxes)
    for box, value in zip(boxes, (0.0, 1.0), strict=True):
        tiled.add(box, np.full((32, 32), value, np.float32))
    row = tiled.finish()[5]
    assert row[0] == 0 and row[-1] == 1 and np.abs(np.diff(row)).max() < 0.1


def test_a_mask_is_empty_exactly_where_its_picture_is_below_the_threshold():
    scores, head, levels = np.array([[10, 60], [20, 45]], np.float32), 0.5, 1
    # 0.5 * m / 100 + 0.25
    assert mask_of(scores, head, levels, 0.45).tolist() == [[False, True], [False, True]]
    assert not mask_of(scores, head, levels, 0.56).any()


def test_free_words_fill_the_templates_and_do_not_meet_a_class():
    subject = subject_of_text(" steel bolt ")
    assert subject == Subject("object", "steel bolt", "Industrial", None)
    name = subject.registered()
    assert REAL_NAMES[name] == {"object": "steel bolt"} and name == subject_of_text("steel bolt").registered()
    assert name != subject_of_text("steel bolt", "Medical").registered()
    assert prompts_of(name, "object").ids.equal(prompts_of(name, "object").ids)
    assert not prompts_of(name, "object").ids.equal(prompts_of("MVTec", "object").ids)


def test_a_class_has_its_data_sets_words_and_domain(monkeypatch):
    assert subject_of_class("bottle") == Subject("bottle", "dark bottle", "Industrial", "MVTec")
    assert subject_of_class("Brain").domain == "Medical"
    (
        subject_of_text("bolt").registered(),
        subject_of_text("nut").registered(),
    )  # classes "object" of no data set
    assert subject_of_class("object").text == "object"
    monkeypatch.setitem(REAL_NAMES, "VisA", {"bottle": "green bottle"})
    with pytest.raises(ValueError, match="several data sets have it: MVTec .*choose with --dataset"):
        subject_of_class("bottle")
    assert subject_of_class("bottle", "VisA").text == "green bottle"


def test_inputs_are_files_folders_and_patterns_each_picture_once(tmp_path):
    for name in ("a/1.png", "a/b/2.JPG", "a/.hidden.png", "a/out/heatmaps/1.png", "c.tiff", "d.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "b" / "loop").symlink_to(tmp_path / "a")
    inputs = [str(tmp_path / name) for name in ("a", "a/1.png", "*.t*", "d.txt")]
    pictures, notes = given_pictures(inputs, tmp_path / "a" / "out")
    assert [path.relative_to(tmp_path).as_posix() for path in pictures] == [
        "a/1.png",
        "a/b/2.JPG",
        "c.tiff",
        "d.txt",
    ]
    assert notes == []
    assert names_of(pictures) == ["a__1.png", "a__b__2.png", "c.png", "d.png"]
    for wrong in ("nothing", "*.gif"):
        with pytest.raises(FileNotFoundError, match="--input"):
            given_pictures([str(tmp_path / wrong)], tmp_path / "a" / "out")


@pytest.mark.parametrize("size", [(20, 24), (400, 300), (60, 900)])
def test_a_labelled_heatmap_keeps_the_photographs_pixels_and_aspect(size):
    width, height = size
    photograph = np.full((height, width, 3), 200, np.uint8)
    scores = np.zeros((height, width), np.float32)
    scores[0, 0] = 1
    drawn = labelled_heatmap(photograph, scores, (0, 1), ["score", "0.50000", "own scale"])
    assert drawn.shape[0] >= height and drawn.shape[1] >= width + 50
    assert (
        drawn[0, 0, 0] > drawn[0, 0, 2] and (drawn[1:height, 1:width, 2] > drawn[1:height, 1:width, 0]).all()
    )
    strip = drawn[:, width:].reshape(-1, 3)
    assert {tuple(pixel) for pixel in strip} >= {(20, 20, 20), (255, 255, 255), (128, 0, 0), (0, 0, 128)}


def test_maps_and_pictures_change_size_and_keep_their_aspect():
    assert at_size(np.ones((8, 8), np.float32), (30, 20)).shape == (20, 30)
    assert small(np.zeros((100, 400, 3), np.uint8), 40).shape == (10, 40, 3)
    assert small(np.zeros((10, 4), np.float32), 40).shape == (10, 4)


def test_a_control_that_shows_other_classes_gets_the_whole_data_set():
    asked = []
    for needs in (True, False):
        PhotographScorer(asked.append, 32, "cpu", needs).of(subject_of_class("bottle"))
    assert asked == ["MVTec", subject_of_class("bottle").registered()]


def test_tiles_come_in_any_batches_and_the_most_abnormal_one_speaks_for_the_picture():
    views, maps = Views([], 32, Tiling(32)), np.zeros((2, 32, 32), np.float32)
    joining = Joining(1, views)
    places = [Place(7, (48, 32), box) for box in views.boxes((48, 32))]
    assert joining.add(places[:1], maps[:1], [0.9], 1.0) == []
    (whole,) = joining.add(places[1:], maps[1:], [0.4], 1.0)
    assert (whole.number, whole.map.shape, whole.seconds) == (7, (32, 48), 2.0)
    assert whole.head == 0.9 and whole.score == pytest.approx(0.45)
