"""The choice of --feedback_mix on held-out classes: studies/choose_mix.py."""

import json
from pathlib import Path

import pytest
from cross_attention_world import MODEL
from flag_words import words

from dataset import constants, get_dataset
from dataset.custom import load_dataset_config
from dataset.jsonl import write_rows
from studies import choose_mix


def of(*values):
    """A run's classes with these values of every metric."""
    return {str(n): dict.fromkeys(choose_mix.METRICS, value) for n, value in enumerate(values)}


def test_the_largest_mean_over_held_out_classes_and_seeds_is_chosen_of_equal_ones_the_smaller_share():
    runs = {0.0: [of(0.4), of(0.5)], 0.5: [of(0.6), of(0.5)], 1.0: [of(0.6), of(0.5, None)]}
    assert choose_mix.chosen(runs, "pixel_ap") == 0.5
    assert "| 0.5 | 55.00 | 55.00 |" in choose_mix.table(runs)
    with pytest.raises(ValueError, match="--metric pixel_ap: no held-out class defines it"):
        choose_mix.chosen({0.0: [of(None)]}, "pixel_ap")


def test_the_halves_share_no_class_and_have_the_images_and_masks_of_the_whole(data_root, tmp_path):
    halves = choose_mix.declare_halves("MVTec", data_root, tmp_path)
    assert load_dataset_config(tmp_path / choose_mix.CONFIG) == [*halves]
    whole = get_dataset("MVTec", 32, None, 0, "test", data_root=data_root)
    found = {}
    for half in halves:
        found |= get_dataset(half, 32, None, 0, "test", data_root=data_root)
        assert len(constants.CLASS_NAMES[half]) == 1
    for name, images in whole.items():
        for sample, own in zip(images.samples, found[name].samples, strict=True):
            assert own._replace(source=sample.source) == sample


def test_a_set_of_one_class_is_refused(data_root, tmp_path):
    rows = [{"image_path": "bottle/test/good/000.png", "label": 0, "class_name": "bottle"}]
    write_rows(rows, tmp_path / "one.jsonl")
    entry = {
        "path": "mvtec_ad",
        "domain": "Industrial",
        "classes": {"bottle": "bottle"},
        "metadata": "one.jsonl",
    }
    (tmp_path / "own.json").write_text(json.dumps({"One": entry}), encoding="utf-8")
    load_dataset_config(tmp_path / "own.json")
    with pytest.raises(ValueError, match="--dataset One: 1 class is there, and none can be held out"):
        choose_mix.declare_halves("One", data_root, tmp_path)


@pytest.fixture
def choose(data_root, cross_weights, tmp_path):
    """Function (*flags) -> the text of the table."""

    def run(*flags):
        own = words(dataset="MVTec", data_root=data_root, model_name=MODEL, clip_weights=cross_weights)
        choose_mix.main([*own, "--out", str(tmp_path / "out"), *flags])
        return (tmp_path / "out" / "table.md").read_text(encoding="utf-8")

    return run


SHORT = ["--", *"--img_size 32 --num_feedback_loops 2 --text_epoch 1 --image_epoch 1".split()]


def test_every_share_is_trained_on_each_half_at_the_same_flags_and_finished_runs_are_not_repeated(
    choose, monkeypatch, tmp_path
):
    ran = []

    def run(command, **_):
        command = command[1:]
        ran.append(command)
        if command[0] == "test.py":
            folder, dataset = (command[command.index(flag) + 1] for flag in ("--save_path", "--dataset"))
            value = 0.5 if "_mix0.25_" in folder else 0.25
            entry = {dataset: {"final_model.pth": {"classes": of(value)}}}
            Path(folder).mkdir(parents=True)
            (Path(folder) / "metrics.json").write_text(json.dumps(entry), encoding="utf-8")

    monkeypatch.setattr(choose_mix.subprocess, "run", run)
    text = choose("--shares", "0", "0.25", "--seeds", "1", "2", *SHORT)
    assert text.endswith("chosen by pixel_ap: --feedback_mix 0.25\n") and len(ran) == 2 * 2 * 2 * 2
    trained = [command for command in ran if command[0] != "test.py"]
    assert {tuple(command[-2:]) for command in trained} == {
        ("--feedback_mix", "0"),
        ("--feedback_mix", "0.25"),
    }
    assert all(command[-2 - len(SHORT[1:]) : -2] == SHORT[1:] for command in trained)
    assert all(command[command.index("--mask_reading") + 1] == "upstream" for command in ran)  # MVTec's own
    assert choose("--shares", "0", "0.25", "--seeds", "1", "2", *SHORT) == text and len(ran) == 16
    with pytest.raises(ValueError, match="Give another --out, or delete it"):
        choose("--shares", "0", "--seeds", "1", *SHORT, "--text_lr", "1")


@pytest.mark.slow
def test_a_share_is_chosen_by_real_runs(data_root, tmp_path):
    flags = words(dataset="MVTec", data_root=data_root, model_name="ViT-Tiny-8-demo", out=tmp_path)
    choose_mix.main([*flags, "--shares", "0.5", "--seeds", "1", *SHORT])
    assert "chosen by pixel_ap: --feedback_mix 0.5" in (tmp_path / "table.md").read_text(encoding="utf-8")
