"""bfloat16 products in the vision blocks: model/attention.py and `--precision bf16`."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from forward_utils import frozen_patches
from model.adapter import AdaptedCLIP
from model.attention import BatchFirstAttention, scaled_dot_product
from model.clip import full_precision, surgery_copy

TEXT = torch.tensor([[49406, 320, 1125, 49407] + [0] * 73])


@pytest.fixture
def low(new_clip):
    return new_clip(vision_autocast=torch.bfloat16)


def test_the_lean_attention_gives_the_numbers_of_multihead_attention():
    torch.manual_seed(0)
    attention, x = nn.MultiheadAttention(16, 4, batch_first=True).eval(), torch.randn(3, 7, 16)
    expected, _ = attention(x, x, x, need_weights=False)
    torch.testing.assert_close(BatchFirstAttention(attention)(x)[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.bit_equality
@pytest.mark.parametrize("masked", [False, True])
def test_two_products_in_bfloat16_are_scaled_dot_product_attention(masked):
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 6, 8)
    mask = torch.full((6, 6), float("-inf")).triu(1) if masked else None
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    found = scaled_dot_product(query.bfloat16(), key.bfloat16(), value.bfloat16(), mask)
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.03)
    assert torch.equal(scaled_dot_product(query, key, value, mask), expected)


def test_dropout_on_the_two_products_drops_attention_weights():
    torch.manual_seed(0)
    query, value = torch.zeros(1, 200, 8).bfloat16(), torch.ones(1, 200, 8).bfloat16()
    sums = scaled_dot_product(query, query, value, dropout_p=0.5)
    assert 0.9 < sums.float().mean() < 1.1
    assert sums.float().std() > 0.03


def test_bfloat16_changes_the_vision_features_a_little_and_keeps_them_float32(clip, low, images):
    across = [surgery_copy(one, 3) for one in (clip, low)]
    full, reduced = (
        frozen_patches(one, surgery, images, [2, 4]) for one, surgery in zip((clip, low), across, strict=True)
    )
    for level in (2, 4):
        assert reduced[0][level].dtype == torch.float32
        error = (reduced[0][level] - full[0][level]).norm() / full[0][level].norm()
        assert 1e-5 < error < 0.03
    assert 1e-5 < (reduced[1] - full[1]).norm() / full[1].norm() < 0.03


@pytest.mark.bit_equality
def test_full_precision_lasts_as_long_as_its_block_whatever_ends_it(clip, low, images):
    (reduced, _), (full, _) = low.encode_image(images), clip.encode_image(images)
    with pytest.raises(KeyboardInterrupt), full_precision(low):
        # The lean attention multiplies in another order than torch's own.
        torch.testing.assert_close(low.encode_image(images)[0], full, rtol=1e-4, atol=1e-4)
        raise KeyboardInterrupt
    assert torch.equal(low.encode_image(images)[0], reduced) and low.visual.autocast is torch.bfloat16
    with full_precision(clip):
        assert clip.visual.autocast is None
    assert clip.visual.autocast is None


@pytest.mark.bit_equality
def test_bfloat16_leaves_the_text_tower_and_the_names_of_the_weights_alone(clip, low):
    assert torch.equal(low.encode_text(TEXT), clip.encode_text(TEXT))
    assert list(low.state_dict()) == list(clip.state_dict())
    assert {value.dtype for value in low.state_dict().values()} == {torch.float32}


def test_adapters_get_float32_gradients_close_to_those_of_float32_training(clip, low, images):
    found = []
    for backbone in (clip, low):
        torch.manual_seed(3)
        model = AdaptedCLIP(backbone, text_adapt_until=2, image_adapt_until=2)
        seg, det = model(images)
        (sum(level[..., 0].sum() for level in seg) + det.sum()).backward()
        found.append(
            torch.cat([own.grad.flatten() for own in model.image_adapter["layer_adapters"].parameters()])
        )
    full, reduced = found
    assert reduced.dtype == torch.float32
    assert 1e-5 < (reduced - full).norm() / full.norm() < 0.1
