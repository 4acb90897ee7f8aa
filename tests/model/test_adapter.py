"""The adapted CLIP against a plain re-computation of the paper: model/adapter.py, adapter_modules.py."""

import pytest
import torch
import torch.nn.functional as F

from model.adapter import AdaptedCLIP
from model.adapter_modules import SimpleAdapter, SimpleProj, match_norm
from model.tokenizer import tokenize

TEXTS = ["a photo of a damaged dark bottle.", "screw."]


def leaky(x):
    return torch.where(x > 0, x, 0.01 * x)


def adapt(x, weight, w):
    """The paper's residual adapter on tokens x, by hand."""
    a = leaky(x @ weight.T)
    a = a * (x.pow(2).sum(-1, keepdim=True) / a.pow(2).sum(-1, keepdim=True)).sqrt()
    return w * a + (1 - w) * x


@pytest.mark.bit_equality
def test_simple_adapter_is_a_linear_map_without_bias_and_a_leaky_relu():
    module = SimpleAdapter(3, 2)
    with torch.no_grad():
        module.fc[0].weight.copy_(torch.tensor([[1.0, 0, 0], [0, 2, 0]]))
        assert torch.equal(module(torch.tensor([3.0, -4, 5])), torch.tensor([3.0, -0.08]))
    assert list(module.state_dict()) == ["fc.0.weight"]


def test_simple_proj_has_upstreams_keys_with_and_without_relu():
    with_relu, without = SimpleProj(2, 2, relu=True), SimpleProj(2, 2, relu=False)
    assert list(with_relu.state_dict()) == ["fc.0.weight"] and list(without.state_dict()) == ["fc.weight"]
    with torch.no_grad():
        for weight in (with_relu.fc[0].weight, without.fc.weight):
            weight.copy_(torch.eye(2))
    x = torch.tensor([-1.0, 1.0])
    torch.testing.assert_close(with_relu(x), torch.tensor([-0.01, 1.0]))
    torch.testing.assert_close(without(x), x)
    assert list(SimpleProj(2, 2).state_dict()) == ["fc.0.weight"]  # relu is upstream's default


def test_match_norm_gives_each_token_the_norm_of_its_partner():
    y, x = torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[10.0, 0.0], [1.0, 0.0]])
    torch.testing.assert_close(match_norm(y, x), torch.tensor([[6.0, 8.0], [0.0, 1.0]]))


def test_state_dict_keys_are_upstreams(clip):
    model = AdaptedCLIP(clip, text_adapt_until=3, image_adapt_until=4)
    assert list(model.text_adapter.state_dict()) == [f"{i}.fc.0.weight" for i in range(4)]
    layers = [f"layer_adapters.{i}.fc.0.weight" for i in range(4)]
    assert set(model.image_adapter.state_dict()) == {
        *layers,
        *(f"seg_proj.{i}.fc.weight" for i in range(4)),
        "det_proj.fc.weight",
    }
    with_relu = AdaptedCLIP(clip, text_adapt_until=3, image_adapt_until=4, relu=True)
    assert set(with_relu.image_adapter.state_dict()) == {
        *layers,
        *(f"seg_proj.{i}.fc.0.weight" for i in range(4)),
        "det_proj.fc.0.weight",
    }
    assert list(with_relu.text_adapter.state_dict()) == list(model.text_adapter.state_dict())


def test_widths_come_from_the_backbone(adapted):
    shapes = {name: tuple(value.shape) for name, value in adapted.image_adapter.state_dict().items()}
    assert shapes["layer_adapters.0.fc.0.weight"] == (32, 32) and shapes["seg_proj.0.fc.weight"] == (16, 32)
    assert [tuple(value.shape) for value in adapted.text_adapter.parameters()] == [
        (24, 24),
        (24, 24),
        (16, 24),
    ]


def test_weights_start_xavier_uniform(adapted):
    for parameter in (*adapted.text_adapter.parameters(), *adapted.image_adapter.parameters()):
        bound = (6 / sum(parameter.shape)) ** 0.5
        assert 0.9 * bound < parameter.abs().max() <= bound
        assert abs(float(parameter.detach().var()) / (bound**2 / 3) - 1) < 0.3


@pytest.mark.parametrize("relu", [False, True])
def test_the_image_forward_equals_the_paper_by_hand(clip, images, relu):
    model = AdaptedCLIP(clip, image_adapt_weight=0.3, image_adapt_until=2, levels=[1, 3], relu=relu)
    project = leaky if relu else (lambda x: x)
    weights = {name: value.detach() for name, value in model.image_adapter.state_dict().items()}
    x, tokens = clip.visual.embed(images), []
    for i, block in enumerate(clip.visual.transformer.resblocks):
        x = block(x)
        if i < 2:
            x = adapt(x, weights[f"layer_adapters.{i}.fc.0.weight"], 0.3)
        tokens.append(clip.visual.ln_post(x[:, 1:]))
    suffix = "fc.0.weight" if relu else "fc.weight"
    want = [
        F.normalize(project(tokens[k] @ weights[f"seg_proj.{i}.{suffix}"].T), dim=-1)
        for i, k in ((0, 0), (1, 2))
    ]
    head = F.normalize(project(tokens[2] @ weights[f"det_proj.{suffix}"].T), dim=-1).mean(dim=1)
    with torch.no_grad():
        seg, det = model(images)
    assert [level.shape for level in seg] == [(4, 16, 16)] * 2 and det.shape == (4, 16)
    for got, level in zip(seg, want, strict=True):
        torch.testing.assert_close(got, level, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(det, head, rtol=1e-4, atol=1e-5)


def test_the_text_forward_equals_the_paper_by_hand(clip):
    model = AdaptedCLIP(clip, text_adapt_weight=0.4, text_adapt_until=2, image_adapt_until=2)
    tokens = tokenize(TEXTS)
    x = clip.token_embedding(tokens) + clip.positional_embedding
    mask = torch.full((77, 77), float("-inf")).triu(1)
    with torch.no_grad():
        for i, block in enumerate(clip.transformer.resblocks):
            x = block(x, attn_mask=mask)
            if i < 2:
                x = adapt(x, model.text_adapter[i].fc[0].weight, 0.4)
        end = clip.ln_final(x)[torch.arange(2), tokens.argmax(-1)]
        want = leaky(end @ model.text_adapter[2].fc[0].weight.T)
        torch.testing.assert_close(model.encode_text(tokens), want, rtol=1e-4, atol=1e-4)


def test_weight_zero_leaves_the_features_of_plain_clip(clip, images):
    model = AdaptedCLIP(clip, 0.0, 0.0, text_adapt_until=4, image_adapt_until=4)
    with torch.no_grad():
        for got, want in zip(
            model.image_levels(images), clip.encode_image(images, [1, 2, 3, 4])[1], strict=True
        ):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
        tokens = tokenize(TEXTS)
        got = clip.text_tokens_at_end(tokens, model.after_text_block)
        torch.testing.assert_close(got, clip.text_tokens_at_end(tokens), rtol=1e-5, atol=1e-5)


@pytest.mark.bit_equality
def test_adaptation_switched_off_is_plain_clips_text(clip, adapted):
    tokens = tokenize(TEXTS)
    assert torch.equal(adapted.encode_text(tokens, adapt_text=False), clip.encode_text(tokens))
    assert not torch.allclose(adapted.encode_text(tokens), clip.encode_text(tokens), atol=0.1)


@torch.no_grad()
def test_a_comparison_gives_100_times_the_cosines_of_patches_and_the_bare_ones_of_the_head(adapted, images):
    anchors = F.normalize(torch.randn(4, 16, 2, generator=torch.Generator().manual_seed(1)), dim=1)
    (seg, det), (logits, head) = adapted(images), adapted.compare(images, anchors)
    assert [level.shape for level in logits] == [(4, 16, 2)] * 4 and head.shape == (4, 2)
    for image in range(4):
        torch.testing.assert_close(head[image], det[image] @ anchors[image], rtol=1e-5, atol=1e-6)
        for level, patches in zip(logits, seg, strict=True):
            torch.testing.assert_close(
                level[image], 100 * (patches[image] @ anchors[image]), rtol=1e-5, atol=1e-4
            )


def test_what_a_stage_trains_is_named_as_in_its_checkpoint(adapted):
    assert adapted.text_modules == {"text_adapter": adapted.text_adapter}
    assert adapted.image_modules == {"image_adapter": adapted.image_adapter}


def test_gradients_reach_every_adapter_and_nothing_of_clip(adapted, images):
    seg, det = adapted.train()(images)
    text = adapted.encode_text(tokenize(TEXTS))
    (sum(level[..., 0].sum() for level in seg) + det[:, 0].sum() + text.sum()).backward()
    for name, parameter in adapted.named_parameters():
        if name.startswith("clipmodel."):
            assert parameter.grad is None and not parameter.requires_grad
        else:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_training_mode_is_for_the_adapters_and_clip_stays_in_eval_mode(adapted):
    adapted.train()
    assert adapted.training and adapted.image_adapter.training
    assert not any(module.training for module in adapted.clipmodel.modules())
    assert not adapted.eval().training


def test_levels_default_to_the_quarters_and_more_adapters_than_blocks_are_refused(clip, adapted):
    assert adapted.levels == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="--text_adapt_until 5: the tower has 4 blocks"):
        AdaptedCLIP(clip, text_adapt_until=5, image_adapt_until=2)
    with pytest.raises(ValueError, match="--image_adapt_until 6: the tower has 4 blocks"):
        AdaptedCLIP(clip)


def test_upstreams_defaults_stand_in_the_constructor(clip):
    model = AdaptedCLIP(clip_model=clip, image_adapt_until=4)
    assert (model.text_adapt_weight, model.image_adapt_weight, model.text_adapt_until) == (0.1, 0.1, 3)
