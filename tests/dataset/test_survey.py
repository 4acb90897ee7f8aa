"""What every command says of a data set's files and rows before it decodes the first: survey."""

import json
import logging

import numpy as np
import pytest
from PIL import Image

from dataset import get_dataset, register_dataset
from dataset.image_files import Reading
from dataset.jsonl import Sample
from dataset.mask_values import UPSTREAM
from dataset.survey import headers_of, look_at_files


@pytest.fixture
def own(tmp_path):
    """Function (rows) -> data root of data set Own, class ring; forgotten afterwards."""

    def declare(rows):
        (tmp_path / "own").mkdir(exist_ok=True)
        (tmp_path / "own" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        register_dataset("Own", "own", "Industrial", {"ring": "ring"}, tmp_path / "own" / "rows.jsonl")
        return tmp_path

    return declare


def save(path, size=(16, 12), orientation=None, value=90):
    path.parent.mkdir(parents=True, exist_ok=True)
    how = {}
    if orientation:
        how["exif"] = Image.Exif()
        how["exif"][0x0112] = orientation
    Image.new("RGB", size, (value,) * 3).save(path, **how)
    return str(path)


def mask(path, size=(16, 12), value=255):
    pixels = np.zeros(size[::-1], np.uint8)
    pixels[3:6, 4:8] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return str(path)


def sample(folder, number, mask_size=None, **picture):
    image = save(folder / f"{number}.jpg", **picture)
    own = None if mask_size is None else mask(folder / f"{number}_mask.png", mask_size)
    return Sample(image, own, int(own is not None), "ring", f"{number}.jpg", f"rows:{number}")


def said(caplog, samples, reading=None, **options):
    caplog.clear()
    caplog.set_level(logging.INFO)
    found = look_at_files(samples, "Own", reading or Reading(), logging.getLogger("test"), **options)
    return found, caplog.text


def test_sizes_are_compared_before_the_first_image_and_all_files_are_named_at_once(tmp_path, caplog):
    samples = [sample(tmp_path, 0, (16, 12)), sample(tmp_path, 1, (16, 14)), sample(tmp_path, 2, (4, 3))]
    save(tmp_path / "3.jpg")
    (tmp_path / "3.jpg").write_bytes(b"")
    samples.append(Sample(str(tmp_path / "3.jpg"), None, 0, "ring", "3.jpg", "rows:3"))
    with pytest.raises(ValueError) as caught:
        look_at_files(samples, "Own", Reading(), logging.getLogger("test"))
    lines = str(caught.value).split("\n")
    assert len(lines) == 3 and "16x14 pixels and its image is 16x12" in lines[0]
    assert "4x3 pixels and its image is 16x12" in lines[1] and "cannot read image" in lines[2]


def test_aa_clips_sets_accept_masks_of_other_sizes_with_a_warning(tmp_path, caplog):
    _, text = said(caplog, [sample(tmp_path, 0, (16, 14))], Reading(UPSTREAM))
    assert "sizes differ" in text and "16x14 pixels and its image is 16x12" in text
    damaged = sample(tmp_path, 1, (16, 12))
    (tmp_path / "1_mask.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="rows:1: cannot read mask"):
        look_at_files([damaged], "Own", Reading(UPSTREAM), logging.getLogger("test"))


def test_one_line_says_how_masks_are_read_and_none_where_there_are_none(tmp_path, caplog):
    masked, bare = sample(tmp_path, 0, (16, 12)), sample(tmp_path, 1)
    _, text = said(caplog, [masked, bare])
    assert text.count("masks are read robust (--mask_reading)") == 1 and "half of white" in text
    assert "masks are read upstream" in said(caplog, [masked, bare], Reading(UPSTREAM))[1]
    assert "masks are read" not in said(caplog, [bare])[1]


def test_orientation_is_said_once_for_all_pictures_with_what_is_done(tmp_path, caplog):
    stored = [sample(tmp_path, n, (12, 16), size=(16, 12), orientation=6) for n in range(3)]
    found, text = said(caplog, stored)
    assert text.count("EXIF orientation") == 1 and "3 in all" in text and "its mask is already" in text
    assert not found.as_stored
    assert "left as stored, as AA-CLIP reads it" in said(caplog, stored[:1], Reading(UPSTREAM))[1]


def test_masks_whose_sizes_tell_decide_for_those_whose_sizes_do_not(tmp_path, caplog):
    tells = sample(tmp_path, 0, (16, 12), orientation=6)  # as stored: the upright picture is 12x16
    half_turn = sample(tmp_path, 1, (16, 12), orientation=3)
    found, text = said(caplog, [tells, half_turn])
    assert found.as_stored and "2 in all" in text
    assert not said(caplog, [half_turn])[0].as_stored
    upright = sample(tmp_path, 2, (12, 16), orientation=6)
    assert not said(caplog, [tells, half_turn, upright])[0].as_stored


def test_a_mask_of_two_pictures_is_warned_about_and_the_same_row_twice_is_not(tmp_path, caplog):
    first, second = sample(tmp_path, 0, (16, 12)), sample(tmp_path, 1, (16, 12))
    assert "shared mask" not in said(caplog, [first, second, first])[1]
    _, text = said(caplog, [first, second._replace(mask_path=first.mask_path)])
    assert "shared mask" in text and "rows:0 and rows:1" in text


def test_training_without_an_anomalous_picture_is_warned_about(tmp_path, caplog):
    normal, anomalous = sample(tmp_path, 0), sample(tmp_path, 1, (16, 12))
    assert "no anomalous picture in the training set" in said(caplog, [normal], training=True)[1]
    assert "one label" not in said(caplog, [normal, anomalous], training=True)[1]
    other = anomalous._replace(class_name="nut")
    _, text = said(caplog, [normal, other])
    assert "class ring (no anomalous picture" in text and "2 in all" in text
    assert "one label" not in said(caplog, [normal._replace(label=None)])[1]


def test_kinds_of_files_are_said_with_what_will_be_read(tmp_path, caplog):
    deep = tmp_path / "deep.png"
    Image.fromarray(np.full((12, 16), 40000, np.uint16)).save(deep)
    Image.new("P", (16, 12)).save(tmp_path / "palette.png")
    Image.new("L", (16, 12)).save(tmp_path / "mask.jpg")
    Image.new("RGBA", (16, 12)).save(tmp_path / "alpha.png")
    files = {
        "deep.png": "mask.jpg",
        "palette.png": "alpha.png",
        "alpha.png": "palette.png",
        "mask.jpg": "deep.png",
    }
    samples = [
        Sample(str(tmp_path / name), str(tmp_path / own), 1, "ring", name, "rows:1")
        for name, own in files.items()
    ]
    _, text = said(caplog, samples)
    kinds = ["16-bit image", "JPEG mask", "palette image", "alpha mask", "transparent image", "palette mask"]
    assert all(f"{kind}: " in text for kind in [*kinds, "16-bit mask"])


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_files_that_were_copied_in_part_are_named_before_the_first_is_decoded(tmp_path, caplog, ending):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = tmp_path / f"a.{ending}"
    Image.fromarray(pixels).save(path)
    one = Sample(str(path), None, 0, "ring", path.name, "rows:1")
    assert "cut short" not in said(caplog, [one])[1]
    whole = path.read_bytes()
    path.write_bytes(whole + b"another program's notes")
    assert "cut short" not in said(caplog, [one])[1]
    path.write_bytes(whole[: len(whole) // 2])
    _, text = said(caplog, [one])
    assert "cut short: the end of the file is missing" in text and f"a.{ending}" in text


def test_every_file_is_opened_once(tmp_path, monkeypatch):
    one = sample(tmp_path, 0, (16, 12))
    opened = []
    monkeypatch.setattr(
        "dataset.survey.header_of", lambda what, path, source: opened.append(path) or ValueError("x")
    )
    headers_of([one, one, one])
    assert sorted(opened) == [one.image_path, one.mask_path]


def test_the_data_sets_way_in_looks_at_headers_unless_told_not_to(own, caplog):
    rows = [
        {"image_path": "good.png", "label": 0, "class_name": "ring"},
        {"image_path": "bad.png", "label": 1, "class_name": "ring", "mask_path": "mask.png"},
    ]
    root = own(rows)
    for name in ("good.png", "bad.png"):
        save(root / "own" / name)
    mask(root / "own" / "mask.png", (16, 14))
    for split in ("train", "test"):
        with pytest.raises(ValueError, match="16x14 pixels and its image is 16x12"):
            get_dataset("Own", 8, "full_shot", 0, split, data_root=root)
        assert get_dataset("Own", 8, "full_shot", 0, split, data_root=root, look=False)
        found = get_dataset("Own", 8, "full_shot", 0, split, data_root=root, mask_reading="upstream")
        one = found["ring"] if split == "test" else found[0]
        assert one.reading == Reading(UPSTREAM) and one[1]["mask"].shape == (1, 8, 8)


def test_a_defect_that_resizing_loses_is_named_where_it_is_read(own, caplog):
    root = own([{"image_path": "a.png", "label": 1, "class_name": "ring", "mask_path": "m.png"}])
    save(root / "own" / "a.png", (64, 64))
    pixels = np.zeros((64, 64), np.uint8)
    pixels[5, 5] = 255
    Image.fromarray(pixels).save(root / "own" / "m.png")
    one = get_dataset("Own", 8, "full_shot", 0, "test", data_root=root)["ring"]
    assert not one[0]["mask"].any() and not one[0]["mask"].any()
    assert caplog.text.count("the 1 anomalous pixels of mask") == 1 and "vanish at img_size 8" in caplog.text


def test_only_the_first_of_many_lost_defects_are_named(own, caplog, monkeypatch):
    monkeypatch.setattr("dataset.anomaly_dataset.WARNED", 3)
    rows = [
        {"image_path": f"{n}.png", "label": 1, "class_name": "ring", "mask_path": f"m{n}.png"}
        for n in range(6)
    ]
    root = own(rows)
    for n in range(6):
        save(root / "own" / f"{n}.png")
        Image.new("L", (16, 12)).save(root / "own" / f"m{n}.png")
    list(get_dataset("Own", 8, "full_shot", 0, "test", data_root=root)["ring"])
    assert (
        caplog.text.count("label is 1 but mask") == 3 and caplog.text.count("further masks of this kind") == 1
    )


def test_one_of_several_masks_of_another_size_stops_the_run_under_every_reading(tmp_path):
    fits, other = sample(tmp_path, 0, (16, 12)), sample(tmp_path, 1, (9, 9))
    several = fits._replace(more_masks=(other.mask_path,))
    with pytest.raises(ValueError, match="9x9 pixels and its image is 16x12"):
        look_at_files([several], "Own", Reading(UPSTREAM), logging.getLogger("test"))
    alone = fits._replace(mask_path=other.mask_path)
    assert look_at_files([alone], "Own", Reading(UPSTREAM), logging.getLogger("test"))
