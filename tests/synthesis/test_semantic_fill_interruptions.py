"""Runs of semantic fill stopped between two checkpoints, and steps that are not finite: synthesis/{saver,guard}.py."""

import logging
import os
import signal

import pytest
import torch

pytest.importorskip("diffusers", reason="semantic fill needs requirements-synthesis.txt")

from safetensors.torch import load_file, save_file
from semantic_fill_world import flags, items, parameters_of, tiny_system, triptychs, write_folders

from files.tensors import DamagedFile, load_tensors
from run_folder.guarded_step import LeftOut
from run_folder.signals import STOP_SIGNALS
from synthesis import train_semantic_fill, training
from synthesis.saver import RunSaver
from synthesis.weights import (
    ATTENTION_FILE,
    HASHES,
    find_checkpoint,
    newest_intact_checkpoint,
    read_config,
    read_tensors,
    save_system,
)

STEPS = 6
LOGGER = logging.getLogger("semantic fill tests")
BROKEN = float("nan")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_folders(tmp_path_factory.mktemp("triptychs"), triptychs(3))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """Tensors of a run that was never stopped, by its further flags."""
    found = {}

    def run(*more):
        if more not in found:
            folder = tmp_path_factory.mktemp("whole")
            train_semantic_fill.main(flags(data, folder, STEPS, *more))
            found[more] = tensors_of(folder)
        return found[more]

    return run


def tensors_of(run):
    folder = find_checkpoint(run)
    found = {file.name: load_file(file) for file in sorted(folder.glob("*.safetensors"))}
    optimizer = load_tensors(folder / "optimizer.pth")["state"]
    return found | {f"optimizer {number}": values for number, values in optimizer.items()}


def equal(found, wanted):
    return found.keys() == wanted.keys() and all(
        torch.equal(value, wanted[name][key])
        if isinstance(value, torch.Tensor)
        else value == wanted[name][key]
        for name, values in found.items()
        for key, value in values.items()
    )


def at_step(monkeypatch, step, do):
    whole_step = training.train_step

    def counted(system, batch, optimizer, schedule, number, **more):
        if number + 1 == step:
            do()
        return whole_step(system, batch, optimizer, schedule, number, **more)

    monkeypatch.setattr(training, "train_step", counted)


@pytest.mark.bit_equality
@pytest.mark.parametrize(
    ("step", "number", "workers", "more"),
    [
        (1, signal.SIGTERM, 0, ()),
        (3, signal.SIGINT, 1, ("--lr_schedule", "cosine")),
        (4, signal.SIGUSR1, 0, ("--optimizer", "prodigy")),
        (6, signal.SIGTERM, 0, ()),
    ],
)
def test_a_signal_ends_a_run_with_75_and_started_again_it_ends_as_if_never_stopped(
    data, whole, tmp_path, monkeypatch, step, number, workers, more
):
    command = flags(data, tmp_path, STEPS, *more)
    handlers = [signal.getsignal(one) for one in STOP_SIGNALS]
    with monkeypatch.context() as patched, pytest.raises(SystemExit) as ended:
        at_step(patched, step, lambda: os.kill(os.getpid(), number))
        train_semantic_fill.main([*command, "--workers", str(workers)])
    assert ended.value.code == 75 and [signal.getsignal(one) for one in STOP_SIGNALS] == handlers
    assert f"stopped by {number.name}: step {step} is saved" in (tmp_path / "train.log").read_text()
    kept = "checkpoint" if step == STEPS else "progress"
    assert newest_intact_checkpoint(tmp_path, None) == (step, tmp_path / f"{kept}-{step:07d}")
    train_semantic_fill.main(command)
    assert equal(tensors_of(tmp_path), whole(*more))
    assert not list(tmp_path.glob("*progress*"))


class Killed(BaseException):
    """Stands for the end of a process in the middle."""


def kill():
    raise Killed


@pytest.mark.bit_equality
def test_a_killed_run_goes_on_from_the_last_save_between_two_checkpoints(data, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(Killed):
        at_step(patched, 6, kill)
        train_semantic_fill.main(flags(data, tmp_path, STEPS, "--save_every_steps", "2"))
    assert [folder.name for folder in tmp_path.glob("*-*")] == ["progress-0000004"]
    with pytest.raises(FileNotFoundError):  # nothing to sample from yet
        find_checkpoint(tmp_path)
    train_semantic_fill.main(flags(data, tmp_path, STEPS))
    assert "resumed progress-0000004" in (tmp_path / "train.log").read_text()
    assert equal(tensors_of(tmp_path), whole())


def test_a_damaged_save_between_two_checkpoints_gives_way_to_the_checkpoint(data, tmp_path, lines):
    train_semantic_fill.main(flags(data, tmp_path, 2))
    system = tiny_system()
    config = read_config(find_checkpoint(tmp_path))
    folder = save_system(tmp_path, 3, system, config, name="progress-{:07d}")
    (folder / ATTENTION_FILE).write_bytes(b"x")
    assert newest_intact_checkpoint(tmp_path, lines[0])[0] == 2
    assert any("progress-0000003 is damaged" in line for line in lines[1])


def test_saves_between_checkpoints_come_at_their_time_and_only_the_last_stays(tmp_path, monkeypatch):
    now, saved = [0.0], []
    monkeypatch.setattr("synthesis.saver.time.monotonic", lambda: now[0])
    system = tiny_system()
    plan = training.Schedule(8, 2, 0, "a defect", "semantic", log_every=8, save_every=7, save_every_minutes=1)
    optimizer = training.make_optimizer("adamw", system.trainable(), 1e-3)
    saver = RunSaver(tmp_path, system, {"train_backbone": False}, optimizer, plan)
    is_due = saver.is_due

    def later(step):
        saved.append(sorted(folder.name for folder in tmp_path.glob("*-*")))
        now[0] += 40
        return is_due(step)

    monkeypatch.setattr(saver, "is_due", later)
    training.train(system, items(triptychs(4)), optimizer, plan, LOGGER, save=saver)
    assert saved[2:] == [["progress-0000002"]] * 2 + [["progress-0000004"]] * 2
    assert sorted(folder.name for folder in tmp_path.glob("*-*")) == [
        "checkpoint-0000007",
        "checkpoint-0000008",
    ]


def broken_at(monkeypatch, numbers):
    loss_of = training.training_loss

    def broken(system, batch, schedule, step):
        return loss_of(system, batch, schedule, step) * (BROKEN if step + 1 in numbers else 1)

    monkeypatch.setattr(training, "training_loss", broken)


@pytest.mark.bit_equality
@pytest.mark.parametrize("optimizer", ["adamw", "prodigy"])
def test_steps_that_are_left_out_leave_no_trace_and_are_counted_over_calls(
    data, tmp_path, monkeypatch, optimizer
):
    command = flags(data, tmp_path, 4, "--optimizer", optimizer, "--lr_schedule", "constant")
    with monkeypatch.context() as patched:
        broken_at(patched, [3, 4])
        with pytest.raises(FloatingPointError, match="step 3: loss nan"):
            train_semantic_fill.main([*command, "--out", str(tmp_path / "stop")])
        train_semantic_fill.main([*command, "--on_nan", "skip"])
    assert read_config(find_checkpoint(tmp_path))["steps_left_out"] == 2
    log = (tmp_path / "train.log").read_text()
    assert "the step is left out, 8 more may be" in log and "of 00" in log
    two = tmp_path / "two"
    train_semantic_fill.main([*flags(data, two, 2, "--optimizer", optimizer)])
    assert equal(tensors_of(tmp_path), tensors_of(two))
    with monkeypatch.context() as patched:
        broken_at(patched, [5])
        train_semantic_fill.main([*command, "--steps", "6", "--on_nan", "skip"])
    assert "the step is left out, 7 more may be" in (tmp_path / "train.log").read_text()
    train_semantic_fill.main([*command, "--steps", "7", "--on_nan", "stop"])
    assert (
        read_config(find_checkpoint(tmp_path))["steps_left_out"] == 3
    )  # what was left out before stays on record


def test_the_eleventh_step_that_is_not_finite_ends_the_run(monkeypatch, lines, tmp_path):
    broken_at(monkeypatch, range(2, 20))
    system = tiny_system()
    plan = training.Schedule(16, 2, 0, "a defect", "semantic", log_every=16)
    optimizer = training.make_optimizer("adamw", system.trainable(), 1e-3)
    left_out = LeftOut(10, lines[0].warning)
    saver = RunSaver(tmp_path, system, {"train_backbone": False}, optimizer, plan, left_out=left_out)
    with pytest.raises(FloatingPointError, match="step 12: loss nan"):
        training.train(system, items(triptychs(4)), optimizer, plan, lines[0], save=saver)
    once = tiny_system()
    training.train(
        once,
        items(triptychs(4)),
        training.make_optimizer("adamw", once.trainable(), 1e-3),
        plan._replace(steps=1),
        lines[0],
    )
    assert all(torch.equal(value, parameters_of(once)[name]) for name, value in parameters_of(system).items())
    assert not list(tmp_path.glob("*-*"))


def test_tensors_that_are_not_finite_are_neither_saved_nor_read(data, tmp_path):
    train_semantic_fill.main(flags(data, tmp_path, 1))
    folder = find_checkpoint(tmp_path)
    config = read_config(folder)
    system = tiny_system()
    next(iter(system.attention.parameters())).data[0] = BROKEN
    with pytest.raises(FloatingPointError, match="no checkpoint is written.*attention/"):
        save_system(tmp_path, 2, system, config)
    assert [one.name for one in tmp_path.glob("*checkpoint*")] == [folder.name]
    state = load_file(folder / ATTENTION_FILE)
    next(iter(state.values())).view(-1)[0] = BROKEN
    save_file(state, folder / ATTENTION_FILE)
    text = (folder / "config.json").read_text()
    assert HASHES in text
    (folder / "config.json").write_text(text.replace(HASHES, "old_hashes").replace("config_sha256", "old"))
    with pytest.raises(DamagedFile, match=f"{ATTENTION_FILE} .*not finite.*no picture is the cause"):
        read_tensors(folder / ATTENTION_FILE)
