"""Runs of train.py that were continued, killed or damaged, and what must agree when they go on."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoint_contents import assert_equal, history, read, states
from safetensors.torch import load_file, save_file

import test as test_script
import train as train_script
from files.atomic import sha256
from run_folder import state

ROOT = Path(train_script.__file__).parent


@pytest.mark.bit_equality
def test_a_continued_runs_history_holds_every_epoch_once(train_flags, trained, run):
    train_script.main(train_flags)
    train_script.main([*train_flags, "--image_epoch", "2"])

    def without_times(entries):
        return [{key: value for key, value in entry.items() if key != "seconds"} for entry in entries]

    assert [without_times(stage) for stage in history(run)] == [
        without_times(stage) for stage in history(trained)
    ]
    train_script.main([*train_flags, "--image_epoch", "2"])  # nothing left to do
    assert [len(stage) for stage in history(run)] == [1, 2]


@pytest.mark.bit_equality
def test_an_image_stage_in_two_calls_equals_one_in_a_single_call(train_flags, trained, run):
    train_script.main(train_flags)
    train_script.main([*train_flags, "--image_epoch", "2"])
    assert_equal(
        states(run, "image_adapter.pth", "image_adapter_1.pth"),
        states(trained, "image_adapter.pth", "image_adapter_1.pth"),
    )
    assert read(run, "train.log").count("training text epoch") == 1


@pytest.mark.bit_equality
def test_a_text_stage_in_two_calls_equals_one_and_its_last_epoch_is_not_skipped(train_flags, run, tmp_path):
    no_images = [*train_flags, "--image_epoch", "0"]
    train_script.main([*no_images, "--text_epoch", "2"])
    train_script.main([*no_images, "--text_epoch", "3"])
    train_script.main([*no_images, "--text_epoch", "3", "--save_path", str(tmp_path / "whole")])
    assert_equal(states(run, "text_adapter.pth"), states(tmp_path / "whole", "text_adapter.pth"))
    assert torch.load(run / "text_adapter.pth", weights_only=True)["epoch"] == 3
    assert re.findall(r"training text epoch (\d):", read(run, "train.log")) == ["0", "1", "2"]


class Killed(Exception):
    """Stands for a process that ends in the middle."""


@pytest.mark.bit_equality
@pytest.mark.parametrize("file", ["text_adapter", "image_adapter_1", "image_adapter", "image_adapter_2"])
def test_a_run_killed_before_any_checkpoint_ends_as_if_never_stopped(
    train_flags, trained, run, monkeypatch, file
):
    save = state.save_checkpoint

    def die(path, content):
        if Path(path).stem == file:
            raise Killed
        save(path, content)

    monkeypatch.setattr(state, "save_checkpoint", die)
    with pytest.raises(Killed):
        train_script.main([*train_flags, "--image_epoch", "2"])
    monkeypatch.undo()
    (run / ".lock").unlink()  # this process lives on and still holds the killed one's lock
    train_script.main([*train_flags, "--image_epoch", "2"])
    files = ("text_adapter.pth", "image_adapter_1.pth", "image_adapter_2.pth", "image_adapter.pth")
    assert_equal(states(run, *files), states(trained, *files))


def test_a_finished_run_started_again_changes_nothing(train_flags, trained_copy):
    before = (trained_copy / "image_adapter.pth").read_bytes()
    train_script.main([*train_flags, "--image_epoch", "2"])
    assert (trained_copy / "image_adapter.pth").read_bytes() == before


def test_continuing_with_other_flags_is_refused(train_flags, trained_copy):
    with pytest.raises(RuntimeError, match="other settings: --text_lr was 0.001, is 0.5"):
        train_script.main([*train_flags, "--text_lr", "0.5"])


def test_a_run_stopped_after_its_text_stage_continues_with_its_own_flags_only(train_flags, trained_copy):
    for path in trained_copy.glob("image_adapter*.pth"):
        path.unlink()
    with pytest.raises(RuntimeError, match="text_adapter.pth belongs to .* --seed was 111, is 5"):
        train_script.main([*train_flags, "--seed", "5"])


def test_files_of_aa_clip_resume_and_test(train_flags, flags, trained_copy):
    for name in ("text_adapter", "image_adapter", "image_adapter_2"):
        content = torch.load(trained_copy / f"{name}.pth", weights_only=True)
        stage = name.split("_")[0]
        torch.save(
            {key: content[key] for key in ("epoch", f"{stage}_adapter", f"{stage}_optimizer")},
            trained_copy / f"{name}.pth",
        )
    (result,) = test_script.main(flags)
    assert result["mean"]["images"] == 12
    train_script.main([*train_flags, "--image_epoch", "3"])
    assert (trained_copy / "image_adapter_3.pth").is_file()
    assert "no RNG state" in read(trained_copy, "train.log")


@pytest.mark.bit_equality
@pytest.mark.parametrize(
    "damaged", [("image_adapter",), ("image_adapter", "image_adapter_2"), ("text_adapter",)]
)
def test_a_damaged_checkpoint_stops_testing_and_training_goes_on_from_the_one_before(
    train_flags, flags, tmp_path, damaged
):
    longer = [*train_flags, "--text_epoch", "2", "--image_epoch", "3"]
    run, whole = tmp_path / "run", tmp_path / "whole"
    train_script.main([*longer[:-1], "2"])
    train_script.main([*longer, "--save_path", str(whole)])
    for name in damaged:
        file = run / f"{name}.pth"
        file.write_bytes(file.read_bytes()[:-300])
    with pytest.raises(RuntimeError, match=f"{damaged[0]}.pth .* is damaged"):
        test_script.main(flags)
    train_script.main(longer)
    files = ("text_adapter.pth", "image_adapter_3.pth", "image_adapter.pth")
    assert_equal(states(run, *files), states(whole, *files))
    assert re.search(rf"WARNING {damaged[0]}.pth is damaged: going on from ", read(run, "train.log"))
    test_script.main(flags)


def test_a_finished_run_whose_last_file_is_damaged_is_whole_after_another_start(
    train_flags, flags, trained_copy
):
    path = trained_copy / "image_adapter.pth"
    path.write_bytes(path.read_bytes()[:-300])
    train_script.main([*train_flags, "--image_epoch", "2"])
    assert path.read_bytes() == (trained_copy / "image_adapter_2.pth").read_bytes()
    test_script.main(flags)


def test_with_every_checkpoint_damaged_training_stops_and_says_what_to_delete(train_flags, trained_copy):
    for path in trained_copy.glob("image_adapter*.pth"):
        path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(ValueError, match="No intact checkpoint is left before image_adapter.pth: delete it"):
        train_script.main([*train_flags, "--image_epoch", "3"])


def test_training_and_testing_delete_what_killed_processes_left(train_flags, flags, trained_copy):
    left = [trained_copy / f".{name}.ab_cd123.tmp" for name in ("image_adapter.pth", "metrics.json")]
    (trained_copy / "scores" / "MVTec").mkdir(parents=True)
    left.append(trained_copy / "scores" / "MVTec" / ".image_adapter.npz.ab_cd123.tmp")
    for main, argv in ((train_script.main, [*train_flags, "--image_epoch", "2"]), (test_script.main, flags)):
        for path in left:
            path.touch()
        main(argv)
        assert not any(path.exists() for path in left)
    assert "left unfinished: .image_adapter.pth.ab_cd123.tmp" in read(trained_copy, "train.log")


def test_another_backbone_of_the_same_shapes_is_refused_by_testing_and_resuming(
    train_flags, flags, trained_copy, weights, tmp_path
):
    state = load_file(weights)
    save_file(state | {"logit_scale": state["logit_scale"] + 1}, tmp_path / "other.safetensors")
    other = ["--clip_weights", str(tmp_path / "other.safetensors")]
    told = rf"backbone tiny.safetensors \(SHA-256 {sha256(weights)}\), this one is other.safetensors .*--clip_weights"
    with pytest.raises(RuntimeError, match=told):
        test_script.main([*flags, *other])
    with pytest.raises(RuntimeError, match=told):
        train_script.main([*train_flags, *other, "--image_epoch", "3"])


def test_a_second_process_in_the_same_folder_is_refused(train_flags, run):
    code = f"from utils import lock_run; lock = lock_run({str(run)!r}); print('locked', flush=True); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(RuntimeError, match="another process is working in"):
            train_script.main(train_flags)
    finally:
        other.communicate(b"\n")
    train_script.main(train_flags)


@pytest.mark.parametrize(
    "changed, told",
    [
        (["--text_epoch", "2"], "--text_epoch was 1, is 2"),  # stage 2 was trained on the old anchors
        (["--text_epoch", "0"], "holds a text_adapter.pth"),
        (["--image_epoch", "2", "--milestones", "0.5", "0.8"], "--milestones was"),
    ],
)
def test_a_stage_is_not_extended_under_what_was_built_on_it(train_flags, changed, told):
    train_script.main(train_flags)
    with pytest.raises((RuntimeError, ValueError), match=told):
        train_script.main([*train_flags, *changed])


def test_a_run_with_fractional_milestones_is_not_extended(train_flags):
    corrected = [*train_flags, "--milestones", "0.5", "0.8"]
    train_script.main(corrected)
    with pytest.raises(RuntimeError, match="--image_epoch was 1, is 2"):
        train_script.main([*corrected, "--image_epoch", "2"])
