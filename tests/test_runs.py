"""Resuming, adopting settings, milestones: runs.py."""

import os
import random
from argparse import Namespace

import numpy as np
import pytest
import torch
from torch import nn

import runs
from checkpoints import load_checkpoint, save_checkpoint
from runs import Record, adopt_settings, check_same_run, milestones_in_steps, resume_stage, save_stage
from utils import choose_device, close_logger, get_logger, lock_run, setup_seed

SETTINGS = {"relu": False, "img_size": 32, "seed": 111, "text_epoch": 5, "milestones": [0.5, 0.8]}


@pytest.mark.parametrize(
    ("given", "steps"),
    [([16000.0, 32000.0], [16000, 32000]), ([0.5, 0.8], [50, 80]), ([0.001], [1]), ([1.0], [1]), ([0.255], [26])],
)
def test_milestones_are_batches_or_fractions_of_the_run(given, steps):
    assert milestones_in_steps(given, 100) == steps


@pytest.mark.parametrize("given", [[0.5, 1.0], [0.5, 100.0], [0.0], [-1.0], [1.5], [float("nan")]])
def test_milestones_that_mix_both_or_are_neither_are_refused(given):
    with pytest.raises(ValueError, match="whole steps .* or fractions"):
        milestones_in_steps(given, 100)


def test_the_optimiser_is_upstreams_adam():
    optimizer = runs.adam({"a": nn.Linear(2, 2)}, 1e-3)
    assert type(optimizer) is torch.optim.Adam
    assert optimizer.defaults["betas"] == (0.5, 0.999) and optimizer.defaults["lr"] == 1e-3
    assert optimizer.defaults["weight_decay"] == 0 and len(optimizer.param_groups[0]["params"]) == 2


def stage():
    """(module, optimizer, scheduler) of a stage, a step into training."""
    torch.manual_seed(0)
    module = nn.Linear(3, 3)
    optimizer = runs.adam({"module": module}, 1e-2)
    return module, optimizer, torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4], gamma=0.5)


def step(module, optimizer, scheduler):
    optimizer.zero_grad()
    module(torch.randn(4, 3)).square().sum().backward()
    optimizer.step()
    scheduler.step()


def test_a_resumed_stage_goes_on_bit_for_bit(tmp_path, lines):
    module, optimizer, scheduler = stage()
    for _ in range(3):
        step(module, optimizer, scheduler)
    save_stage(tmp_path / "a.pth", 3, {"text_adapter": module}, "text_optimizer", optimizer, scheduler,
               Record(SETTINGS, {"torch": "x"}))  # fmt: skip
    for _ in range(3):
        step(module, optimizer, scheduler)
    again, optimizer_again, scheduler_again = stage()
    done = resume_stage(tmp_path / "a.pth", {"text_adapter": again}, "text_optimizer", optimizer_again, scheduler_again,
                        Namespace(**SETTINGS), lines[0])  # fmt: skip
    assert done == 3 and scheduler_again.get_last_lr() == [0.005]
    for _ in range(3):
        step(again, optimizer_again, scheduler_again)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), again.parameters(), strict=True))
    assert scheduler_again.get_last_lr() == scheduler.get_last_lr() == [0.0025]


def test_a_stages_file_has_upstreams_keys_and_what_a_resume_needs(tmp_path):
    module, optimizer, scheduler = stage()
    files = [tmp_path / "image_adapter_2.pth", tmp_path / "image_adapter.pth"]
    save_stage(files, 2, {"image_adapter": module}, "image_optimizer", optimizer, scheduler, Record(SETTINGS, {}))
    for file in files:
        content = load_checkpoint(file)
        assert set(content) == {"epoch", "image_adapter", "image_optimizer", "scheduler", "rng", "settings", "versions"}
        assert content["settings"] == SETTINGS


def test_without_a_file_a_stage_starts_at_zero(tmp_path, lines):
    module, optimizer, scheduler = stage()
    args = (tmp_path / "none.pth", {"text_adapter": module}, "text_optimizer", optimizer, scheduler)
    assert resume_stage(*args, Namespace(), lines[0]) == 0


def test_a_file_of_aa_clip_resumes_and_the_log_says_what_it_lacks(tmp_path, lines):
    module, optimizer, scheduler = stage()
    step(module, optimizer, scheduler)
    torch.save({"epoch": 4, "text_adapter": module.state_dict(), "text_optimizer": optimizer.state_dict()},
               tmp_path / "a.pth")  # fmt: skip
    again, optimizer_again, _ = stage()
    done = resume_stage(tmp_path / "a.pth", {"text_adapter": again}, "text_optimizer", optimizer_again, None,
                        Namespace(**SETTINGS), lines[0])  # fmt: skip
    assert done == 4 and torch.equal(again.weight, module.weight)
    assert optimizer_again.state_dict()["state"][0]["step"] == 1
    assert any("no RNG state" in line for line in lines[1])


def test_a_file_of_the_wrong_stage_is_refused(tmp_path, lines):
    save_checkpoint(tmp_path / "a.pth", {"epoch": 1, "image_adapter": {}, "image_optimizer": {}})
    module, optimizer, scheduler = stage()
    with pytest.raises(RuntimeError, match=r"lacks \['text_adapter', 'text_optimizer'\]"):
        resume_stage(tmp_path / "a.pth", {"text_adapter": module}, "text_optimizer", optimizer, scheduler,
                     Namespace(), lines[0])  # fmt: skip


def test_continuing_with_other_flags_is_refused_with_each_flag_and_both_values():
    with pytest.raises(RuntimeError) as error:
        check_same_run(SETTINGS, Namespace(**SETTINGS | {"seed": 5, "milestones": [16000.0]}), "run/a.pth")
    for part in ("run/a.pth", "--seed was 111, is 5", "--milestones was [0.5, 0.8], is [16000.0]", "--save_path"):
        assert part in str(error.value)
    assert "relu" not in str(error.value)


def test_a_run_older_than_a_flag_continues_as_it_was_and_not_with_the_flag():
    old = {"seed": 1}
    check_same_run(old, Namespace(seed=1, precision="fp32", extra_meta=None), "a.pth")
    with pytest.raises(RuntimeError, match="--precision was 'fp32', is 'bf16'"):
        check_same_run(old, Namespace(seed=1, precision="bf16"), "a.pth")


def test_flags_that_change_no_number_may_differ_and_unknown_ones_are_no_obstacle():
    same = SETTINGS | {"device": "cpu", "workers": 0, "data_root": "a", "save_path": "a"}
    other = same | {"device": "cuda", "workers": 4, "data_root": "b", "save_path": "b"}
    check_same_run(same, Namespace(**other), "a.pth")
    check_same_run(same, Namespace(**same | {"text_epoch": 9}), "a.pth", extendable={"text_epoch"})
    check_same_run(SETTINGS | {"flag of a later version": 1}, Namespace(**SETTINGS), "a.pth")
    check_same_run(None, Namespace(**SETTINGS), "a.pth")


ADAPTER = {"model_name": "ViT-L-14-336", "relu": False, "text_adapt_weight": 0.1, "image_adapt_weight": 0.1,
           "text_adapt_until": 3, "image_adapt_until": 6, "img_size": 518, "quick_gelu": False}  # fmt: skip


def test_settings_not_typed_come_from_the_checkpoint(lines):
    args = Namespace(**ADAPTER, typed=["img_size"])
    adopt_settings(args, ADAPTER | {"relu": True, "image_adapt_until": 4, "quick_gelu": True}, "a.pth", lines[0])
    assert (args.relu, args.image_adapt_until, args.quick_gelu, args.img_size) == (True, 4, True, 518)


def test_a_typed_adapter_flag_against_the_checkpoint_is_refused_with_both_values(lines):
    args = Namespace(**ADAPTER | {"relu": True}, typed=["relu"])
    with pytest.raises(RuntimeError, match="a.pth was made with other adapter settings: --relu was False, is True"):
        adopt_settings(args, ADAPTER, "a.pth", lines[0])


def test_another_image_size_is_allowed_when_typed_and_said(lines):
    args = Namespace(**ADAPTER | {"img_size": 224}, typed=["img_size"])
    adopt_settings(args, ADAPTER, "a.pth", lines[0])
    assert args.img_size == 224 and any("--img_size 518, tested with 224" in line for line in lines[1])


def test_corrections_of_a_checkpoint_are_said_and_files_without_settings_change_nothing(lines):
    args = Namespace(**ADAPTER, typed=[])
    adopt_settings(args, None, "a.pth", lines[0])
    assert vars(args) == ADAPTER | {"typed": []} and not lines[1]
    adopt_settings(args, ADAPTER | {"text_loss_levels": "all", "head_temperature": 1.0}, "a.pth", lines[0])
    assert any("'text_loss_levels': 'all'" in line and "head_temperature" not in line for line in lines[1])


def test_a_run_folder_belongs_to_one_worker_at_a_time(tmp_path):
    lock = lock_run(tmp_path / "run")
    with pytest.raises(RuntimeError, match="another process is working in .*run.*--save_path"):
        lock_run(tmp_path / "run")
    lock.release()
    lock_run(tmp_path / "run").release()


def test_the_same_seed_draws_the_same_numbers_and_asks_for_deterministic_kernels(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)

    def draw():
        setup_seed(7)
        return torch.rand(2).tolist(), np.random.rand(), random.random()

    assert draw() == draw()
    assert torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.deterministic
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_an_unknown_device_is_refused_with_a_remedy():
    with pytest.raises(ValueError, match="toaster"):
        choose_device("toaster")
    assert choose_device("cpu").type == "cpu"


def test_a_second_run_of_a_process_does_not_write_to_the_first_ones_log(tmp_path, capsys):
    get_logger(tmp_path / "a", "train.log").info("first")
    logger = get_logger(tmp_path / "b", "train.log")
    logger.info("second")
    close_logger(logger)
    assert (tmp_path / "a" / "train.log").read_text(encoding="utf-8").endswith("INFO first\n")
    assert "first" not in (tmp_path / "b" / "train.log").read_text(encoding="utf-8")
    assert capsys.readouterr().out == "first\nsecond\n"
