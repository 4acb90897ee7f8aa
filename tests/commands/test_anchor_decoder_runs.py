"""`--anchor_decoder` as a user trains and tests with it."""

import json

import pytest
import torch
from checkpoint_contents import state

import train_cross_attention
from run_folder import flags as command_line
from run_folder.loaded_run import load_run
from run_folder.settings import CROSS_ATTENTION_GROUPS

IMAGES = "image_adapter_cross_attn.pth"
FLAGS = [
    *"--anchor_decoder 2 --cross_attn_heads 4 --image_cross_attn_weight 0 --text_cross_attn_weight 0".split()
]


@pytest.fixture
def run(cross_flags, tmp_path):
    """Function (name, *further flags) -> folder of the trained run."""

    def train(name, *more):
        train_cross_attention.main([*cross_flags, *FLAGS, "--save_path", str(tmp_path / name), *more])
        return tmp_path / name

    return train


@pytest.mark.parametrize("control", ["none", pytest.param("constant", marks=pytest.mark.slow)])
def test_a_run_and_its_control_are_trained_and_tested_alike(run, evaluate, control):
    folder = run("run", "--anchor_decoder_control", control, "--watch")
    loaded = load_run(folder).model.anchor_decoder
    stored = state(folder, IMAGES)["anchor_decoder"]
    assert all(torch.equal(value, stored[name]) for name, value in loaded.state_dict().items())
    assert stored["out.weight"].any() and (loaded.start is None) == (control == "none")
    (loop,) = json.loads((folder / "history.json").read_text(encoding="utf-8"))["loops"]
    seen = loop["image"][0]["watch"]
    assert seen["displacement"]["anchor_decoder"] > 0
    assert 0 < seen["attention_entropy"]["anchor_decoder.layers.0.to_image"] <= 1
    (result,) = evaluate(folder)
    assert 0 <= result["mean"]["pixel_auroc"] <= 1
    other = {"none": "constant", "constant": "none"}[control]
    with pytest.raises(RuntimeError, match=f"--anchor_decoder_control was '{control}', is '{other}'"):
        evaluate(folder, "--anchor_decoder", "2", "--anchor_decoder_control", other)


@pytest.mark.slow
@pytest.mark.bit_equality
def test_a_continued_run_ends_as_one_that_never_stopped(run):
    whole = state(run("whole", "--image_epoch", "2"), IMAGES)
    run("continued", "--image_epoch", "1")
    continued = state(run("continued", "--image_epoch", "2"), IMAGES)
    for key in ("image_adapter", "anchor_decoder"):
        assert all(torch.equal(continued[key][name], value) for name, value in whole[key].items())


def test_a_control_of_no_decoder_is_refused(capsys):
    with pytest.raises(SystemExit):
        command_line.parse("x", CROSS_ATTENTION_GROUPS, ["--anchor_decoder_control", "constant"])
    assert (
        "--anchor_decoder_control constant: does nothing without --anchor_decoder" in capsys.readouterr().err
    )
