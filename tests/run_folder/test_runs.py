"""Resuming, adopting settings, milestones: run_folder/{resume,state,loaded_run}.py, training/."""

import os
import random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from evaluation.run import GROUPS as TEST_GROUPS
from files.atomic import sha256
from files.digests import state_digest
from run_folder.checkpoints import load_checkpoint, load_modules, save_checkpoint, settings_in
from run_folder.flags import settings_of
from run_folder.loaded_run import adopt
from run_folder.resume import check_same_run, resume_stage
from run_folder.session import Session
from run_folder.settings import BASELINE_GROUPS
from run_folder.state import Record, TrainState, record_of
from training.optimisation import adam, milestones_in_steps, only_training
from utils import choose_device, close_logger, get_logger, lock_run, setup_seed

SETTINGS = {"relu": False, "img_size": 32, "seed": 111, "text_epoch": 5, "milestones": [0.5, 0.8]}
BACKBONE = {"file": "tiny.safetensors", "sha256": "00"}


def settings(**changed):
    return settings_of(BASELINE_GROUPS, SETTINGS | changed)


@pytest.mark.parametrize(
    ("given", "steps"),
    [
        ([16000.0, 32000.0], [16000, 32000]),
        ([0.5, 0.8], [50, 80]),
        ([0.001], [1]),
        ([1.0], [1]),
        ([0.255], [26]),
    ],
)
def test_milestones_are_batches_or_fractions_of_the_run(given, steps):
    assert milestones_in_steps(given, 100) == steps


@pytest.mark.parametrize("given", [[0.5, 1.0], [0.5, 100.0], [0.0], [-1.0], [1.5], [float("nan")]])
def test_milestones_that_mix_both_or_are_neither_are_refused(given):
    with pytest.raises(ValueError, match="whole steps .* or fractions"):
        milestones_in_steps(given, 100)


def test_the_optimiser_is_upstreams_adam():
    optimizer = adam({"a": nn.Linear(2, 2)}, 1e-3)
    assert type(optimizer) is torch.optim.Adam
    assert optimizer.defaults["betas"] == (0.5, 0.999) and optimizer.defaults["lr"] == 1e-3
    assert optimizer.defaults["weight_decay"] == 0 and len(optimizer.param_groups[0]["params"]) == 2


def stage(name="text", scheduled=True):
    """TrainState of a stage that has not begun, and its module."""
    torch.manual_seed(0)
    module = nn.Linear(3, 3)
    optimizer = adam({"module": module}, 1e-2)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4], gamma=0.5) if scheduled else None
    return TrainState(name, {f"{name}_adapter": module}, optimizer, scheduler), module


def step(state, module):
    state.optimizer.zero_grad()
    module(torch.randn(4, 3)).square().sum().backward()
    state.optimizer.step()
    state.scheduler.step()
    state.epoch += 1
    state.history.append({"epoch": state.epoch - 1, "loss": 1.0})


def resume(path, state, lines, given=None, **options):
    resume_stage(path, state, Session(given or settings(), torch.device("cpu"), lines[0]), **options)
    return state.epoch


@pytest.mark.bit_equality
def test_a_resumed_stage_goes_on_bit_for_bit(tmp_path, lines):
    state, module = stage()
    for _ in range(3):
        step(state, module)
    state.save([tmp_path / "a.pth"], Record(SETTINGS, {"torch": "x"}, BACKBONE))
    for _ in range(3):
        step(state, module)
    state_again, again = stage()
    done = resume(tmp_path / "a.pth", state_again, lines)
    assert (
        done == 3
        and state_again.scheduler.get_last_lr() == [0.005]
        and state_again.history == state.history[:3]
    )
    for _ in range(3):
        step(state_again, again)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), again.parameters(), strict=True))
    assert state_again.scheduler.get_last_lr() == state.scheduler.get_last_lr() == [0.0025]
    assert state_again.history == state.history


def test_a_stages_file_has_upstreams_keys_and_what_a_resume_needs(tmp_path):
    state, module = stage("image")
    state.epoch = 2
    files = [tmp_path / "image_adapter_2.pth", tmp_path / "image_adapter.pth"]
    state.save(files, Record(SETTINGS, {}, BACKBONE))
    for file in files:
        content = load_checkpoint(file)
        assert set(content) == {
            "epoch",
            "image_adapter",
            "image_optimizer",
            "scheduler",
            "rng",
            "settings",
            "versions",
            "backbone",
            "history",
        }
        assert content["settings"] == SETTINGS == settings_in(file)
        assert content["epoch"] == 2 and content["backbone"] == BACKBONE and content["history"] == []


def test_a_file_without_a_record_is_written_where_aa_clips_functions_are_called(tmp_path):
    state, _ = stage(scheduled=False)
    state.save([tmp_path / "text_adapter.pth"])
    assert set(load_checkpoint(tmp_path / "text_adapter.pth")) == {
        "epoch",
        "text_adapter",
        "text_optimizer",
        "rng",
        "history",
    }
    assert settings_in(tmp_path / "text_adapter.pth") is None


def test_a_record_holds_every_flag_the_libraries_and_the_backbones_file_and_hash(clip, weights):
    record = record_of(settings(), clip)
    assert record.settings == settings().record() and record.settings["milestones"] == [0.5, 0.8]
    assert set(record.versions) == {"torch", "open_clip", "numpy"}
    assert record.backbone == {
        "file": weights.name,
        "sha256": sha256(weights),
        "tensors": state_digest(load_file(weights)),
    }


def test_without_a_file_a_stage_starts_at_zero(tmp_path, lines):
    assert resume(tmp_path / "none.pth", stage()[0], lines) == 0 and not lines[1]


@pytest.mark.bit_equality
def test_a_file_of_aa_clip_resumes_and_the_log_says_what_it_lacks(tmp_path, lines):
    state, module = stage()
    step(state, module)
    optimizer = state.optimizer.state_dict()
    content = {"epoch": 4, "text_adapter": module.state_dict(), "text_optimizer": optimizer}
    torch.save(content, tmp_path / "a.pth")
    again, weights = stage(scheduled=False)
    assert resume(tmp_path / "a.pth", again, lines) == 4 and torch.equal(weights.weight, module.weight)
    assert again.optimizer.state_dict()["state"][0]["step"] == 1 and again.history == []
    assert any("no RNG state" in line for line in lines[1])


def test_a_file_of_the_wrong_stage_is_refused(tmp_path, lines):
    save_checkpoint(tmp_path / "a.pth", {"epoch": 1, "image_adapter": {}, "image_optimizer": {}})
    with pytest.raises(RuntimeError, match=r"lacks \['text_adapter', 'text_optimizer'\]"):
        resume(tmp_path / "a.pth", stage()[0], lines)


def test_a_file_of_another_run_is_refused_before_any_weight_is_loaded(tmp_path, lines):
    state, module = stage()
    nn.init.ones_(module.weight)
    state.save([tmp_path / "a.pth"], Record(SETTINGS, {}, BACKBONE))
    other, untouched = stage()
    with pytest.raises(RuntimeError, match="--seed was 111, is 5"):
        resume(tmp_path / "a.pth", other, lines, settings(seed=5))
    assert (untouched.weight != 1).any() and other.epoch == 0
    with pytest.raises(RuntimeError, match="lacks .*'image_adapter'"):
        load_modules(tmp_path / "a.pth", {"image_adapter": module})


def test_the_end_of_a_stage_may_move_until_something_was_built_on_it(tmp_path, lines):
    for name, milestones, longer in (
        ("text", [0.5], {"text_epoch", "image_epoch"}),
        ("image", [16000.0], {"image_epoch"}),
        ("image", [0.5], set()),
    ):
        path, whole = tmp_path / "a.pth", settings(milestones=milestones)
        stage(name)[0].save([path], Record(whole.record(), {}, BACKBONE))
        for flag in ("text_epoch", "image_epoch"):
            if flag in longer:
                resume(path, stage(name)[0], lines, whole.change(**{flag: 9}))
            else:
                with pytest.raises(RuntimeError, match=f"--{flag} was .*, is 9"):
                    resume(path, stage(name)[0], lines, whole.change(**{flag: 9}))
        with pytest.raises(RuntimeError, match="--text_epoch was 5, is 9"):
            resume(path, stage(name)[0], lines, whole.change(text_epoch=9), extendable={"seed"})


def test_training_alone_ends_in_evaluation_mode_and_gives_gradients_back_to_who_had_them():
    model = nn.ModuleDict(
        {"a": nn.Linear(1, 1), "b": nn.Linear(1, 1), "c": nn.Linear(1, 1).requires_grad_(False)}
    )
    with pytest.raises(KeyboardInterrupt), only_training(model, {"c": model["c"]}):
        assert model["c"].training and not model["a"].training
        assert [part.weight.requires_grad for part in model.values()] == [False, False, True]
        raise KeyboardInterrupt
    assert [part.weight.requires_grad for part in model.values()] == [True, True, False]
    assert not any(module.training for module in model.modules())


def test_continuing_with_other_flags_is_refused_with_each_flag_and_both_values():
    with pytest.raises(RuntimeError) as error:
        check_same_run(SETTINGS, settings(seed=5, milestones=[16000.0]), "run/a.pth")
    for part in (
        "run/a.pth",
        "--seed was 111, is 5",
        "--milestones was [0.5, 0.8], is [16000.0]",
        "--save_path",
    ):
        assert part in str(error.value)
    assert "relu" not in str(error.value)


def test_a_run_older_than_a_flag_continues_as_it_was_and_not_with_the_flag():
    old = {"seed": 1}
    check_same_run(old, settings(seed=1, precision="fp32", extra_meta=None), "a.pth")
    with pytest.raises(RuntimeError, match="--precision was 'fp32', is 'bf16'"):
        check_same_run(old, settings(seed=1, precision="bf16"), "a.pth")


def test_a_run_continues_with_the_masks_read_as_they_were():
    check_same_run({"seed": 1}, settings(seed=1), "a.pth")
    with pytest.raises(RuntimeError, match="--mask_reading was 'upstream', is 'robust'"):
        check_same_run({"seed": 1}, settings(seed=1, mask_reading="robust"), "a.pth")


def test_flags_that_change_no_number_may_differ_and_unknown_ones_are_no_obstacle():
    same = SETTINGS | {"device": "cpu", "workers": 0, "data_root": "a", "save_path": "a"}
    other = same | {"device": "cuda", "workers": 4, "data_root": "b", "save_path": "b"}
    check_same_run(same, settings(**other), "a.pth")
    check_same_run(same, settings(**same | {"text_epoch": 9}), "a.pth", extendable={"text_epoch"})
    check_same_run(SETTINGS | {"flag of a later version": 1}, settings(), "a.pth")
    check_same_run(None, settings(), "a.pth")


ADAPTER = {
    "model_name": "ViT-L-14-336",
    "relu": False,
    "text_adapt_weight": 0.1,
    "image_adapt_weight": 0.1,
    "text_adapt_until": 3,
    "image_adapt_until": 6,
    "img_size": 518,
    "quick_gelu": False,
}


def flags(*explicit, **values):
    """Settings of test.py's command line with these values, of which the user gave the explicit ones."""
    return settings_of(TEST_GROUPS, ADAPTER | values, frozenset(explicit))


def test_settings_not_given_come_from_the_checkpoint(lines):
    stored = ADAPTER | {"relu": True, "image_adapt_until": 4, "quick_gelu": True}
    adopted = adopt(flags("img_size"), stored, "a.pth", lines[0])
    assert (adopted.model.relu, adopted.model.image_adapt_until) == (True, 4)
    assert (adopted.network.quick_gelu, adopted.model.img_size) == (True, 518)
    assert adopted.explicit == {"img_size"} and adopt(adopted, stored, "a.pth", lines[0]) == adopted


def test_a_given_adapter_flag_against_the_checkpoint_is_refused_with_both_values(lines):
    with pytest.raises(
        RuntimeError, match="a.pth was made with other adapter settings: --relu was False, is True"
    ):
        adopt(flags("relu", relu=True), ADAPTER, "a.pth", lines[0])


def test_another_image_size_is_allowed_when_given_and_said(lines):
    adopted = adopt(flags("img_size", img_size=224), ADAPTER, "a.pth", lines[0])
    assert adopted.model.img_size == 224 and any(
        "--img_size 518, tested with 224" in line for line in lines[1]
    )


def test_corrections_of_a_checkpoint_are_said_and_files_without_settings_change_nothing(lines):
    given = flags()
    assert adopt(given, None, "a.pth", lines[0]) == given and not lines[1]
    adopt(given, ADAPTER | {"text_loss_levels": "all", "head_temperature": 1.0}, "a.pth", lines[0])
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
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.backends.cuda.cudnn_sdp_enabled() and torch.backends.cuda.flash_sdp_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_a_fast_run_may_use_any_kernel():
    setup_seed(7, fast=True)
    assert not torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.deterministic
    assert torch.backends.cuda.cudnn_sdp_enabled() and torch.backends.cudnn.benchmark
    setup_seed(7)
    assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark


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
