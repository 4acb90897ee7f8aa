"""Anchors decoded against their image: model/anchor_decoder.py and where it enters."""

import pytest
import torch
import torch.nn.functional as F
from cross_attention_world import MODEL

from forward_utils import SIMILARITY_SCALE, fixed_anchors
from model.adapter_cross_attention import AdaptedCLIPWithCrossAttention
from model.anchor_decoder import AnchorDecoder, TwoWayLayer
from model.clip import create_model
from model.settings import AnchorDecoderSettings


@pytest.fixture
def build(cross_weights):
    """Function (**settings) -> the model; the same first values in every test."""
    clip = create_model(MODEL, 32, "openai", clip_weights=cross_weights)

    def made(**settings):
        torch.manual_seed(5)
        own = {"relu": False, "cross_attn_heads": 4, "cross_attn_dropout": 0.0} | settings
        return AdaptedCLIPWithCrossAttention(clip, text_adapt_until=2, image_adapt_until=2, **own).eval()

    return made


def decoder_of(layers=2, control="none", width=8):
    torch.manual_seed(1)
    decoder = AnchorDecoder(width, 2, 0.0, AnchorDecoderSettings(layers, control))
    torch.nn.init.normal_(decoder.out.weight)
    return decoder.eval()


@pytest.fixture
def sides():
    """([patches [3, 5, 8]] of two levels, anchors [3, 8, 2]), unit length."""
    generator = torch.Generator().manual_seed(2)
    seg = [F.normalize(torch.randn(3, 5, 8, generator=generator), dim=-1) for _ in range(2)]
    return seg, F.normalize(torch.randn(3, 8, 2, generator=generator), dim=1)


@pytest.mark.bit_equality
@torch.no_grad()
def test_it_starts_from_the_baseline_bit_for_bit(build, batch):
    model, baseline = build(anchor_decoder=2), build()
    anchors = fixed_anchors(baseline, "MVTec")(batch)
    logits, head = model.compare(batch["image"], anchors)
    wanted, wanted_head = baseline.compare(batch["image"], anchors)
    assert all(torch.equal(*pair) for pair in zip(logits, wanted, strict=True)) and torch.equal(
        head, wanted_head
    )


@pytest.mark.parametrize("more", [{}, {"self_reference": 0.3}])
@torch.no_grad()
def test_patches_are_compared_with_moved_anchors_and_the_head_is_not(build, batch, more):
    model, baseline = build(anchor_decoder=1, **more), build(**more)
    torch.nn.init.normal_(model.anchor_decoder.out.weight)
    anchors = fixed_anchors(baseline, "MVTec")(batch)
    (seg, _), (plain, plain_head) = model(batch["image"]), baseline.compare(batch["image"], anchors)
    logits, head = model.compare(batch["image"], anchors)
    for level, one in enumerate(logits):
        move = model.anchor_decoder([seg[level]], anchors)[0]
        wanted = plain[level] - SIMILARITY_SCALE * seg[level] @ anchors
        wanted = wanted + SIMILARITY_SCALE * seg[level] @ (anchors + move)
        torch.testing.assert_close(one, wanted, rtol=1e-3, atol=1e-3)
        assert move.abs().max() > 0.1
    torch.testing.assert_close(head, plain_head)


def test_first_what_is_added_learns_and_then_everything_does(sides):
    decoder = decoder_of()
    torch.nn.init.zeros_(decoder.out.weight)

    def learning():
        decoder.zero_grad()
        sum(move.sin().sum() + move.pow(3).sum() for move in decoder(*sides)).backward()
        return {
            name
            for name, parameter in decoder.named_parameters()
            if parameter.grad is not None and parameter.grad.abs().sum() > 0
        }

    assert learning() == {"out.weight", "out.bias"}
    torch.nn.init.normal_(decoder.out.weight)
    # A key's bias moves no softmax, up to rounding.
    names = {name for name, _ in decoder.named_parameters() if not name.endswith("k_proj.bias")}
    assert names <= learning()


@torch.no_grad()
def test_an_images_anchors_see_its_own_patches_and_those_of_one_level(sides):
    (first, second), anchors = sides
    decoder = decoder_of()
    moves = decoder([first, second], anchors)
    assert [tuple(move.shape) for move in moves] == [(3, 8, 2)] * 2
    changed = first.clone()
    changed[1] = -changed[1]
    again = decoder([changed, second], anchors)
    torch.testing.assert_close(again[0][[0, 2]], moves[0][[0, 2]])
    torch.testing.assert_close(again[1], moves[1])
    assert not torch.allclose(again[0][1], moves[0][1], atol=1e-3)


@torch.no_grad()
def test_a_layer_is_four_residuals_each_normalised_queries_first(sides):
    torch.manual_seed(3)
    layer, (seg, anchors) = TwoWayLayer(8, 2, 0.0).eval(), sides
    queries, patches = anchors.transpose(1, 2), seg[0]

    def normalised(x):
        return F.layer_norm(x, (8,))

    wanted = normalised(queries + layer.between(queries, queries))
    wanted = normalised(wanted + layer.to_image(wanted, patches))
    wanted = normalised(wanted + layer.mlp(wanted))
    found, seen = layer(queries, patches)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(seen, normalised(patches + layer.to_queries(patches, wanted)))


@torch.no_grad()
def test_the_constant_control_decodes_nothing_of_the_text(sides):
    seg, anchors = sides
    control, real = decoder_of(control="constant"), decoder_of()
    torch.testing.assert_close(control(seg, anchors), control(seg, -anchors), rtol=0, atol=0)
    assert not torch.allclose(real(seg, anchors)[0], real(seg, -anchors)[0], atol=1e-3)
    assert control.state_dict().keys() == real.state_dict().keys()
    assert not torch.allclose(control(seg, anchors)[0][..., 0], control(seg, anchors)[0][..., 1], atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "word"),
    [((-1, "none"), "--anchor_decoder -1: expected 1 layer"), ((1, "half"), "--anchor_decoder_control half")],
)
def test_bad_settings_are_refused(settings, word):
    with pytest.raises(ValueError, match=word):
        AnchorDecoder(8, 2, 0.0, AnchorDecoderSettings(*settings))
