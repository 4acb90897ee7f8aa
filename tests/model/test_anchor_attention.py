"""Anchors that look at the image they judge (model/anchor_attention.py), runs with them."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from checkpoint_contents import state
from cross_attention_world import MODEL, WIDTH

import train_cross_attention
from model.adapter_cross_attention import AdaptedCLIPWithCrossAttention
from model.anchor_attention import AnchorAttention
from model.clip import create_model
from run_folder.loaded_run import load_run

OFF = ["--text_cross_attn_weight", "0", "--image_cross_attn_weight", "0"]


@pytest.fixture(scope="module")
def clip(cross_weights):
    return create_model(MODEL, 32, "openai", clip_weights=cross_weights)


@pytest.fixture
def anchors():
    return F.normalize(torch.randn(4, WIDTH, 2, generator=torch.Generator().manual_seed(5)), dim=1)


def build(clip, **settings):
    torch.manual_seed(3)
    adapters = dict(text_adapt_until=2, image_adapt_until=2, cross_attn_heads=4)
    return AdaptedCLIPWithCrossAttention(clip, relu=False, **adapters, **settings).eval()


def small(control="none", gate=0.5):
    attention = AnchorAttention(1, control)
    with torch.no_grad():
        attention[0].gate.fill_(gate)
        attention[0].log_temperature.fill_(math.log(2.0))
    return attention


def open_gates(model, value):
    for attention in model.anchor_attention:
        attention.gate.data.fill_(value)


PATCHES = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.6, 0.8], [1.0, 0.0]]])  # [2 images, 2 patches, 2]
ANCHORS = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]).expand(2, -1, -1)  # normal (1, 0), abnormal (0, 1)


@torch.no_grad()
def test_an_anchor_moves_by_the_gated_mean_of_the_patches_weighed_by_their_cosine_with_it():
    (moves,) = small()([PATCHES], ANCHORS)
    likely = math.exp(2) / (math.exp(2) + 1)  # of cosines 1 and 0 at temperature 2
    normal, abnormal = (likely, 1 - likely), (1 - likely, likely)
    torch.testing.assert_close(moves[0], 0.5 * torch.tensor([normal, abnormal]).T)
    # p·(a' - n') = p·(a - n) + gate * sum_j (alpha^a_j - alpha^n_j) p·p_j
    alpha = small()[0].attention_weights(ANCHORS.transpose(1, 2), PATCHES)[:, 0].transpose(1, 2)
    wanted = PATCHES @ ANCHORS + 0.5 * (PATCHES @ PATCHES.transpose(1, 2)) @ alpha
    torch.testing.assert_close(PATCHES @ (ANCHORS + moves), wanted)


@torch.no_grad()
def test_the_controls_see_every_patch_alike_another_image_or_by_the_other_anchors_weights():
    (moves,) = small()([PATCHES], ANCHORS)
    (uniform,), (other,), (swapped,) = (
        small(control)([PATCHES], ANCHORS) for control in ("uniform", "other_image", "swapped")
    )
    torch.testing.assert_close(uniform, 0.5 * PATCHES.mean(dim=1)[..., None].expand(-1, -1, 2))
    torch.testing.assert_close(other, moves.flip(0))
    torch.testing.assert_close(swapped, moves.flip(-1))
    with pytest.raises(ValueError, match="a batch of one image has none"):
        small("other_image")([PATCHES[:1]], ANCHORS[:1])
    with pytest.raises(ValueError, match="--anchor_attention_control loud: expected one of none, uniform"):
        AnchorAttention(1, "loud")


@pytest.mark.bit_equality
@torch.no_grad()
@pytest.mark.parametrize("reference", [0.0, 0.3])
def test_at_gate_0_the_anchors_see_nothing(clip, images, anchors, reference):
    late, plain = (build(clip, anchor_attention=kind, self_reference=reference) for kind in ("late", "none"))
    for ours, theirs in zip(late.compare(images, anchors), plain.compare(images, anchors), strict=True):
        ours, theirs = (side if isinstance(side, list) else [side] for side in (ours, theirs))
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    open_gates(late, 0.3)
    (moved, head), (still, plain_head) = late.compare(images, anchors), plain.compare(images, anchors)
    assert not any(torch.allclose(a, b, atol=1e-3) for a, b in zip(moved, still, strict=True))
    assert torch.equal(head, plain_head)


@torch.no_grad()
def test_under_uniform_weights_no_difference_of_cosines_changes(clip, images, anchors):
    late, plain = build(clip, anchor_attention="late", anchor_attention_control="uniform"), build(clip)
    open_gates(late, 0.7)
    for ours, theirs in zip(late.compare(images, anchors)[0], plain.compare(images, anchors)[0], strict=True):
        torch.testing.assert_close(
            ours[..., 1] - ours[..., 0], theirs[..., 1] - theirs[..., 0], rtol=0, atol=2e-3
        )


def test_segmentation_reaches_the_gate_and_from_there_the_temperature(clip, images, anchors):
    model = build(clip, anchor_attention="late")
    sum((one[..., 1] ** 2).mean() for one in model.compare(images, anchors)[0]).backward()
    for attention in model.anchor_attention:
        assert attention.gate.grad.abs() > 0
        assert attention.log_temperature.grad == 0  # behind a gate of 0
    open_gates(model, 0.1)
    sum((one[..., 1] ** 2).mean() for one in model.compare(images, anchors)[0]).backward()
    assert all(attention.log_temperature.grad.abs() > 0 for attention in model.anchor_attention)


@pytest.mark.bit_equality
def test_a_run_learns_gate_and_temperature_resumes_and_is_tested_with_them(cross_flags, evaluate, tmp_path):
    train = [*cross_flags, "--cross_attn_heads", "4", *OFF, "--anchor_attention", "late"]
    run, again = tmp_path / "run", tmp_path / "again"
    train_cross_attention.main([*train, "--image_epoch", "2", "--save_path", str(run), "--watch"])
    train_cross_attention.main([*train, "--image_epoch", "1", "--save_path", str(again)])
    train_cross_attention.main([*train, "--image_epoch", "2", "--save_path", str(again)])
    learned, resumed = (
        state(folder, "image_adapter_cross_attn.pth")["anchor_attention"] for folder in (run, again)
    )
    assert set(learned) == {f"{level}.{part}" for level in range(4) for part in ("gate", "log_temperature")}
    assert all(learned[f"{level}.gate"] != 0 for level in range(4))
    assert all(torch.equal(learned[key], resumed[key]) for key in learned)
    loaded = load_run(run).model.anchor_attention.state_dict()
    assert all(torch.equal(loaded[key], learned[key]) for key in learned)
    watched = json.loads((run / "history.json").read_text())["loops"][0]["image"][-1]["watch"]
    parts = {f"anchor_attention.{level}" for level in range(4)}
    for what in ("attention_entropy", "gate", "temperature"):
        assert parts <= set(watched[what]), what
    assert watched["displacement"]["anchor_attention"] > 0
    (result,) = evaluate(run)
    for control in ("uniform", "other_image", "swapped"):
        (controlled,) = evaluate(run, "--anchor_attention_control", control)
        assert controlled["mean"]["pixel_ap"] != result["mean"]["pixel_ap"]
    with pytest.raises(RuntimeError, match="--anchor_attention was 'late', is 'none'"):
        evaluate(run, "--anchor_attention", "none")


def test_a_control_of_no_attention_is_refused(capsys):
    with pytest.raises(SystemExit):
        train_cross_attention.main(["--anchor_attention_control", "uniform"])
    assert "does nothing without --anchor_attention late" in capsys.readouterr().err


@torch.no_grad()
def test_the_scorer_exports_with_anchors_that_see_their_image(clip, images, anchors):
    from evaluation.scorer import AnomalyScorer

    model = build(clip, anchor_attention="late")
    open_gates(model, 0.3)
    scorer = AnomalyScorer(model, None, {}, 32, "Industrial").eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(
        scorer, (images, anchors[0]), dynamic_shapes=({0: batch}, None), strict=False
    )
    for ours, theirs in zip(
        exported.module()(images[:3], anchors[0]), scorer(images[:3], anchors[0]), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_a_model_says_whether_its_anchors_look_at_another_image(clip):
    for control, sees in (("none", False), ("other_image", True), ("uniform", False)):
        model = build(clip, anchor_attention="late", anchor_attention_control=control)
        assert model.sees_another_image is sees
    assert not build(clip).sees_another_image
