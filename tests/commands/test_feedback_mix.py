"""`--feedback_mix` as a user trains and tests with it: train_cross_attention_feedback.py, test.py."""

import json

import pytest
import torch
from checkpoint_contents import state
from feedback_miniature import KEYS, same

import train_cross_attention_feedback
from evaluation.scorer import scorer_of
from forward_utils import fixed_anchors
from model.mixing import BothSides, mixture
from run_folder.loaded_run import load_run
from training import feedback

OFF = ["--text_cross_attn_weight", "0", "--image_cross_attn_weight", "0"]
LOOPS = ["--num_feedback_loops", "2", "--loop1_text_epoch", "1", "--loop2_text_epoch", "1"]


def final(folder):
    return state(folder, "final_model.pth")


@pytest.mark.slow
@pytest.mark.bit_equality
def test_at_1_it_is_the_feedback_run_without_the_flag(train_loops):
    plain, one = train_loops("plain", *LOOPS), train_loops("one", *LOOPS, "--feedback_mix", "1")
    assert same(final(one), final(plain))


@pytest.mark.bit_equality
@pytest.mark.parametrize("mix, apart", [("0", True), pytest.param("0.5", False, marks=pytest.mark.slow)])
def test_at_0_no_side_depends_on_what_the_other_learns(train_loops, mix, apart):
    shared = [*LOOPS, *OFF, "--feedback_mix", mix]
    plain, other_image, other_text = (
        final(train_loops(name, *shared, *more))
        for name, more in (
            ("plain", ()),
            ("image", ("--image_lr", "0.03")),
            ("text", ("--text_lr", "0.03")),
        )
    )
    assert same(other_image, plain, ["text_adapter"]) == same(other_text, plain, ["image_adapter"]) == apart
    assert not same(other_image, plain, ["image_adapter"]) and not same(other_text, plain, ["text_adapter"])


def test_a_run_is_tested_by_both_sides_maps_or_by_that_of_the_trained_pair(train_loops, evaluate, images):
    folder = train_loops("run", *LOOPS, "--feedback_mix", "0.4")
    run = load_run(folder)
    scorer = scorer_of(run, "MVTec")
    assert isinstance(scorer.network, BothSides) and scorer.network.share == 0.4
    maps, scores = scorer.score(images, "screw")
    trained = run.anchors("MVTec")({"class_name": ["screw"] * 4})
    frozen = fixed_anchors(run.model.clipmodel, "MVTec")({"class_name": ["screw"] * 4})
    mixed = mixture(frozen, trained, 0.4, dim=-2)
    torch.testing.assert_close(scorer.class_anchors("screw"), torch.cat([mixed, trained], dim=-1)[0])
    with torch.no_grad():
        seg, det = run.model(images, [(None, scorer.class_context("screw"))])
    torch.testing.assert_close(scores, (torch.einsum("be,be->b", det, mixed[..., 1]) + 1) / 2)
    assert scorer_of(load_run(folder, loop=1), "MVTec").network.share == 0

    ((both,), (pair,)) = evaluate(folder), evaluate(folder, "--feedback_maps", "trained")
    assert both["mean"] != pair["mean"]
    entry = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["MVTec"]["final_model.pth"]
    assert (entry["tested_with"]["feedback_mix"], entry["tested_with"]["feedback_maps"]) == (0.4, "trained")
    for flag, value, why in (
        ("--feedback_mix", "0.5", "--feedback_mix was 0.4, is 0.5"),
        ("--text_context", "image", "whose anchors see no image: leave --text_context image away"),
    ):
        with pytest.raises(RuntimeError, match=why):
            evaluate(folder, flag, value)


def test_a_run_of_an_older_version_is_not_tested_as_if_it_had_been_mixed(train_loops, evaluate):
    folder = train_loops("run", *LOOPS)
    content = torch.load(folder / "final_model.pth", weights_only=False)
    del content["settings"]["feedback_mix"], content["settings"]["feedback_maps"], content["digests"]
    torch.save(content, folder / "final_model.pth")
    assert load_run(folder).mix == 1
    with pytest.raises(RuntimeError, match="was trained with --feedback_mix 1.0, not 0.5"):
        evaluate(folder, "--feedback_mix", "0.5")


@pytest.mark.bit_equality
def test_a_run_killed_in_loop_2_and_started_again_ends_as_if_never_stopped(train_loops, monkeypatch):
    flags = [*LOOPS, "--feedback_mix", "0.5"]
    wanted, real = final(train_loops("whole", *flags)), feedback.save_checkpoint

    def save_checkpoint(path, content):
        if path.name == "loop_2_final.pth":
            raise KeyboardInterrupt
        real(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(feedback, "save_checkpoint", save_checkpoint)
        with pytest.raises(KeyboardInterrupt):
            train_loops("killed", *flags)
    assert same(final(train_loops("killed", *flags)), wanted, KEYS)
    with pytest.raises(RuntimeError, match="--feedback_mix was 0.5, is 0.25"):
        train_loops("killed", *LOOPS, "--feedback_mix", "0.25")


@pytest.mark.parametrize("share", ["-0.1", "1.5", "nan"])
def test_a_share_that_is_none_is_refused(cross_flags, share):
    with pytest.raises(ValueError, match=r"--feedback_mix \S+: expected a share from 0 to 1"):
        train_cross_attention_feedback.main([*cross_flags, "--feedback_mix", share])


def test_anchors_that_see_images_are_not_mixed(capsys):
    with pytest.raises(SystemExit):
        train_cross_attention_feedback.main(["--feedback_mix", "0.5", "--text_context", "image"])
    assert "--feedback_mix 0.5: needs --text_context none" in capsys.readouterr().err
