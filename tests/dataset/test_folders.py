"""What a scan of a folder takes, what it leaves out, and what it says of it: dataset.folders."""

import json
import logging
import os
import unicodedata

import numpy as np
import pytest
from PIL import Image

from dataset import constants, get_dataset
from dataset.folders import IMAGE_ENDINGS, Scan, is_normal, masks_of
from dataset.prepare import scan
from dataset.prepare.__main__ import main

LOGGER = logging.getLogger("test")


def draw(folder, *paths):
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 5), (255, 255, 255)).save(folder / path)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The folder of an own dataset with the class ring, in MVTec's layout."""
    for name, value in (
        ("CLASS_NAMES", ["ring"]),
        ("REAL_NAMES", {"ring": "ring"}),
        ("DATA_PATH", "own"),
        ("DOMAINS", "Industrial"),
    ):
        monkeypatch.setitem(getattr(constants, name), "Own", value)
    draw(tmp_path / "own", "ring/test/good/0.png", "ring/test/cut/0.png", "ring/ground_truth/cut/0_mask.png")
    return tmp_path / "own"


def listed(rows):
    return [(row["image_path"].removeprefix("ring/test/"), row.get("mask_path")) for row in rows]


def test_every_ending_is_one_pillow_decodes_and_opencv_reads(tmp_path):
    cv2 = pytest.importorskip("cv2")
    known = Image.registered_extensions()
    for ending in IMAGE_ENDINGS:
        assert known[ending] in Image.OPEN
        assert cv2.haveImageWriter(f"a{ending}") or ending == ".jfif"  # a JPEG under another name


@pytest.mark.parametrize(
    ("name", "normal"),
    [("good", True), ("OK", True), ("Normal", True), ("Non-Defective", True), ("defect free", True)]
    + [("no_anomaly", True), ("broken", False), ("not good", False), ("ko", False), ("goodness", False)],
)
def test_normal_folders_go_by_their_usual_names(name, normal):
    assert is_normal(name) is normal


def test_hidden_files_and_folders_are_none_and_all_else_that_is_left_out_is_said(own, caplog):
    draw(own, "ring/test/.ipynb_checkpoints/0.png", "ring/test/good/._0.png", "ring/test/good/1.webp")
    draw(own, "ring/test/stray.png", "ring/ground_truth/cut/9_mask.png", "cup/test/good/0.png")
    (own / "ring/test/good/Thumbs.db").write_text("x")
    (own / "ring/test/good/2.xcf").write_text("x")
    (own / "ring/test/good/3.png").symlink_to("nowhere.png")
    (own / "ring/test/dent").mkdir()
    draw(own, "ring/test/good/more/0.png")
    with caplog.at_level(logging.INFO):
        rows = scan("Own", own, LOGGER)
    assert listed(rows) == [
        ("cut/0.png", "ring/ground_truth/cut/0_mask.png"),
        ("good/0.png", None),
        ("good/1.webp", None),
        ("good/more/0.png", None),
    ]
    (line,) = [record.getMessage() for record in caplog.records]
    for text in (
        "4 pictures read, 1 of them anomalous",
        "2 left out, hidden (ring/test/.ipynb_checkpoints, ring/test/good/._0.png)",
        "1 left out, of ending .db (ring/test/good/Thumbs.db)",
        "1 left out, of ending .xcf",
        "1 left out, links to nothing (ring/test/good/3.png)",
        "1 left out, beside the folders of test (ring/test/stray.png)",
        "1 left out, masks of no picture (ring/ground_truth/cut/9_mask.png)",
        "folders without a picture: ring/test/dent",
        "cup are not among the dataset's classes",
    ):
        assert text in line
    assert caplog.records[0].levelno == logging.WARNING


def test_a_folder_all_of_which_is_read_needs_no_warning(own, caplog):
    (own / "ring/test/good/.DS_Store").write_text("x")
    with caplog.at_level(logging.INFO):
        scan("Own", own, LOGGER)
    (record,) = caplog.records
    assert (
        record.levelno == logging.INFO
        and "2 pictures read, 1 of them anomalous; 1 left out, hidden" in record.getMessage()
    )


def test_what_is_no_regular_file_is_left_out_without_waiting_for_it(own):
    os.mkfifo(own / "ring/test/good/1.png")
    (own / "ring/test/good/2.png").symlink_to("2.png")
    assert len(scan("Own", own, LOGGER)) == 2


@pytest.mark.parametrize(
    "masks",
    [["0/000.png", "0/001.png"], ["0_mask/a.png", "0_mask/b.bmp"], ["0_mask_1.png", "0_mask_2.png"]]
    + [["0_1.png", "0_2.png"], ["0_mask.png", "0_mask1.png"], ["0.png", "0/7.png"]],
)
def test_several_masks_of_a_picture_are_united(own, tmp_path, masks):
    (own / "ring/ground_truth/cut/0_mask.png").unlink()
    for number, mask in enumerate(masks):
        place = own / "ring/ground_truth/cut" / mask
        place.parent.mkdir(exist_ok=True)
        Image.fromarray(np.uint8([[255 * (column == number) for column in range(6)]] * 5)).save(place)
    (row, _) = scan("Own", own, LOGGER)
    assert sorted(row["mask_path"]) == [f"ring/ground_truth/cut/{mask}" for mask in masks]
    item = get_dataset("Own", 6, None, 0, "test", data_root=tmp_path)["ring"][0]
    assert item["mask"][0, 0].tolist() == [1, 1, 0, 0, 0, 0]


def test_a_mask_belongs_to_the_picture_of_its_whole_name_before_a_part_of_it(tmp_path):
    draw(tmp_path, "0_1.png", "0_2_mask.png", "0.png")
    found = masks_of(Scan(tmp_path), tmp_path, ["0", "0_1", "0_2"])
    assert {stem: [mask.name for mask in masks] for stem, masks in found.items()} == {
        "0": ["0.png"],
        "0_1": ["0_1.png"],
        "0_2": ["0_2_mask.png"],
    }


def test_a_class_folder_in_the_other_unicode_form_is_found(tmp_path, monkeypatch):
    for name, value in (("CLASS_NAMES", ["größe"]), ("DATA_PATH", "own"), ("DOMAINS", "Industrial")):
        monkeypatch.setitem(getattr(constants, name), "Own", value)
    draw(tmp_path / "own", unicodedata.normalize("NFD", "größe") + "/test/good/0.png")
    (row,) = scan("Own", tmp_path / "own", LOGGER)
    assert row["class_name"] == "größe"
    assert len(get_dataset("Own", 6, None, 0, "test", data_root=tmp_path)["größe"]) == 1


def test_both_commands_follow_a_linked_class_and_refuse_a_link_out_of_it(own, tmp_path):
    root = own.parent / "root"
    root.mkdir()
    (own / "ring").rename(tmp_path / "disk")
    own.rename(root / "own")
    (root / "own" / "ring").symlink_to(tmp_path / "disk")
    flags = ["--dataset", "Own", "--data_root", str(root), "--out", str(tmp_path / "out")]
    main(flags)
    assert len(get_dataset("Own", 6, None, 0, "test", data_root=root)["ring"]) == 2
    draw(tmp_path, "secret/1.png")
    (tmp_path / "disk/test/good/1.png").symlink_to(tmp_path / "secret/1.png")
    for call in (
        lambda: main([*flags, "--overwrite"]),
        lambda: get_dataset("Own", 6, None, 0, "test", data_root=root),
    ):
        with pytest.raises(ValueError, match="outside the data root"):
            call()


def test_links_that_stay_below_the_data_root_are_followed(own, tmp_path):
    draw(tmp_path, "store/1.png")
    (own / "ring/test/good/1.png").symlink_to(tmp_path / "store/1.png")
    (own / "ring/test/ok").symlink_to(tmp_path / "store")
    assert len(get_dataset("Own", 6, None, 0, "test", data_root=tmp_path)["ring"]) == 4


def test_a_picture_without_a_row_is_said_and_names_of_masks_are_none(own, tmp_path, caplog):
    main(["--dataset", "Own", "--data_root", str(tmp_path), "--out", str(tmp_path / "meta")])
    (tmp_path / "meta/Own/full-shot.jsonl").rename(own / "full-shot.jsonl")

    def said():
        caplog.clear()
        with caplog.at_level(logging.INFO):
            assert len(get_dataset("Own", 6, None, 0, "test", data_root=tmp_path)["ring"]) == 2
        return [record.getMessage() for record in caplog.records if "without a row" in record.getMessage()]

    assert said() == []
    draw(own, "ring/test/good/1.png", "ring/test/dent/0.png", "ring/test/good/.1.png")
    (line,) = said()
    assert "2 rows; 2 pictures without a row (ring/test/dent/0.png, ring/test/good/1.png)" in line
    assert "python -m dataset.prepare --dataset Own --overwrite" in line


def test_a_class_without_a_row_is_said(own, tmp_path, caplog, monkeypatch):
    monkeypatch.setitem(constants.CLASS_NAMES, "Own", ["ring", "cup"])
    rows = [{"image_path": "ring/test/good/0.png", "label": 0, "class_name": "ring"}]
    (own / "full-shot.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with caplog.at_level(logging.INFO):
        get_dataset("Own", 6, None, 0, "test", data_root=tmp_path)
    assert "classes without a row: cup" in caplog.text


def test_a_file_whose_name_would_forge_a_line_is_refused(own, tmp_path):
    draw(own, "ring/test/good/a\nb.png")
    with pytest.raises(
        ValueError, match=r"row 2: image_path is 'ring/test/good/a\\nb.png'|row 3: image_path is"
    ):
        get_dataset("Own", 6, None, 0, "test", data_root=tmp_path)
