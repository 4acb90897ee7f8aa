"""Value-value attention and the surgery model that shares its trunk with the plain one: model/surgery.py, clip.py."""

import copy

import pytest
import torch
from torch import nn

from model.attention import BatchFirstAttention
from model.clip import surgery_copy
from model.surgery import ValueValueAttention, replace_attention


@pytest.fixture
def attention():
    torch.manual_seed(0)
    module = nn.MultiheadAttention(8, 2, batch_first=True)
    nn.init.normal_(module.in_proj_bias)
    nn.init.normal_(module.out_proj.bias)
    return module.requires_grad_(False)


def by_hand(attention, sequence):
    """Value-value attention over one sequence [n, 8] of tokens, head by head."""
    v = sequence @ attention.in_proj_weight[16:].T + attention.in_proj_bias[16:]
    heads = []
    for h in (slice(0, 4), slice(4, 8)):
        scores = v[:, h] @ v[:, h].T / 4**0.5
        heads.append(torch.softmax(scores, dim=-1) @ v[:, h])
    return torch.cat(heads, dim=-1) @ attention.out_proj.weight.T + attention.out_proj.bias


def test_spatial_mode_attends_over_the_tokens_of_each_image(attention):
    x = torch.randn(3, 5, 8)
    got, weights = ValueValueAttention(attention, across_batch=False)(x, x, x, need_weights=False)
    want = torch.stack([by_hand(attention, image) for image in x])
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    assert weights is None


def test_the_default_attends_over_the_batch_at_each_position_as_in_aa_clip(attention):
    x = torch.randn(3, 5, 8)
    got, _ = ValueValueAttention(attention)(x)
    want = torch.stack([by_hand(attention, x[:, position]) for position in range(5)], dim=1)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_a_batch_of_one_makes_the_default_attention_an_identity_on_the_values(attention):
    x = torch.randn(1, 5, 8)
    values = x @ attention.in_proj_weight[16:].T + attention.in_proj_bias[16:]
    torch.testing.assert_close(ValueValueAttention(attention)(x)[0], attention.out_proj(values))


@pytest.fixture
def features(clip, images):
    """Function (across_batch, images) -> tokens [B, N, C] of the last level of the surgery model."""
    return lambda across_batch, x=images: surgery_copy(clip, 3, across_batch).encode_image(x, [4])[1][0]


def test_by_default_an_images_features_depend_on_the_batch_and_spatial_ones_do_not(features, images):
    def differs(across_batch):
        together, alone = features(across_batch)[:1], features(across_batch, images[:1])
        return float((together - alone).abs().max())

    assert differs(True) > 0.1
    assert differs(False) < 1e-5


def test_permuting_the_batch_permutes_the_features_in_both_modes(features, images):
    order = torch.tensor([2, 0, 3, 1])
    for across_batch in (True, False):
        torch.testing.assert_close(
            features(across_batch)[order], features(across_batch, images[order]), rtol=1e-4, atol=1e-5
        )


def test_the_two_modes_differ(features):
    assert not torch.allclose(features(True), features(False), atol=0.1)


def test_one_block_less_than_asked_for_is_replaced_at_the_end(new_clip):
    clip = new_clip()
    clip.visual.DAPM_replace(DPAM_layer=3)
    kinds = [type(block.attn) for block in clip.visual.transformer.resblocks]
    assert kinds == [BatchFirstAttention] * 2 + [ValueValueAttention] * 2
    assert all(block.attn.across_batch for block in clip.visual.transformer.resblocks[2:])


@pytest.mark.bit_equality
def test_a_surgery_copy_leaves_the_plain_model_as_it_was_and_shares_blocks_and_weights(clip, images):
    before, state = clip.encode_image(images)[0], copy.deepcopy(clip.state_dict())
    surgery = surgery_copy(clip, 3)
    plain, local = clip.visual.transformer.resblocks, surgery.visual.transformer.resblocks
    assert [a is b for a, b in zip(plain, local, strict=True)] == [True, True, False, False]
    assert all(isinstance(block.attn, BatchFirstAttention) for block in plain)
    assert local[3].attn.in_proj_weight is plain[3].attn.in_proj_weight
    assert local[3].mlp is plain[3].mlp
    assert surgery.transformer is clip.transformer
    assert torch.equal(clip.encode_image(images)[0], before)
    assert all(torch.equal(value, state[name]) for name, value in clip.state_dict().items())
    assert not torch.allclose(surgery.encode_image(images)[0], before, atol=0.1)


def test_a_surgery_copy_equals_replacing_the_attention_of_a_second_model(clip, new_clip, images):
    second = new_clip()
    second.visual.DAPM_replace(3)
    for got, want in zip(
        surgery_copy(clip, 3).encode_image(images, [1, 2, 3, 4])[1],
        second.encode_image(images, [1, 2, 3, 4])[1],
        strict=True,
    ):
        torch.testing.assert_close(got, want)


def test_surgery_until_layer_one_replaces_nothing(clip, images):
    torch.testing.assert_close(surgery_copy(clip, 1).encode_image(images)[0], clip.encode_image(images)[0])


@pytest.mark.parametrize("layer", [0, 6])
def test_more_surgery_than_blocks_is_refused_with_the_possible_range(clip, layer):
    with pytest.raises(
        ValueError, match=rf"last {layer - 1} blocks.*4.*--surgery_until_layer must lie in 1..5"
    ):
        surgery_copy(clip, layer)


def test_all_blocks_can_be_replaced(clip):
    blocks = replace_attention(clip.visual.transformer.resblocks, 4)
    assert all(isinstance(block.attn, ValueValueAttention) for block in blocks)
