"""Extra training images beside a dataset's own: dataset/extra.py, --extra_meta and --extra_ratio."""

import json
from collections import Counter

import pytest
import torch
from PIL import Image

import train as train_script
import train_cross_attention
from dataset import get_dataset
from run_folder.checkpoints import load_checkpoint
from run_folder.flags import parse
from training import feedback_recipes
from training.loaders import training_loaders

OWN = 12  # rows of the MVTec-layout folder in conftest


def write_extra(folder, anomalous=6, normal=2, classes=("bottle", "screw"), **changes):
    """A jsonl with its images in its own folder: so many rows per class; returns the file."""
    folder.mkdir()
    rows = []
    for class_name in classes:
        for number in range(anomalous + normal):
            name = f"{class_name}_{number}"
            Image.new("RGB", (32, 32), (number, 90, 200)).save(folder / f"{name}.png")
            row = {"image_path": f"{name}.png", "label": int(number < anomalous), "class_name": class_name}
            if number < anomalous:
                Image.new("L", (32, 32), 255).save(folder / f"{name}_mask.png")
                row["mask_path"] = f"{name}_mask.png"
            rows.append(row | changes)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder / "rows.jsonl"


def load(data_root, seed=111, **extra):
    return get_dataset("MVTec", 32, "full_shot", 0, "train", data_root=data_root, seed=seed, **extra)


def extra_names(data_root, file, ratio, seed=111):
    return [
        sample.file_name
        for sample in load(data_root, seed, extra_meta=file, extra_ratio=ratio)[0].samples[OWN:]
    ]


@pytest.mark.bit_equality
def test_without_the_flags_samples_order_and_random_state_are_as_without_the_feature(
    data_root, train_flags, lines
):
    settings = parse("train", train_script.GROUPS, train_flags)
    assert settings.training.extra_meta is None and settings.training.extra_ratio is None
    before = torch.get_rng_state()
    text, image = training_loaders(settings, lines[0])
    assert torch.equal(torch.get_rng_state(), before)
    assert text.dataset.samples == image.dataset.samples == load(data_root)[0].samples
    assert len(text.dataset) == OWN
    assert list(text.sampler) == [1, 5, 3, 2, 8, 10, 4, 7, 0, 6, 9, 11]  # as it was before the flags existed


@pytest.mark.parametrize(("ratio", "count"), [(0.5, 12), (0.25, 4), (0.1, 1), (0.57, 16)])
def test_the_extra_rows_make_up_the_share_and_follow_the_datasets_own(data_root, tmp_path, ratio, count):
    own = load(data_root)[0].samples
    for images in load(data_root, extra_meta=write_extra(tmp_path / "x"), extra_ratio=ratio):
        assert images.samples[:OWN] == own and len(images) == OWN + count
        assert len({sample.image_path for sample in images.samples}) == len(images)
        assert abs(count / len(images) - ratio) < 0.5 / len(images) + 0.02


def test_the_choice_depends_on_the_seed_and_not_on_the_files_order(data_root, tmp_path):
    file = write_extra(tmp_path / "x")
    chosen = extra_names(data_root, file, 0.3)
    assert len(chosen) == 5 and extra_names(data_root, file, 0.3) == chosen
    assert any(extra_names(data_root, file, 0.3, seed) != chosen for seed in (1, 2, 3))
    file.write_text("".join(reversed(file.read_text().splitlines(keepends=True))))
    assert extra_names(data_root, file, 0.3) == chosen


def test_classes_take_turns_and_a_smaller_share_is_a_prefix_of_a_larger(data_root, tmp_path):
    file = write_extra(tmp_path / "x")
    chosen = extra_names(data_root, file, 0.4)
    assert Counter(name.split("/")[1].split("_")[0] for name in chosen) == {"bottle": 4, "screw": 4}
    assert extra_names(data_root, file, 0.25) == chosen[:4]


def test_extra_images_load_with_their_masks_and_labels(data_root, tmp_path):
    images = load(data_root, extra_meta=write_extra(tmp_path / "x"), extra_ratio=0.57)[0]
    images.augmentation = None
    items = [images[index] for index in range(OWN, len(images))]
    assert sorted(item["label"] for item in items) == [0] * 4 + [1] * 12
    assert all(item["mask"].mean() == item["label"] and item["file_name"].startswith("x/") for item in items)


def test_paths_may_also_be_the_datasets_own_and_must_not_lead_elsewhere(data_root, tmp_path):
    file = write_extra(
        tmp_path / "x", anomalous=0, normal=1, classes=["bottle"], image_path="bottle/test/good/000.png"
    )
    assert extra_names(data_root, file, 0.08) == ["mvtec_ad/bottle/test/good/000.png"]
    Image.new("RGB", (8, 8)).save(tmp_path / "elsewhere.png")
    for path in ("../elsewhere.png", str(tmp_path / "elsewhere.png")):
        row = {"image_path": path, "label": 0, "class_name": "bottle"}
        file.write_text(json.dumps(row))
        with pytest.raises((ValueError, FileNotFoundError), match="rows.jsonl:1: image_path"):
            extra_names(data_root, file, 0.08)


def test_too_few_rows_are_refused_with_the_count_the_file_and_the_largest_ratio(data_root, tmp_path):
    file = write_extra(tmp_path / "x")
    with pytest.raises(
        ValueError, match=r"12 rows of its own needs 18 extra rows, .*rows.jsonl has 16.*most 0.571"
    ):
        load(data_root, extra_meta=file, extra_ratio=0.6)
    with pytest.raises(ValueError, match="needs 0 extra rows"):
        load(data_root, extra_meta=file, extra_ratio=0.01)


def test_an_unknown_class_is_refused_with_the_line_and_the_known_ones(data_root, tmp_path):
    with pytest.raises(
        ValueError, match=r"rows.jsonl:1: class_name is 'gear': the dataset's classes are bottle"
    ):
        load(data_root, extra_meta=write_extra(tmp_path / "x", classes=["gear"]), extra_ratio=0.25)


@pytest.mark.parametrize(
    ("meta", "ratio", "message"),
    [
        (True, None, "give both, or neither"),
        (False, 0.5, "give both, or neither"),
        (True, 0.0, "between 0 and 1"),
        (True, 1.0, "between 0 and 1"),
        (True, float("nan"), "between 0 and 1"),
    ],
)
def test_one_flag_alone_and_shares_that_are_none_are_refused(data_root, tmp_path, meta, ratio, message):
    with pytest.raises(ValueError, match=message):
        load(data_root, extra_meta=write_extra(tmp_path / "x") if meta else None, extra_ratio=ratio)


@pytest.mark.parametrize("script", [train_script, train_cross_attention, feedback_recipes])
def test_every_training_script_has_the_flags_and_they_are_off(script):
    training = parse("train", script.GROUPS, []).training
    assert training.extra_meta is None and training.extra_ratio is None


def test_a_missing_file_is_refused_by_name(data_root, tmp_path):
    with pytest.raises(FileNotFoundError, match="none.jsonl"):
        load(data_root, extra_meta=tmp_path / "none.jsonl", extra_ratio=0.5)


def test_training_uses_the_extra_images_records_them_and_refuses_to_continue_with_others(
    train_flags, tmp_path
):
    extra = ["--extra_meta", str(write_extra(tmp_path / "x")), "--extra_ratio"]
    train_script.main([*train_flags, *extra, "0.5"])
    log = (tmp_path / "run" / "train.log").read_text()
    assert f"12 extra rows from {extra[1]}, " in log and "beside 12 of MVTec; chosen with seed 111" in log
    assert load_checkpoint(tmp_path / "run" / "image_adapter.pth")["settings"]["extra_ratio"] == 0.5
    with pytest.raises(RuntimeError, match="--extra_ratio was 0.5, is 0.25"):
        train_script.main([*train_flags, *extra, "0.25"])
    train_script.main([*train_flags, "--save_path", str(tmp_path / "plain")])
    files = [tmp_path / name / "image_adapter.pth" for name in ("plain", "run")]
    plain, other = (load_checkpoint(file)["image_adapter"] for file in files)
    assert any(not torch.equal(plain[key], other[key]) for key in plain)
