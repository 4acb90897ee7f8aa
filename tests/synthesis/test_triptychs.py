"""Triptychs from three layouts and from a dataset's defects: synthesis/data.py, make_triptychs.py."""

import json

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from dataset import get_dataset
from dataset.image_files import Reading, read_image, read_mask
from dataset.jsonl import Sample
from dataset.mask_values import ROBUST, UPSTREAM
from run_folder.flags import parse
from synthesis import make_triptychs
from synthesis.data import PANELS, Triptychs, to_pixels, to_tensor
from synthesis.generate import Drafter, Item, TextureSampler
from synthesis.masks import Area


def make(data_root, out, *flags):
    """make_triptychs.py on the MVTec-layout folder; returns the folder."""
    own = ["--dataset", "MVTec", "--data_root", str(data_root), "--out", str(out), "--size", "48"]
    make_triptychs.main([*own, *flags])
    return out


def write_strip(path, values=(0, 51, 255), side=4):
    """A strip whose panels are flat grey of these values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.repeat(np.uint8(values), side)[None].repeat(side, axis=0)).convert("RGB").save(path)


def parts_of(sample):
    """Folders below the dataset's and stem of a sample's image."""
    return sample.file_name.rpartition(".")[0].split("/")[1:]


@pytest.mark.parametrize("size", [48, 32])
def test_strips_folders_and_jsonl_give_identical_tensors(data_root, tmp_path, size):
    layouts = ("strips", "folders", "jsonl")
    sets = [Triptychs(make(data_root, tmp_path / layout, "--layout", layout), size) for layout in layouts]
    assert [entry.is_strip for entry in (found.entries[0] for found in sets)] == [True, False, False]
    assert (tmp_path / "jsonl" / "triptych.jsonl").is_file() and len(sets[0]) == 6
    for items in zip(*sets, strict=True):
        for other in items[1:]:
            assert other["name"] == items[0]["name"]
            assert all(torch.equal(other[panel], items[0][panel]) for panel in PANELS)


def test_strips_may_have_every_ending_a_scan_of_the_detectors_folders_takes(tmp_path):
    for name in ("a.webp", "b.gif"):
        Image.new("RGB", (6, 2), 255).save(tmp_path / name)
    assert [entry.name for entry in Triptychs(tmp_path, 2).entries] == ["a", "b"]


def test_a_strip_is_cut_into_visible_target_semantic_between_minus_one_and_one(tmp_path):
    write_strip(tmp_path / "a.png")
    (item,) = Triptychs(tmp_path, 4)
    assert item["name"] == "a"
    for panel, value in zip(PANELS, (-1.0, -0.6, 1.0), strict=True):
        assert item[panel].shape == (3, 4, 4) and item[panel].dtype == torch.float32
        assert torch.allclose(item[panel], torch.full((3, 4, 4), value))


def test_a_batch_of_default_strips_is_512_pixels_high_and_1536_wide(data_root, tmp_path):
    make(data_root, tmp_path / "out", "--size", "512", "--shot", "2")
    strips = sorted((tmp_path / "out").glob("*.png"))
    assert [Image.open(strip).size for strip in strips] == [(1536, 512)] * 2
    assert parse("", make_triptychs.GROUPS, ["--out", "x"], make_triptychs.DEFAULTS).own.size == 512


def test_pixels_and_tensors_are_each_others_inverse():
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    assert np.array_equal(to_pixels(to_tensor(pixels)), pixels)
    assert to_pixels(torch.tensor([-3.0, 3.0, 0.0]).view(3, 1, 1)).tolist() == [[[0, 255, 128]]]


def test_resizing_the_semantic_map_draws_no_new_value(data_root, tmp_path):
    for item in Triptychs(make(data_root, tmp_path / "out"), 32):
        assert set(item["semantic"].unique().tolist()) == {-1.0, 1.0}
        assert len(item["target"].unique()) > 50


def test_the_target_is_the_image_and_the_semantic_map_its_mask(data_root, tmp_path):
    found = Triptychs(make(data_root, tmp_path / "out"), 48)
    samples = [
        sample
        for sample in get_dataset("MVTec", 48, "full_shot", 0, "train", data_root=data_root)[0].samples
        if sample.label
    ]
    for item, sample in zip(found, samples, strict=True):
        assert item["name"].split("__")[1:] == parts_of(sample)
        image = read_image(sample.image_path, "")
        mask = Image.fromarray(read_mask(sample.mask_path, image.size, "")).resize(
            (48, 48), Image.Resampling.NEAREST
        )
        assert np.array_equal(
            to_pixels(item["target"]), np.asarray(image.resize((48, 48), Image.Resampling.BICUBIC))
        )
        assert np.array_equal(to_pixels(item["semantic"])[..., 1] == 255, np.asarray(mask))


def test_the_visible_panel_is_turned_as_training_turns_it(tmp_path):
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    normal = Sample(str(tmp_path / "a.png"), None, 0, "x", "a.png", "rows:1")
    for masks, turned in ((UPSTREAM, pixels), (ROBUST, pixels[::-1, ::-1])):
        visible = make_triptychs.normal_of(normal, [normal], 0, Reading(masks))
        assert np.array_equal(visible, turned)
        draft = Drafter([normal], "perlin", Area(0.1, 0.9), 0, Reading(masks))
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("synthesis.generate.perlin_mask", lambda region, rng, area: region)
            assert np.array_equal(draft(Item("x", "x", normal, False), 0).source, turned)
        texture = TextureSampler([normal], Reading(masks)).texture(draft(Item("x", "x", normal, False), 0))
        assert np.array_equal(texture, turned)


def test_the_inpainted_visible_panel_hides_the_defect_and_nothing_far_from_it():
    image = np.full((64, 64, 3), 90, np.uint8)
    mask = np.zeros((64, 64), bool)
    mask[20:30, 20:30] = True
    image[19:31, 19:31] = (250, 20, 20)  # its light reaches a pixel beyond the mask
    visible = make_triptychs.without_defect(image, mask)
    assert np.abs(visible.astype(int) - 90).max() <= 2
    textured = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    far = ~cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
    assert np.array_equal(make_triptychs.without_defect(textured, mask)[far], textured[far])
    assert not np.array_equal(make_triptychs.without_defect(textured, mask)[mask], textured[mask])


def test_the_normal_visible_panel_is_a_normal_image_of_the_same_class(data_root, tmp_path):
    normal = {}
    for sample in get_dataset("MVTec", 48, "full_shot", 0, "train", data_root=data_root)[0].samples:
        if not sample.label:
            pixels = np.asarray(read_image(sample.image_path, "").resize((48, 48), Image.Resampling.BICUBIC))
            normal.setdefault(sample.class_name, []).append(pixels)
    for item in Triptychs(make(data_root, tmp_path / "out", "--visible", "normal"), 48):
        own = next(pixels for name, pixels in normal.items() if f"__{name}__" in item["name"])
        assert any(np.array_equal(to_pixels(item["visible"]), pixels) for pixels in own)


def test_triptychs_are_made_of_the_very_shots_training_takes(data_root, tmp_path):
    made = Triptychs(make(data_root, tmp_path / "out", "--shot", "2", "--seed", "5"), 48)
    samples = get_dataset("MVTec", 48, "few_shot", 2, "train", data_root=data_root, seed=5)[0].samples
    chosen = [sample for sample in samples if sample.label]
    assert len(made) == len(chosen) == 2
    for item, sample in zip(made, chosen, strict=True):
        assert item["name"].split("__")[1:] == parts_of(sample)


def test_a_folder_that_holds_something_is_never_written_to(data_root, tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(FileExistsError, match="not empty: nothing is overwritten"):
        make(data_root, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_shots_without_an_anomalous_image_are_refused(data_root, tmp_path):
    with pytest.raises(ValueError, match="--shot 1 has no anomalous image with a mask: use --shot 2"):
        make(data_root, tmp_path / "out", "--shot", "1")


def test_a_strip_of_other_proportions_is_refused_with_both_sizes(tmp_path):
    Image.new("RGB", (10, 4)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="a.png: the strip is 10x4 pixels, expected .* 12x4"):
        Triptychs(tmp_path, 4)[0]


def test_folders_of_unequal_stems_are_refused_by_name(tmp_path):
    for panel in PANELS:
        (tmp_path / panel).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / panel / "a.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "target" / "b.png")
    with pytest.raises(ValueError, match="visible has no picture of stem 'b'"):
        Triptychs(tmp_path, 4)


def test_a_missing_or_empty_folder_is_refused_with_what_is_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match="make_triptychs.py"):
        Triptychs(tmp_path / "none", 4)
    with pytest.raises(ValueError, match="expected strips .*, the folders visible, target, semantic, or"):
        Triptychs(tmp_path, 4)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"target": "../a.png"}, ValueError, "triptych.jsonl:1: target '../a.png' leads outside"),
        ({"semantic": None}, ValueError, "triptych.jsonl:1: semantic is None"),
        ({"visible": "a\0.png"}, ValueError, "triptych.jsonl:1: visible is 'a.*expected a path"),
        ({"target": "\ud800.png"}, ValueError, "triptych.jsonl:1: target is .*expected a path"),
        ({"visible": "no.png"}, FileNotFoundError, "triptych.jsonl:1: visible 'no.png' is no file"),
    ],
)
def test_a_bad_row_is_refused_with_its_line_and_panel(tmp_path, change, error, message):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    folder = tmp_path / "set"
    folder.mkdir()
    Image.new("RGB", (4, 4)).save(folder / "a.png")
    (folder / "triptych.jsonl").write_text(json.dumps(dict.fromkeys(PANELS, "a.png") | change))
    with pytest.raises(error, match=message):
        Triptychs(folder, 4)


def test_a_row_may_be_named_and_two_of_one_name_are_refused(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    row = dict.fromkeys(PANELS, "a.png")
    lines = [json.dumps(row | {"name": "left"}), json.dumps(row)]
    (tmp_path / "triptych.jsonl").write_text("\n".join(lines))
    assert [item["name"] for item in Triptychs(tmp_path / "triptych.jsonl", 4)] == ["a", "left"]
    (tmp_path / "triptych.jsonl").write_text("\n".join(lines[:1] * 2))
    with pytest.raises(ValueError, match="1 names occur twice, the first is 'left'"):
        Triptychs(tmp_path, 4)
