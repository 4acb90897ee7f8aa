"""The demo datasets: layout, twins, masks, names."""

import hashlib
import json
import sys
from itertools import combinations

import cv2
import numpy as np
import pytest

from dataset.demo_names import DEMO_DOMAINS, DEMO_REAL_NAMES
from demo_world import photographs, render_sets
from demo_world.photographs import PHOTO_CLASSES, render_photo
from demo_world.product_pictures import render_line_picture
from demo_world.render_sets import Counts, main, picture_rng, render_demo
from demo_world.rendering.product_lines import PRODUCT_LINES
from demo_world.rendering.twins import MASK_SHARE, MASK_THRESHOLD, damage_twin, difference_mask

FEW = Counts(train_good=1, test_good=1, test_defective=3)
LINES = [(name, class_name) for name, lines in PRODUCT_LINES.items() for class_name in lines]
PHOTOS = [(name, class_name) for name, classes in PHOTO_CLASSES.items() for class_name in classes]


def digest(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.png"))
    }


def assert_mask_is_where_the_twins_differ(picture, twin, mask):
    difference = cv2.absdiff(picture, twin).max(2)
    assert set(np.unique(mask)) == {0, 255}
    assert difference[mask == 0].max() <= MASK_THRESHOLD
    assert difference[mask > 0].mean() > 2 * MASK_THRESHOLD
    assert MASK_SHARE[0] <= (mask > 0).mean() <= MASK_SHARE[1]


@pytest.mark.parametrize(("name", "class_name"), LINES)
def test_a_defective_picture_equals_its_twin_outside_the_mask(name, class_name):
    for defect in PRODUCT_LINES[name][class_name].defects:
        rng = picture_rng(0, name, class_name, defect)
        assert_mask_is_where_the_twins_differ(*render_line_picture(name, class_name, 96, rng, defect))


@pytest.mark.parametrize(("name", "class_name"), PHOTOS)
def test_a_defective_photograph_equals_its_twin_outside_the_mask(name, class_name):
    pytest.importorskip("skimage")
    for defect in PHOTO_CLASSES[name][class_name]:
        rng = picture_rng(0, name, class_name, defect)
        assert_mask_is_where_the_twins_differ(*render_photo(name, class_name, 96, rng, defect))


def test_a_black_and_white_photograph_gets_defects_without_colour():
    pytest.importorskip("skimage")
    picture, twin, mask = render_photo("DemoPhoto", "brick", 96, picture_rng(0, "stain"), "stain")
    spread = np.ptp(picture[mask > 0].mean(0)) - np.ptp(twin[mask > 0].mean(0))
    assert abs(spread) < 2.0


def test_a_normal_picture_is_its_own_twin():
    picture, twin, mask = render_line_picture("DemoB", "gear", 64, np.random.default_rng(0))
    assert np.array_equal(picture, twin) and not mask.any()


def test_the_folders_are_those_of_mvtec(tmp_path):
    folder = render_demo("DemoA", tmp_path, seed=1, size=64, counts=FEW)
    assert folder == tmp_path / "DemoA"
    assert {path.name for path in folder.iterdir() if path.is_dir()} == set(DEMO_REAL_NAMES["DemoA"])
    for class_name, line in PRODUCT_LINES["DemoA"].items():
        place = folder / class_name
        assert (place / "train/good/000.png").is_file() and (place / "test/good/000.png").is_file()
        for defect in (kind.replace(" ", "_") for kind in line.defects[:3]):
            picture = cv2.imread(str(place / "test" / defect / "000.png"))
            mask = cv2.imread(str(place / "ground_truth" / defect / "000_mask.png"), cv2.IMREAD_UNCHANGED)
            assert picture.shape == (64, 64, 3)
            assert mask.shape == (64, 64) and set(np.unique(mask)) == {0, 255}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_ones(tmp_path):
    first = digest(render_demo("DemoB", tmp_path / "first", seed=3, size=64, counts=FEW))
    assert first == digest(render_demo("DemoB", tmp_path / "again", seed=3, size=64, counts=FEW))
    other = digest(render_demo("DemoB", tmp_path / "other", seed=4, size=64, counts=FEW))
    assert other.keys() == first.keys() and not set(other.values()) & set(first.values())


def test_more_pictures_per_class_leave_the_earlier_ones_as_they_were(tmp_path):
    few = digest(render_demo("DemoA", tmp_path / "few", size=64, counts=Counts(0, 1, 1)))
    more = digest(render_demo("DemoA", tmp_path / "more", size=64, counts=Counts(0, 2, 1)))
    assert len(more) > len(few) and few.items() <= more.items()


def test_a_finished_rendering_is_kept_and_other_settings_replace_it(tmp_path):
    folder = render_demo("DemoA", tmp_path, size=64, counts=Counts(0, 1, 0))
    picture = folder / "wood/test/good/000.png"
    before = picture.stat().st_mtime_ns
    render_demo("DemoA", tmp_path, size=64, counts=Counts(0, 1, 0))
    assert picture.stat().st_mtime_ns == before
    render_demo("DemoA", tmp_path, size=72, counts=Counts(0, 1, 0))
    assert cv2.imread(str(picture)).shape == (72, 72, 3)


def test_an_interrupted_rendering_is_done_again(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(render_sets, "_write_png", interrupted)
    with pytest.raises(KeyboardInterrupt):
        render_demo("DemoA", tmp_path, size=64, counts=Counts(0, 1, 0))
    monkeypatch.undo()
    folder = render_demo("DemoA", tmp_path, size=64, counts=Counts(0, 1, 0))
    assert len(digest(folder)) == len(PRODUCT_LINES["DemoA"])


def test_a_folder_of_other_origin_is_left_alone(tmp_path):
    (tmp_path / "DemoA").mkdir()
    (tmp_path / "DemoA/mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="another --out"):
        render_demo("DemoA", tmp_path, size=64, counts=FEW)
    assert (tmp_path / "DemoA/mine.txt").read_text() == "keep"


def test_photographs_are_rendered_from_the_command_line_for_testing_only(tmp_path):
    pytest.importorskip("skimage")
    main(
        [
            "--name",
            "DemoPhotoMed",
            "--out",
            str(tmp_path),
            "--size",
            "64",
            "--test_good",
            "1",
            "--test_defective",
            "2",
        ]
    )
    places = {path.parts[-3] for path in (tmp_path / "DemoPhotoMed").rglob("*.png")}
    assert places == {"test", "ground_truth"}
    assert json.loads((tmp_path / "DemoPhotoMed" / render_sets.STAMP).read_text())["complete"] is True


def test_the_rendered_sets_share_neither_classes_nor_things_nor_kinds_of_defects():
    for first, second in combinations(PRODUCT_LINES, 2):
        ours, theirs = (PRODUCT_LINES[name] for name in (first, second))
        kinds, other_kinds = (
            {kind for line in one.values() for kind in line.defects} for one in (ours, theirs)
        )
        things, other_things = ({line.scene.name for line in one.values()} for one in (ours, theirs))
        assert not set(ours) & set(theirs) and not things & other_things and not kinds & other_kinds
    assert {name: len(lines) for name, lines in PRODUCT_LINES.items()} == {
        "DemoA": 8,
        "DemoB": 8,
        "DemoC": 16,
    }


def test_demo_c_has_forty_test_pictures_a_class_and_is_rendered_by_name_alone(tmp_path, monkeypatch):
    rendered = []
    monkeypatch.setattr(render_sets, "render_demo", lambda name, *rest: rendered.append((name, *rest)))
    main(["--out", str(tmp_path)])
    assert [name for name, *_ in rendered] == ["DemoA", "DemoB", "DemoPhoto", "DemoPhotoMed"]
    assert all(counts == Counts(8, 14, 14) for *_, counts in rendered)
    rendered.clear()
    main(["--name", "DemoC", "--out", str(tmp_path)])
    main(["--name", "DemoC", "--out", str(tmp_path), "--test_good", "3"])
    assert [counts for *_, counts in rendered] == [Counts(8, 20, 20), Counts(8, 3, 20)]
    pictures = list(render_sets.plan({"coin": PRODUCT_LINES["DemoC"]["coin"].defects}, rendered[0][-1]))
    assert sum(place.startswith("test/") for _, place, *_ in pictures) == 40


def test_every_rendered_class_has_a_real_name_and_every_dataset_a_domain():
    rendered = {
        **{name: set(lines) for name, lines in PRODUCT_LINES.items()},
        **{name: set(classes) for name, classes in PHOTO_CLASSES.items()},
    }
    assert rendered == {name: set(classes) for name, classes in DEMO_REAL_NAMES.items()}
    assert set(DEMO_DOMAINS) == set(rendered) == set(render_sets.demo_names())


def test_the_real_name_of_a_product_line_says_what_is_rendered():
    for name, class_name in LINES:
        scene = PRODUCT_LINES[name][class_name].scene
        words = DEMO_REAL_NAMES[name][class_name]
        assert scene.name in words and scene.colour in words and (scene.material or "") in words


def test_the_mask_is_the_closed_difference_above_the_threshold():
    twin = np.full((64, 64, 3), 100, np.uint8)
    picture = twin.copy()
    picture[20:30, 20:30, 1] += MASK_THRESHOLD + 1
    picture[25, 25] = 100  # a one-pixel gap is closed
    picture[50, 50] += MASK_THRESHOLD  # not above the threshold
    expected = np.zeros((64, 64), np.uint8)
    expected[20:30, 20:30] = 255
    assert np.array_equal(difference_mask(picture, twin), expected)


def test_a_defect_that_never_becomes_visible_is_an_error_with_a_remedy():
    twin = np.zeros((64, 64, 3), np.uint8)
    with pytest.raises(RuntimeError, match="'fog' on DemoA/wood.*larger --size"):
        damage_twin(twin, lambda extent, rng: twin, np.random.default_rng(0), "'fog' on DemoA/wood")


def test_bad_sizes_counts_and_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match="size is 32"):
        render_demo("DemoA", tmp_path, size=32)
    with pytest.raises(ValueError, match="test_good is -1"):
        Counts(test_good=-1)
    with pytest.raises(ValueError, match="DemoZ"):
        render_demo("DemoZ", tmp_path)


def test_without_scikit_image_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    photographs.load_photo.cache_clear()
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(ImportError, match="pip install scikit-image"):
        render_demo("DemoPhoto", tmp_path, size=64, counts=FEW)
