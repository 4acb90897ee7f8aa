"""Attentions made trainable (temperatures, gates from 0, own rate, split contexts), as a user trains and tests them."""

import json
from types import SimpleNamespace

import pytest
import torch
from checkpoint_contents import state

import train_cross_attention
import train_cross_attention_feedback
from files.command import Refusal
from run_folder import flags as command_line
from run_folder.settings import CROSS_ATTENTION_GROUPS
from scripts.export.__main__ import given_of
from training import feedback
from training.feedback_recipes import GROUPS as FEEDBACK_GROUPS

FLAGS = [*"--cross_attn_qk_norm --cross_attn_gate zero --cross_attn_lr 0.02 --split_text_context".split()]
FLAGS += [*"--image_cross_attn_after 2 --cross_attn_heads 4 --watch".split()]
IMAGES = "image_adapter_cross_attn.pth"


@pytest.fixture
def run(cross_flags, tmp_path):
    """Function (name, *further flags) -> folder of the trained run."""

    def train(name, *more):
        train_cross_attention.main([*cross_flags, *FLAGS, "--save_path", str(tmp_path / name), *more])
        return tmp_path / name

    return train


@pytest.mark.parametrize("control", ["none", "constant", pytest.param("other_class", marks=pytest.mark.slow)])
def test_every_control_trains_and_is_tested_with_what_it_was_trained_with(run, evaluate, control):
    folder = run("run", "--context_control", control)
    image = state(folder, IMAGES)
    gate = image["image_cross_attn"]["gate"]
    assert gate.shape == (2,) and gate.all()
    rates = [group["lr"] for group in image["image_optimizer"]["param_groups"]]
    assert rates == [0.01, 0.02]
    (loop,) = json.loads((folder / "history.json").read_text(encoding="utf-8"))["loops"]
    seen = loop["image"][0]["watch"]
    assert seen["gate"] == {"image_cross_attn": pytest.approx(gate.tolist())}
    assert len(seen["temperature"]["image_cross_attn"]) == 4
    assert ("attention_entropy" in seen) == (control != "constant")  # of one token there is none
    (result,) = evaluate(folder)
    assert 0 <= result["mean"]["pixel_auroc"] <= 1
    with pytest.raises(RuntimeError, match="--cross_attn_temperature was 10.0, is 5.0"):
        evaluate(folder, "--cross_attn_qk_norm", "--cross_attn_temperature", "5")


@pytest.mark.slow
@pytest.mark.bit_equality
def test_a_continued_run_ends_as_one_that_never_stopped(run):
    whole = run("whole", "--image_epoch", "2")
    run("continued", "--image_epoch", "1")
    continued = run("continued", "--image_epoch", "2")
    ours, theirs = state(continued, IMAGES), state(whole, IMAGES)
    for key in ("image_adapter", "image_cross_attn"):
        assert all((ours[key][name] == value).all() for name, value in theirs[key].items())
    assert [entry["watch"] for entry in ours["history"]] == [entry["watch"] for entry in theirs["history"]]


def test_attention_pictures_split_the_weights_between_both_contexts(run, evaluate):
    folder = run("run")
    evaluate(folder, "--attention_of", "mvtec_ad/bottle/test/broken/000.png")
    assert len([*(folder / "attention").rglob("*.png")]) == 2


def test_two_contexts_are_not_exported():
    scorer = SimpleNamespace(
        class_anchors=lambda name: torch.zeros(4, 2), class_context=lambda name: (torch.zeros(3, 4),) * 2
    )
    with pytest.raises(Refusal, match="--split_text_context attends to two contexts"):
        given_of(scorer, SimpleNamespace(class_name="object"))


def test_in_feedback_loops_the_attentions_own_rate_falls_as_the_others_do(cross_flags, tmp_path, monkeypatch):
    monkeypatch.setattr(feedback, "draw_curves", lambda path, loops: None)
    loops = [*"--num_feedback_loops 2 --loop2_text_epoch 1 --loop2_image_epoch 1".split()]
    more = [*FLAGS, *loops, "--save_path", str(tmp_path / "run")]
    train_cross_attention_feedback.main([*cross_flags, *more])
    for stage in ("text", "image"):
        groups = state(tmp_path / "run", f"loop_2_{stage}_adapter.pth")[f"{stage}_optimizer"]["param_groups"]
        assert [group["initial_lr"] for group in groups] == [0.005, 0.01]


def test_a_temperature_without_normalisation_is_refused(capsys):
    with pytest.raises(SystemExit):
        command_line.parse("x", CROSS_ATTENTION_GROUPS, ["--cross_attn_temperature", "5"])
    assert (
        "--cross_attn_temperature 5.0: does nothing without --cross_attn_qk_norm" in capsys.readouterr().err
    )


@pytest.mark.parametrize("rate", ["-0.1", "0", "nan", "inf"])
def test_a_rate_that_trains_nothing_is_refused_with_the_other_flags(rate, capsys):
    for groups in (CROSS_ATTENTION_GROUPS, FEEDBACK_GROUPS):
        with pytest.raises(SystemExit):
            command_line.parse("x", groups, [f"--cross_attn_lr={rate}"])
        assert f"--cross_attn_lr {float(rate)}: expected a learning rate above 0" in capsys.readouterr().err
