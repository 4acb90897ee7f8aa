"""--precision fp16: a scaled loss, steps that overflow, their state in checkpoints; --tf32, accelerate's own flag."""

import json
import os
import signal

import pytest
import torch

import train
from files.tensors import load_tensors
from run_folder.guarded_step import LeftOut
from run_folder.progress import EPOCH_FILE
from run_folder.state import TrainState
from training import engine
from training.engine import StagePlan, train_stage

LARGEST = 65504.0  # of float16


@pytest.fixture(params=[1, 3])
def every(request, monkeypatch):
    """Steps between two looks: a CPU's, and those of a device that has to be waited for."""
    monkeypatch.setattr("training.engine.steps_per_look", lambda plan, device: request.param)


@pytest.fixture
def train_scaled(lines, batch):
    """Function (gradients of the steps, factors of the losses, start of the scale) -> (TrainState, taken weights)."""

    def run(gradients, losses=None, scale=2.0**16, more=None):
        weight = torch.nn.Parameter(torch.tensor([1.0]))
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        state = TrainState("image", {}, torch.optim.SGD([weight], lr=0.5), scaler=scaler)
        factors = losses or [1.0] * len(gradients)
        batches = [
            batch | {"gradient": gradient, "factor": factor}
            for gradient, factor in zip(gradients, factors, strict=True)
        ]

        def step_loss(one):
            # a product in float16, whose gradient overflows where scale times gradient is too large for the type
            half = weight.half() * one["gradient"]
            return {"line": (half.float() * one["factor"]).sum()}

        watched = torch.nn.ParameterList([weight])
        left_out = None if more is None else LeftOut(more, lines[0].warning)
        plan = StagePlan(1, log_gradient_norms_of={"adapter": watched}, left_out=left_out)
        train_stage(state, step_loss, batches, plan, "cpu", lines[0], lambda now: None)
        return state, weight.item()

    return run


def test_a_step_whose_scaled_gradient_overflows_is_not_taken_and_the_scale_is_halved_until_it_fits(
    train_scaled, every, lines
):
    state, weight = train_scaled([1.0, 1.0, 1.0, 2.0], scale=4 * 2.0**16)
    # 2^18 and 2^17 and 2^16 are infinite in float16; at 2^15 the fourth, whose gradient is 2, overflows as well
    (entry,) = state.history
    assert entry["steps_overflowed"] == 4 and weight == 1.0 and state.scaler.get_scale() == 2.0**14
    assert entry["gradients"] == {"adapter": 0.0} and entry["loss"] == pytest.approx(1.25)
    assert any("4 steps not taken, the loss scale is now 16384" in line for line in lines[1])


def test_steps_that_fit_are_taken_with_the_gradient_of_the_loss_as_it_is(train_scaled, every):
    state, weight = train_scaled([1.0, 1.0, 0.25], scale=2.0**16)
    (entry,) = state.history
    assert weight == pytest.approx(1 - 0.5 * (1.0 + 0.25)) and entry["steps_overflowed"] == 1
    assert entry["gradients"]["adapter"] == pytest.approx((1.0 + 0.25) / 2)


def test_a_gradient_that_is_not_finite_at_any_scale_ends_the_stage(train_scaled, every):
    with pytest.raises(FloatingPointError, match="the gradient is not finite"):
        train_scaled([1.0] + [LARGEST] * 30, losses=[1.0] + [1e6] * 30)


def test_a_loss_that_is_not_finite_ends_the_stage_whatever_the_scale_is(train_scaled, every):
    with pytest.raises(FloatingPointError, match="the loss is not finite"):
        train_scaled([1.0, 1.0], losses=[1.0, float("inf")], scale=2.0)


def test_steps_that_overflow_are_not_counted_among_those_that_on_nan_may_leave_out(train_scaled, every):
    state, _ = train_scaled([1.0, 1.0, 1.0, 1.0], [1.0, 1.0, float("nan"), 1.0], scale=2.0**17, more=1)
    (entry,) = state.history
    assert (entry["steps_overflowed"], entry["steps_left_out"]) == (2, 1)


@pytest.fixture
def start(train_flags, tmp_path):
    """Function (folder's name, further flags) -> folder of a run in float16 on the CPU."""

    def run(name, *more):
        folder = tmp_path / name
        own = ["--save_path", str(folder), "--mixed_precision", "fp16", "--device", "cpu"]
        train.main([*train_flags, *own, "--image_epoch", "2", "--image_lr", "1e-2", *more])
        return folder

    return run


@pytest.mark.bit_equality
def test_a_run_in_float16_goes_on_inside_an_epoch_as_if_never_stopped(start, monkeypatch):
    whole_step, count = engine.train_step, [0]

    def stopped_in_step_5(*args):
        count[0] += 1
        if count[0] == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return whole_step(*args)

    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(engine, "train_step", stopped_in_step_5)
        start("stopped")
    folder = start("stopped")
    wanted, found = (load_tensors(one / "image_adapter.pth") for one in (start("whole"), folder))
    assert found["scaler"] == wanted["scaler"] and found["settings"]["precision"] == "fp16"
    for key, value in wanted["image_adapter"].items():
        assert torch.equal(found["image_adapter"][key], value), key
    assert not (folder / EPOCH_FILE).exists()
    log = (folder / "train.log").read_text(encoding="utf-8")
    assert "precision fp16, TF32 off, processes 1" in log
    moved = json.loads((folder / "history.json").read_text(encoding="utf-8"))["loops"][0]["image"]
    assert moved[1]["loss"] < moved[0]["loss"]


def test_tf32_is_off_on_cuda_unless_it_is_asked_for(start):
    products = torch.backends.cuda.matmul, torch.backends.cudnn
    torch.backends.cudnn.allow_tf32 = True  # as torch has it
    folder = start("off", "--image_epoch", "0")
    assert [one.allow_tf32 for one in products] == [False, False]
    try:
        start("on", "--image_epoch", "0", "--tf32")
        assert [one.allow_tf32 for one in products] == [True, True]
        with pytest.raises(RuntimeError, match="--tf32 was False, is True"):
            start("off", "--tf32")
    finally:
        for one in products:
            one.allow_tf32 = False
    assert "TF32 off" in (folder / "train.log").read_text(encoding="utf-8")


def test_a_precision_that_accelerate_alone_was_told_is_refused(start, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(ValueError, match="accelerate was told --mixed_precision bf16"):
        start("refused")
