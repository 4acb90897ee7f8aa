"""Rarity within an image (model/self_reference.py), gate and place of image -> text, runs with them."""

import pytest
import torch
import torch.nn.functional as F
from checkpoint_contents import state
from cross_attention_world import MODEL, WIDTH
from flag_words import words

import train_cross_attention
import train_cross_attention_feedback as feedback
from forward_utils import get_adapted_text_embedding
from forward_utils_cross_attention import (
    first_level,
    text_context_dictionary,
    text_context_groups,
    trained_image_features,
)
from model.adapter_cross_attention import AdaptedCLIPWithCrossAttention
from model.clip import create_model
from model.self_reference import TYPICAL, TYPICAL_PEAK, SelfReference, rarity
from model.settings import SelfReferenceSettings
from run_folder.loaded_run import load_run
from training.base_weights import looks_untrained

NAMES = ["bottle", "screw", "bottle", "screw"]


@pytest.fixture(scope="module")
def clip(cross_weights):
    return create_model(MODEL, 32, "openai", clip_weights=cross_weights)


def build(clip, **settings):
    torch.manual_seed(3)
    adapters = dict(text_adapt_until=2, image_adapt_until=2, cross_attn_heads=4)
    return AdaptedCLIPWithCrossAttention(clip, relu=False, **adapters, **settings).eval()


def test_rarity_is_one_minus_the_mean_cosine_with_the_most_similar_other_patches():
    patches = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(0))
    found = rarity(patches, 0.25)  # of 8 other patches: 2
    for image in range(2):
        for patch in range(9):
            others = [
                float(F.cosine_similarity(patches[image, patch], patches[image, other], dim=0))
                for other in range(9)
                if other != patch
            ]
            assert float(found[image, patch]) == pytest.approx(1 - sum(sorted(others)[-2:]) / 2, abs=1e-6)
    # No other image has a say; a product of another batch size may round otherwise.
    torch.testing.assert_close(rarity(patches[1:], 0.25)[0], found[1], rtol=0, atol=1e-6)


def test_a_patch_without_a_like_is_rarest():
    patches = F.normalize(torch.ones(1, 16, 4) + 0.01 * torch.randn(1, 16, 4), dim=-1)
    patches[0, 5] = torch.tensor([1.0, -1.0, 1.0, -1.0])
    assert int(rarity(patches, 0.08).argmax()) == 5


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"self_reference_neighbours": 0.0}, "--self_reference_neighbours 0.0: expected a share"),
        ({"self_reference_neighbours": 1.5}, "--self_reference_neighbours 1.5: expected a share"),
        ({"self_reference": -0.1}, "--self_reference -0.1: expected a weight above 0"),
        ({"self_reference_head": -1.0}, "--self_reference_head -1.0: expected a weight above 0"),
        ({"self_reference_control": "loud"}, "--self_reference_control loud: expected one of none, constant"),
    ],
)
def test_settings_out_of_range_are_refused(settings, why):
    with pytest.raises(ValueError, match=why):
        SelfReference(4, SelfReferenceSettings(**{"self_reference": 0.3} | settings))


@torch.no_grad()
def test_the_reference_is_added_to_the_difference_of_the_cosines(clip, images):
    plain, referring = build(clip), build(clip, self_reference=0.3, self_reference_neighbours=0.2)
    anchors = get_adapted_text_embedding(plain, "MVTec", "cpu")["bottle"].expand(4, -1, -1)
    (logits, head), (logits_ref, head_ref) = (
        plain.compare(images, anchors),
        referring.compare(images, anchors),
    )
    tokens = clip.encode_image(images, plain.levels)[1]
    for before, after, level in zip(logits, logits_ref, tokens, strict=True):
        own, wanted = after / 100, before / 100
        rare = 0.3 * (rarity(clip.visual.ln_post(level[:, 1:]), 0.2) - TYPICAL)
        assert torch.allclose(own[..., 1] - own[..., 0], wanted[..., 1] - wanted[..., 0] + rare, atol=1e-6)
    levels = torch.stack([rarity(clip.visual.ln_post(level[:, 1:]), 0.2) for level in tokens]).mean(dim=0)
    # A sum over one coordinate more may round otherwise, here and below.
    torch.testing.assert_close(head_ref[:, 0], head[:, 0], rtol=0, atol=1e-6)
    assert torch.allclose(
        head_ref[:, 1], head[:, 1] + levels.max(dim=1).values - TYPICAL_PEAK, atol=1e-6
    )  # 1 of 16
    headless = build(clip, self_reference=0.3, self_reference_head=0.0)
    torch.testing.assert_close(headless.compare(images, anchors)[1], head, rtol=0, atol=1e-6)
    assert set(headless.self_reference.state_dict()) == {"weight", "typical"}
    assert plain.self_reference is None and "self_reference" not in plain.image_modules


@pytest.mark.bit_equality
@torch.no_grad()
def test_a_comparison_takes_rarities_at_hand_and_makes_the_frozen_pass_otherwise(clip, images, monkeypatch):
    model = build(clip, self_reference=0.3)
    anchors = get_adapted_text_embedding(model, "MVTec", "cpu")["bottle"].expand(4, -1, -1)
    rarities = model.self_reference.rarities(clip, images, model.levels)
    assert [level.shape for level in rarities] == [(4, 16)] * 4
    (logits, head) = model.compare(images, anchors)
    monkeypatch.setattr(type(clip), "encode_image", None)  # no second pass
    again, same = model.compare(images, anchors, rarities=rarities)
    assert torch.equal(head, same) and all(map(torch.equal, logits, again))


def test_rarity_is_one_more_coordinate_in_which_the_abnormal_anchor_alone_has_1():
    reference = SelfReference(1, SelfReferenceSettings(self_reference=2.0))
    seg, det, anchors = [torch.zeros(1, 3, 4)], torch.zeros(1, 4), torch.full((1, 4, 2), 0.5)
    rare = torch.tensor([[TYPICAL, TYPICAL + 0.1, TYPICAL - 0.2]])
    (patches,), image, pairs = reference.with_coordinate(seg, det, anchors, [rare])
    torch.testing.assert_close(patches[0, :, 4], torch.tensor([0.0, 0.2, -0.4]))
    torch.testing.assert_close(image[0, 4], torch.tensor(TYPICAL + 0.1 - TYPICAL_PEAK))
    assert pairs[0, 4].tolist() == [0.0, 1.0] and torch.equal(pairs[:, :4], anchors)


@pytest.mark.bit_equality
@torch.no_grad()
def test_embeddings_are_those_without_a_reference(clip, images):
    (seg, det), (wanted, head) = build(clip, self_reference=0.3)(images), build(clip)(images)
    assert torch.equal(det, head) and all(map(torch.equal, seg, wanted))


@pytest.mark.bit_equality
@torch.no_grad()
def test_controls_carry_no_information_or_none_of_the_place(clip, images):
    def reference(control):
        own = SelfReference(4, SelfReferenceSettings(0.3, 1.0, 0.2, control))
        return own(own.rarities(clip, images, [1, 2, 3, 4]))

    patches, image = reference("constant")
    assert all(torch.equal(level, torch.zeros(4, 16, 1)) for level in patches)
    assert len(set(image.flatten().tolist())) == 1
    (patches, image), (misplaced, same) = reference("none"), reference("shuffled")
    assert torch.allclose(image, same) and len(set(image.flatten().tolist())) == 4
    for level, shuffled in zip(patches, misplaced, strict=True):
        assert not torch.equal(level, shuffled)
        assert torch.equal(level.sort(dim=1).values, shuffled.sort(dim=1).values)


@pytest.mark.bit_equality
@torch.no_grad()
def test_a_gate_at_zero_starts_as_no_attention_and_a_learned_one_at_the_weight(clip, images):
    contexts = text_context_groups(text_context_dictionary(build(clip), "MVTec"), NAMES)
    fixed, learned, zero = (
        build(clip, cross_attn_gate=gate)(images, contexts) for gate in ("fixed", "learned", "zero")
    )
    for ours, theirs in ((learned, fixed), (zero, build(clip)(images))):
        assert all(
            torch.equal(a, b) for a, b in zip([*ours[0], ours[1]], [*theirs[0], theirs[1]], strict=True)
        )
    assert "gate" not in build(clip).image_cross_attn.state_dict()
    off = build(clip, cross_attn_gate="learned", image_cross_attn_weight=0.0)
    assert torch.equal(off(images, contexts)[1], build(clip)(images)[1])


@pytest.mark.bit_equality
@torch.no_grad()
def test_images_attend_after_the_chosen_block_alone(clip, images):
    model = build(clip, image_cross_attn_after=1, image_cross_attn_weight=0.5)
    contexts = text_context_groups(text_context_dictionary(model, "MVTec"), NAMES)
    without, beside = model(images)[0], model(images, contexts)[0]
    assert torch.equal(without[0], beside[0])
    assert not torch.allclose(without[1], beside[1], atol=1e-4)

    seen = []
    model.image_cross_attn.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    model(images, contexts)
    assert torch.equal(seen[0], model.attending_tokens(images)[[0, 2]])  # the first group: the bottles
    for place in (-1, 4):
        with pytest.raises(
            ValueError, match=f"--image_cross_attn_after {place}: expected a vision block in 0..3"
        ):
            build(clip, image_cross_attn_after=place)


@pytest.mark.bit_equality
@torch.no_grad()
def test_from_loop_2_on_prompts_see_patches_without_the_reference(clip, images):
    model = build(clip, self_reference=0.3)
    contexts = text_context_dictionary(model, "MVTec")
    patches, wanted = (
        first_level(trained_image_features(one, contexts), one)({"image": images, "class_name": NAMES})
        for one in (model, build(clip))
    )
    assert patches.shape == (4, 16, WIDTH) and torch.equal(patches, wanted)


@pytest.fixture
def train_flags(cross_flags, tmp_path):
    return cross_flags + words(cross_attn_heads=4, self_reference=0.3, save_path=tmp_path / "run")


@pytest.mark.bit_equality
def test_a_run_learns_the_reference_and_is_tested_with_it(train_flags, evaluate, tmp_path):
    train_cross_attention.main([*train_flags, "--cross_attn_gate", "zero"])
    image = state(tmp_path / "run", "image_adapter_cross_attn.pth")
    starts = {"weight": 0.3, "typical": TYPICAL, "head_weight": 1.0, "typical_peak": TYPICAL_PEAK}
    assert set(image["self_reference"]) == set(starts)
    for key, start in starts.items():
        learned = image["self_reference"][key].flatten().tolist()
        assert all(value != pytest.approx(start, abs=1e-6) for value in learned), key
    assert float(image["image_cross_attn"]["gate"]) != 0
    assert float(state(tmp_path / "run", "text_adapter_cross_attn.pth")["text_cross_attn"]["gate"]) != 0
    loaded = load_run(tmp_path / "run").model
    assert set(loaded.image_modules) == {"image_adapter", "image_cross_attn", "self_reference"}
    for key, module in loaded.image_modules.items():
        assert all(torch.equal(value, image[key][name]) for name, value in module.state_dict().items()), key
    (result,) = evaluate(tmp_path / "run")
    assert result["mean"]["pixel_auroc"] is not None
    with pytest.raises(RuntimeError, match="--self_reference was 0.3, is 0.0"):
        evaluate(tmp_path / "run", "--self_reference", "0")


def test_a_feedback_run_carries_the_reference_from_loop_to_loop_and_resumes(train_flags, evaluate, tmp_path):
    flags = [*train_flags, *words(loop2_text_epoch=1, loop2_image_epoch=1)]
    feedback.main([*flags, "--num_feedback_loops", "1"])
    feedback.main([*flags, "--num_feedback_loops", "2"])
    first, second = (state(tmp_path / "run", f"loop_{loop}_final.pth")["self_reference"] for loop in (1, 2))
    assert set(first) == set(second) == {"weight", "typical", "head_weight", "typical_peak"}
    assert not torch.equal(first["weight"], second["weight"])
    (result,) = evaluate(tmp_path / "run", "--loop", "1")
    assert result["mean"]["pixel_auroc"] is not None


@pytest.mark.parametrize("flags", [["head", "2"], ["neighbours", "0.2"], ["control", "constant"]])
def test_a_setting_of_no_reference_is_refused(capsys, flags):
    with pytest.raises(SystemExit):
        train_cross_attention.main([f"--self_reference_{flags[0]}", flags[1]])
    assert f"--self_reference_{flags[0]}" in capsys.readouterr().err.splitlines()[-1]


def test_a_module_without_matrices_is_not_called_untrained():
    assert not looks_untrained(SelfReference(4, SelfReferenceSettings(self_reference=0.3)))
