"""The model around both attentions: model/adapter_cross_attention.py, its forward_utils."""

import pytest
import torch
import torch.nn.functional as F
from cross_attention_world import MODEL, WIDTH, textbook_attention, write_world

from forward_utils import (
    anchors_of_batch,
    class_tokens,
    encode_anchors,
    fixed_anchors,
    frozen_patches,
    prompts_of,
)
from forward_utils_cross_attention import (
    anchors_of_each_image,
    batch_scope,
    class_scope,
    mean_anchors,
    text_context_dictionary,
    text_context_groups,
    text_context_of_class,
)
from model.adapter import AdaptedCLIP
from model.adapter_cross_attention import AdaptedCLIPWithCrossAttention
from model.clip import create_model, surgery_copy

NAMES = ["bottle", "screw", "bottle", "screw"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return create_model(MODEL, 32, "openai", clip_weights=write_world(tmp_path_factory.mktemp("cross")))


def build(clip, **settings):
    torch.manual_seed(3)
    adapters = dict(text_adapt_until=2, image_adapt_until=2)
    return AdaptedCLIPWithCrossAttention(
        clip, **adapters, **{"cross_attn_heads": 4, "relu": False} | settings
    ).eval()


@pytest.fixture
def model(clip):
    return build(clip)


@pytest.fixture
def patches(clip, images):
    """First-level patches [4, 16, E] of the four images."""
    return frozen_patches(clip, surgery_copy(clip, 3), images, [1])[0][1]


def anchors_by_class(model, contexts):
    """{class: [E, 2]} of {class: patches its prompts attend to}."""
    return dict(
        zip(contexts, encode_anchors(model, "MVTec", list(contexts), list(contexts.values())), strict=True)
    )


def anchors_of_own_patches(model, patches, names):
    """[B, E, 2]: each image's prompts attend to its own of these first-level patches."""
    batch = {"image": patches, "class_name": names}
    return anchors_of_each_image(batch, model, "MVTec", lambda batch: batch["image"])


def test_residual_is_scaled_and_matched_to_the_norm_of_every_token(clip, images, model):
    contexts = text_context_groups(text_context_dictionary(model, "MVTec"), NAMES)
    x = clip.visual.transformer.resblocks[0](clip.visual.embed(images))
    seen = []
    real = model.after_image_block
    model.after_image_block = lambda i, x: seen.append(x) or real(i, x)
    model(images, contexts)
    added = seen[0] - x
    torch.testing.assert_close(added.norm(dim=-1), 0.1 * x.norm(dim=-1), rtol=1e-4, atol=1e-5)
    by_hand = model.image_cross_attn(x[1:2], contexts[1][1])
    wanted = 0.1 * by_hand * x[1:2].norm(dim=-1, keepdim=True) / (by_hand.norm(dim=-1, keepdim=True) + 1e-6)
    torch.testing.assert_close(added[1:2], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.bit_equality
def test_weight_0_is_the_baseline_to_the_last_bit(clip, images, patches):
    torch.manual_seed(3)
    baseline = AdaptedCLIP(clip, text_adapt_until=2, image_adapt_until=2).eval()
    crossed = build(clip, text_cross_attn_weight=0.0, image_cross_attn_weight=0.0).train()
    contexts = text_context_groups(text_context_dictionary(crossed, "MVTec"), NAMES)
    for (seg, det), (wanted_seg, wanted_det) in [(crossed(images, contexts), baseline(images))]:
        assert torch.equal(det, wanted_det) and all(map(torch.equal, seg, wanted_seg))
    anchors = anchors_by_class(crossed, class_scope(patches, NAMES))
    wanted = anchors_of_batch(baseline, "MVTec", NAMES)
    assert torch.equal(torch.stack([anchors[name] for name in NAMES]), wanted)


@pytest.mark.bit_equality
def test_without_contexts_the_model_is_the_baseline(images, model):
    torch.manual_seed(3)
    baseline = AdaptedCLIP(model.clipmodel, text_adapt_until=2, image_adapt_until=2)
    assert torch.equal(model(images)[1], baseline(images)[1])
    assert not torch.equal(
        model(images)[1],
        model(images, text_context_groups(text_context_dictionary(model, "MVTec"), NAMES))[1],
    )


@pytest.mark.parametrize("size", [1, 6, 10])
def test_a_batch_of_any_size_behaves_as_its_images_alone_and_permutes(images, model, size):
    """The reference fork paired prompts and images wrongly at 6 and 10."""
    batch = images.repeat(3, 1, 1, 1)[:size] + torch.arange(size)[:, None, None, None] * 0.1
    names = [NAMES[i % 2] for i in range(size)]
    contexts = text_context_dictionary(model, "MVTec")
    seg, det = model(batch, text_context_groups(contexts, names))
    order = torch.randperm(size, generator=torch.Generator().manual_seed(1))
    mixed = model(batch[order], text_context_groups(contexts, [names[i] for i in order]))
    torch.testing.assert_close(mixed[1], det[order], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mixed[0][0], seg[0][order], rtol=1e-5, atol=1e-6)
    alone = model(batch[-1:], text_context_groups(contexts, names[-1:]))
    torch.testing.assert_close(alone[1], det[-1:], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [2, 6, 10])
def test_anchors_with_context_follow_their_images_through_a_permutation(model, patches, size):
    own = patches.repeat(3, 1, 1)[:size] + torch.arange(size)[:, None, None] * 0.05
    names = [NAMES[i % 2] for i in range(size)]
    pairs = anchors_of_own_patches(model, own, names)
    order = list(reversed(range(size)))
    mixed = anchors_of_own_patches(model, own[order], [names[i] for i in order])
    torch.testing.assert_close(mixed, pairs[order], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(
        pairs[0], pairs[-2 if size > 2 else 1], atol=1e-5
    )  # another image, other anchors


@pytest.mark.bit_equality
def test_class_scope_joins_a_classs_patches_and_batch_scope_averages_all(patches):
    joined, mean = class_scope(patches, NAMES), batch_scope(patches, NAMES)
    assert torch.equal(joined["bottle"], torch.cat([patches[0], patches[2]]))
    assert torch.equal(joined["screw"], torch.cat([patches[1], patches[3]]))
    torch.testing.assert_close(mean["bottle"], patches.mean(0))
    assert mean["bottle"] is mean["screw"]


def test_anchors_are_asked_for_one_by_one_with_a_context_or_none_in_one_pass_of_the_tower(
    model, patches, monkeypatch
):
    sizes, encode = [], model.encode_prompts
    monkeypatch.setattr(
        model, "encode_prompts", lambda *of, **rest: sizes.append(len(of[0])) or encode(*of, **rest)
    )
    pairs = encode_anchors(model, "MVTec", ["screw", "bottle", "screw"], [patches[1], None, None])
    assert pairs.shape == (3, WIDTH, 2) and sizes == [48]
    alone = anchors_of_own_patches(model, patches[1:2], ["screw"])[0]
    plain = anchors_of_batch(model, "MVTec", ["bottle", "screw"])
    # other prompts pass the tower beside them, so the last bits may differ
    torch.testing.assert_close(pairs, torch.stack([alone, *plain]), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(pairs[0], pairs[2], atol=1e-5)


def test_as_many_contexts_as_classes_are_asked_for(model, patches):
    with pytest.raises(ValueError, match="zip"):
        encode_anchors(model, "MVTec", ["screw", "bottle"], [patches[0]])


def test_anchors_of_a_class_ignore_images_of_other_classes(model, patches):
    before = anchors_by_class(model, class_scope(patches, NAMES))
    changed = patches.clone()
    changed[1] = -changed[1]
    after = anchors_by_class(model, class_scope(changed, NAMES))
    torch.testing.assert_close(after["bottle"], before["bottle"], rtol=1e-5, atol=1e-7)
    assert not torch.allclose(after["screw"], before["screw"], atol=1e-5)


def test_text_context_holds_every_token_at_unit_length_and_hides_padding(model):
    context = text_context_of_class(model, "MVTec", "screw")
    tokens = class_tokens("MVTec", "screw")[0]
    assert context.tokens.shape == (16 * 77, WIDTH)
    torch.testing.assert_close(context.tokens.norm(dim=-1), torch.ones(16 * 77), rtol=1e-5, atol=1e-5)
    assert context.real.sum() == (tokens != 0).sum()
    ((rows, seen),) = text_context_groups({"screw": context}, ["screw", "screw"])
    assert rows == [0, 1] and len(seen) == context.real.sum()


def test_text_context_is_block_0_and_its_adapter_without_cross_attention(model):
    clip, tokens = model.clipmodel, class_tokens("MVTec", "bottle")[0]
    x = clip.token_embedding(tokens) + clip.positional_embedding
    x = model.after_text_block(0, clip.transformer.resblocks[0](x, attn_mask=clip.attn_mask))
    wanted = F.normalize(x.flatten(0, 1), dim=-1)
    torch.testing.assert_close(model.text_context(tokens), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.bit_equality
def test_mean_anchors_average_each_classs_images(model, patches):
    loader = [
        {"image": i, "class_name": names} for i, names in ((slice(0, 2), NAMES[:2]), (slice(2, 4), NAMES[2:]))
    ]
    loader = [batch | {"image": patches[batch["image"]]} for batch in loader]
    means = mean_anchors(model, "MVTec", loader, lambda batch: batch["image"])
    each = anchors_of_own_patches(model, patches, NAMES)
    torch.testing.assert_close(means["screw"], F.normalize(each[1] + each[3], dim=0))
    anchors = fixed_anchors(model, "MVTec", means)({"class_name": ["screw", "carpet"]})
    assert torch.equal(anchors[0], means["screw"])
    torch.testing.assert_close(anchors[1:], anchors_of_batch(model, "MVTec", ["carpet"]))


@torch.no_grad()
def test_with_attend_padding_images_attend_to_all_77_tokens_of_every_prompt_as_in_the_reference_fork(clip):
    model, plain = build(clip, attend_padding=True), build(clip)
    ids, _ = class_tokens("MVTec", "bottle")
    context = text_context_of_class(model, "MVTec", "bottle")
    assert context.seen.shape == (len(ids) * 77, WIDTH) and context.real.all()
    x = torch.randn(1, 5, model.image_cross_attn.q_proj.in_features)
    expected = textbook_attention(model.image_cross_attn, x[0], model.text_context(ids))
    torch.testing.assert_close(model.image_cross_attn(x, context.seen)[0], expected, atol=1e-6, rtol=0)
    without = text_context_of_class(plain, "MVTec", "bottle").seen
    assert len(without) < len(context.seen)
    assert not torch.allclose(plain.image_cross_attn(x, without)[0], expected, atol=1e-4)


def test_the_constructor_and_its_names_are_as_the_fork_documents_them(clip):
    documented = AdaptedCLIPWithCrossAttention(
        clip, text_adapt_until=2, image_adapt_until=2, cross_attn_heads=4
    )
    assert (
        len(documented.image_adapter["det_proj"].fc) == 2
    )  # Linear and LeakyReLU: relu is True unless given
    positional = AdaptedCLIPWithCrossAttention(clip, 0.1, 0.1, 2, 2, None, False, cross_attn_heads=4)
    assert "image_adapter.det_proj.fc.weight" in positional.state_dict()
    model = build(clip, text_cross_attn_weight=0.2, image_cross_attn_weight=0.3)
    assert (model.t_ca_w, model.i_ca_w) == (0.2, 0.3)
    for name in ("t_ca_w", "i_ca_w"):
        with pytest.raises(AttributeError):
            setattr(model, name, 0.5)
    with pytest.raises(AttributeError, match="hand it to the call, as encode_text"):
        model.current_image_context = torch.zeros(4, WIDTH)


def test_a_backbone_of_unequal_joint_and_text_width_is_refused(new_clip):
    with pytest.raises(ValueError, match="joint width 16 .* text width 24"):
        AdaptedCLIPWithCrossAttention(new_clip(), text_adapt_until=2, image_adapt_until=2, cross_attn_heads=4)


def test_a_setting_of_no_part_of_the_model_is_refused_by_name(clip):
    with pytest.raises(TypeError, match="cross_attn_head"):
        build(clip, cross_attn_head=2)


def test_an_unknown_gate_is_refused_with_the_ones_there_are(clip):
    with pytest.raises(ValueError, match="--cross_attn_gate open: expected one of fixed, learned, zero"):
        build(clip, cross_attn_gate="open")


def test_what_a_stage_trains_is_named_as_in_its_checkpoint(clip, model):
    assert list(model.text_modules) == ["text_adapter", "text_cross_attn"]
    assert list(model.image_modules) == ["image_adapter", "image_cross_attn"]
    assert list(build(clip, self_reference=0.3).image_modules) == [
        "image_adapter",
        "image_cross_attn",
        "self_reference",
    ]
    assert model.device.type == "cpu"


@torch.no_grad()
def test_a_comparison_sees_the_prompts_the_images_attend_to(images, model):
    contexts = text_context_groups(text_context_dictionary(model, "MVTec"), NAMES)
    anchors = anchors_of_batch(model, "MVTec", NAMES)
    (seg, det), (logits, head) = model(images, contexts), model.compare(images, anchors, contexts)
    torch.testing.assert_close(head, torch.einsum("be,bec->bc", det, anchors))
    for level, patches in zip(logits, seg, strict=True):
        torch.testing.assert_close(level, 100 * patches @ anchors)
    assert not torch.allclose(head, model.compare(images, anchors)[1], atol=1e-4)


@pytest.mark.parametrize("norm_match", [True, False])
def test_cross_attention_runs_in_bfloat16_and_returns_float32(tmp_path, images, norm_match):
    weights = write_world(tmp_path)
    full, low = (
        create_model(MODEL, 32, "openai", clip_weights=weights, vision_autocast=products)
        for products in (None, torch.bfloat16)
    )
    contexts = [([0, 1, 2, 3], torch.ones(5, WIDTH))]
    expected, found = (
        build(one, no_norm_match=not norm_match)(images, contexts)[0][0] for one in (full, low)
    )
    assert found.dtype == torch.float32
    assert 1e-5 < (found - expected).norm() / expected.norm() < 0.05


@torch.no_grad()
def test_split_text_contexts_hold_normal_and_abnormal_prompts_and_their_tokens_are_the_same(clip):
    model, plain = build(clip, split_text_context=True), build(clip)
    normal, abnormal = text_context_of_class(model, "MVTec", "screw").seen
    torch.testing.assert_close(
        torch.cat([normal, abnormal]), text_context_of_class(plain, "MVTec", "screw").seen, rtol=0, atol=0
    )
    ids, count, lengths = prompts_of("MVTec", "screw")
    assert (len(normal), len(abnormal)) == (sum(lengths[:count]), sum(lengths[count:]))
    padded = text_context_of_class(
        build(clip, split_text_context=True, attend_padding=True), "MVTec", "screw"
    )
    assert [len(part) for part in padded.seen] == [count * 77, (len(ids) - count) * 77]


MADE_TRAINABLE = {"cross_attn_qk_norm": True, "cross_attn_gate": "zero", "split_text_context": True}


@pytest.mark.bit_equality
@torch.no_grad()
def test_gates_that_start_at_zero_give_the_baseline_bit_for_bit(clip, images, patches):
    model, baseline = build(clip, image_cross_attn_after=2, **MADE_TRAINABLE), build(clip)
    contexts = text_context_groups(text_context_dictionary(model, "MVTec"), NAMES)
    for found, wanted in zip(model(images, contexts)[0], baseline(images)[0], strict=True):
        assert torch.equal(found, wanted)
    seeing = anchors_by_class(model, class_scope(patches, NAMES))
    plain = anchors_by_class(baseline, {"bottle": None, "screw": None})
    assert all(torch.equal(seeing[name], plain[name]) for name in plain)


def test_two_gates_learn_apart_and_then_the_attention_learns_too(clip, images):
    model = build(clip, image_cross_attn_after=2, **MADE_TRAINABLE)
    contexts = text_context_groups(text_context_dictionary(model, "MVTec"), NAMES)
    attention = model.image_cross_attn

    def gradients():
        attention.zero_grad()
        model(images, contexts)[0][-1].pow(3).sum().backward()
        return {name: parameter.grad.abs().sum() for name, parameter in attention.named_parameters()}

    assert {name for name, size in gradients().items() if size > 0} == {"gate"}
    assert attention.gate.shape == (2,) and attention.gate.grad[0] != attention.gate.grad[1]
    with torch.no_grad():
        attention.gate.fill_(0.1)
    assert all(size > 0 for size in gradients().values())
