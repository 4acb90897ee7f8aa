"""Synthetic anomalies as a user makes them: generate_anomalies.py."""

import json
import types

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("diffusers", reason="semantic fill needs requirements-synthesis.txt")

import train as train_script
from dataset import constants, get_dataset
from synthesis import generate_anomalies, make_triptychs, train_semantic_fill
from synthesis.codec import DctCodec
from synthesis.compositing import change_inside
from synthesis.fill_sampler import codec_round_trip


class Red:
    """A filler that paints everything red with a brightness by the seed, and remembers what it was asked."""

    def __init__(self):
        self.pipeline, self.calls = types.SimpleNamespace(vae=DctCodec()), []

    def fill(self, visible, semantic, fill_mask, prompt=None, seeds=(0,), steps=28):
        self.calls.append((visible, semantic, fill_mask, prompt, list(seeds), steps))
        red = torch.full_like(visible, -1.0)
        red[:, 0] = torch.tensor([0.5 + seed % 50 / 100 for seed in seeds]).view(-1, 1, 1)
        return red


@pytest.fixture
def red(monkeypatch):
    filler = Red()
    monkeypatch.setattr("synthesis.sampling.load_filler", lambda model, checkpoint, device: filler)
    return filler


@pytest.fixture
def command(data_root, tmp_path):
    """Function (method, *flags) -> the folder generate_anomalies.py wrote from the MVTec-layout folder."""

    def run(method, *flags, out="out"):
        checkpoint = tmp_path / "checkpoint"
        checkpoint.mkdir(exist_ok=True)
        (checkpoint / "config.json").write_text(
            json.dumps({"size": 32, "fill_mask": "semantic"}), encoding="utf-8"
        )
        own = ["--checkpoint", str(checkpoint)] if method == "fill" else []
        generate_anomalies.main(
            [
                "--method",
                method,
                "--dataset",
                "MVTec",
                "--data_root",
                str(data_root),
                "--out",
                str(tmp_path / out),
                "--count",
                "3",
                *own,
                *flags,
            ]
        )
        return tmp_path / out

    return run


def rows_of(out):
    return [json.loads(line) for line in (out / "full-shot.jsonl").read_text().splitlines()]


def pictures_of(out):
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*.png")}


def read(path):
    return np.asarray(Image.open(path).convert("RGB"))


def normal_images(data_root, class_name):
    samples = get_dataset("MVTec", 8, "full_shot", 0, "train", data_root=data_root)[0].samples
    return [
        read(sample.image_path) for sample in samples if sample.class_name == class_name and not sample.label
    ]


@pytest.mark.parametrize(("method", "masks"), [("perlin", "perlin"), ("perlin", "real"), ("fill", "real")])
def test_generated_images_equal_a_normal_one_of_their_class_outside_the_label(
    command, red, data_root, method, masks
):
    out = command(method, "--masks", masks)
    rows = rows_of(out)
    assert [row["class_name"] for row in rows] == ["bottle"] * 3 + ["screw"] * 3
    for row in rows:
        image, label = read(out / row["image_path"]), read(out / row["mask_path"])[..., 0] > 0
        assert row["label"] == 1 and 0.002 <= label.mean() <= 0.15
        same_size = [
            normal for normal in normal_images(data_root, row["class_name"]) if normal.shape == image.shape
        ]
        assert any(np.array_equal(image[~label], normal[~label]) for normal in same_size)
        assert min(change_inside(normal, image, label) for normal in same_size) >= 8


def test_the_filler_is_told_the_label_as_map_and_as_mask_and_each_image_its_own_seed(command, red):
    command("fill", "--steps", "5", "--prompt", "a dent", "--batch_size", "4", "--feather", "0")
    assert [len(call[0]) for call in red.calls] == [4, 2]
    seeds = [seed for call in red.calls for seed in call[4]]
    assert len(set(seeds)) == 6
    for visible, semantic, fill_mask, prompt, _, steps in red.calls:
        assert (prompt, steps) == ("a dent", 5) and visible.shape[1:] == semantic.shape[1:] == (3, 32, 32)
        assert torch.equal((semantic[:, :1] + 1) / 2, fill_mask) and 0 < fill_mask.mean() < 0.2


def test_the_whole_panel_is_filled_on_request_and_still_only_the_label_changes(command, red, data_root):
    out = command("fill", "--fill_mask", "panel")
    assert all(call[2].min() == 1 for call in red.calls)
    row = rows_of(out)[0]
    image, label = read(out / row["image_path"]), read(out / row["mask_path"])[..., 0] > 0
    assert any(
        image.shape == normal.shape and np.array_equal(image[~label], normal[~label])
        for normal in normal_images(data_root, "bottle")
    )


def test_size_and_fill_mask_are_the_checkpoints_unless_typed(command, red):
    command("fill")
    assert {(call[0].shape[-1], bool(call[2].mean() < 0.9)) for call in red.calls} == {(32, True)}
    red.calls.clear()
    out = command("fill", "--size", "48", out="typed")
    assert {call[0].shape[-1] for call in red.calls} == {48}
    assert "trained with --size 32, sampled with 48, as typed" in (out / "generate.log").read_text()


def test_sham_images_are_normal_ones_through_the_codec_with_label_0_and_no_mask(command, red, data_root):
    out = command(
        "fill", "--sham_ratio", "0.34", "--feather", "0", "--min_change", "60"
    )  # no sham changes by that
    shams = [row for row in rows_of(out) if not row["label"]]
    assert [row["image_path"] for row in shams] == ["bottle/sham/0002.png", "screw/sham/0002.png"]
    for row in shams:
        assert "mask_path" not in row
        image = read(out / row["image_path"])
        label = read(out / row["image_path"].replace("/sham/", "/masks_sham/"))[..., 0] > 0
        (source,) = [
            normal
            for normal in normal_images(data_root, row["class_name"])
            if normal.shape == image.shape and np.array_equal(normal[~label], image[~label])
        ]
        side = torch.from_numpy(
            np.asarray(Image.fromarray(source).resize((32, 32), Image.Resampling.BICUBIC)).copy()
        )
        through = codec_round_trip(DctCodec(), side.permute(2, 0, 1)[None].float() / 127.5 - 1)[0].clamp(
            -1, 1
        )
        pixels = ((through + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        expected = np.asarray(Image.fromarray(pixels).resize(source.shape[1::-1], Image.Resampling.BICUBIC))
        assert np.array_equal(image[label], expected[label]) and not np.array_equal(
            image[label], source[label]
        )
    assert all(len(call[4]) <= 4 for call in red.calls) and sum(len(call[4]) for call in red.calls) == 4


def test_the_rows_are_read_by_the_detectors_loader_as_they_are(
    command, red, data_root, tmp_path, monkeypatch
):
    out = command("fill", "--sham_ratio", "0.34")
    extra = get_dataset(
        "MVTec",
        16,
        "full_shot",
        0,
        "train",
        data_root=data_root,
        extra_meta=out / "full-shot.jsonl",
        extra_ratio=1 / 3,
    )[0]
    added = extra.samples[12:]
    assert len(added) == 6 and sorted(sample.label for sample in added) == [0, 0, 1, 1, 1, 1]
    for registry, entry in ((constants.CLASS_NAMES, ["bottle", "screw"]), (constants.DATA_PATH, "out")):
        monkeypatch.setitem(registry, "Generated", entry)
    alone = get_dataset("Generated", 16, "full_shot", 0, "test", data_root=tmp_path)
    assert [len(images) for images in alone.values()] == [3, 3]
    assert [item["mask"].sum() > 0 for item in alone["screw"]] == [True, True, False]


def test_the_same_seed_gives_the_same_bytes_whatever_the_batch_and_another_seed_others(command, red):
    first = pictures_of(command("fill", "--sham_ratio", "0.34"))
    assert len(first) == 13 and "contact_sheet.png" in first
    assert pictures_of(command("fill", "--sham_ratio", "0.34", out="again")) == first
    other = pictures_of(command("fill", "--sham_ratio", "0.34", "--seed", "5", out="other"))
    assert all(other[name] != first[name] for name in first)


def test_a_stopped_run_goes_on_and_ends_as_if_never_stopped(command, red, monkeypatch):
    whole = pictures_of(command("fill", "--batch_size", "2"))
    made, write = [], generate_anomalies.write_rows

    def stop_at_the_third(rows, path):
        if len(rows) == 3:
            raise KeyboardInterrupt
        write(rows, path)

    monkeypatch.setattr(generate_anomalies, "write_rows", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        command("fill", "--batch_size", "2", out="stopped")
    monkeypatch.setattr(generate_anomalies, "write_rows", write)
    red.calls.clear()
    stopped = command("fill", "--batch_size", "2", out="stopped")
    made = [len(call[4]) for call in red.calls]
    assert made == [2, 2] and pictures_of(stopped) == whole and len(rows_of(stopped)) == 6
    red.calls.clear()
    command("fill", "--batch_size", "2", out="stopped")
    assert red.calls == [] and pictures_of(stopped) == whole


def test_a_folder_of_other_flags_or_other_origin_is_never_written_to(command, red, tmp_path):
    before = pictures_of(command("fill"))
    with pytest.raises(FileExistsError, match="--seed was 111, is 5"):
        command("fill", "--seed", "5")
    assert pictures_of(tmp_path / "out") == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(FileExistsError, match="not empty and has no generated.json"):
        command("fill", out="mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_images_that_hardly_change_are_tried_again_then_left_out_and_named(
    command, red, monkeypatch, tmp_path
):
    asked = []

    def fill(visible, semantic, fill_mask, prompt=None, seeds=(0,), steps=28):
        asked.extend(seeds)
        return (
            visible
            if len(asked) > 6
            else torch.where(torch.arange(len(seeds)).view(-1, 1, 1, 1) < 2, -1.0, visible)
        )

    red.fill = fill
    rows = rows_of(command("fill", "--attempts", "3", "--min_change", "20"))
    assert [row["image_path"] for row in rows] == ["bottle/anomalous/0000.png", "bottle/anomalous/0001.png"]
    assert len(asked) == 6 + 4 + 4 and len(set(asked)) == 14  # new draws at every attempt
    log = (tmp_path / "out" / "generate.log").read_text()
    assert log.count("left out after 3 attempts, the image changes by") == 4 and "screw/anomalous/0002" in log
    red.fill = lambda visible, *rest: visible
    with pytest.raises(RuntimeError, match="none of 6 images passed the gate"):
        command("fill", "--min_change", "20", out="none")


def test_the_contact_sheet_has_a_line_per_class_and_label(command, red):
    sheet = Image.open(command("fill", "--sham_ratio", "0.34") / "contact_sheet.png")
    assert sheet.size == (2 * (3 * 196 + 4), 4 * (196 + 4))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["perlin", "--sham_ratio", "0.5"], "take out --checkpoint and --sham_ratio"),
        (["perlin", "--checkpoint", "x"], "take out --checkpoint and --sham_ratio"),
        (["fill", "--checkpoint", ""], "--method fill needs --checkpoint"),
        (["fill", "--sham_ratio", "1"], "--sham_ratio is 1.0: expected"),
        (["fill", "--min_area", "0.2"], "--min_area 0.2 --max_area 0.15"),
        (["fill", "--count", "0"], "--count 0"),
        (["fill", "--feather", "-1"], "--feather is -1.0"),
        (["fill", "--size", "40"], "--size 40: a panel's side must be a multiple of 16"),
    ],
)
def test_flags_that_contradict_each_other_are_refused_before_anything_is_written(
    command, tmp_path, flags, message
):
    with pytest.raises(ValueError, match=message):
        command(*flags)
    assert not (tmp_path / "out").exists()


def test_real_masks_need_a_defect_of_the_class(command, red):
    with pytest.raises(
        ValueError, match="--masks real: class 'bottle' has no anomalous image; use --masks perlin"
    ):
        command("fill", "--shot", "1")
    assert (
        len(rows_of(command("fill", "--shot", "1", "--masks", "perlin"))) == 6
    )  # no image was made, other flags may


def test_from_triptychs_over_semantic_fill_to_a_detector_trained_on_its_anomalies(
    data_root, tmp_path, train_flags, command
):
    make_triptychs.main(
        [
            "--dataset",
            "MVTec",
            "--data_root",
            str(data_root),
            "--size",
            "32",
            "--out",
            str(tmp_path / "triptychs"),
        ]
    )
    train_semantic_fill.main(
        [
            "--data",
            str(tmp_path / "triptychs"),
            "--size",
            "32",
            "--steps",
            "2",
            "--out",
            str(tmp_path / "fill"),
        ]
    )
    out = command("fill", "--checkpoint", str(tmp_path / "fill"), "--steps", "2", "--sham_ratio", "0.34")
    assert sorted(row["label"] for row in rows_of(out)) == [0, 0, 1, 1, 1, 1]
    train_script.main([*train_flags, "--extra_meta", str(out / "full-shot.jsonl"), "--extra_ratio", "0.3"])
    assert "5 extra rows from" in (tmp_path / "run" / "train.log").read_text()
