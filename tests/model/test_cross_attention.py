"""Both attention modules and how they enter a tower: model/cross_attention.py."""

import pytest
import torch
from cross_attention_world import textbook_attention

from model.cross_attention import CrossAttentionModule, ImageCrossAttentionModule, attend


def test_attention_equals_torchs_multi_head_attention():
    torch.manual_seed(0)
    ours, theirs = CrossAttentionModule(8, 2, 0.0), torch.nn.MultiheadAttention(8, 2, batch_first=True)
    x, context = torch.randn(3, 5, 8), torch.randn(7, 8)
    with torch.no_grad():
        for linear in (ours.q_proj, ours.k_proj, ours.v_proj, ours.out_proj):
            linear.bias.normal_()
        theirs.in_proj_weight.copy_(torch.cat([ours.q_proj.weight, ours.k_proj.weight, ours.v_proj.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.q_proj.bias, ours.k_proj.bias, ours.v_proj.bias]))
        theirs.out_proj.load_state_dict(ours.out_proj.state_dict())
    wanted, weights = theirs(x, context.expand(3, -1, -1), context.expand(3, -1, -1))
    torch.testing.assert_close(ours(x, context), wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.attention_map(x, context), weights, rtol=1e-5, atol=1e-6)


def test_modules_have_the_shared_key_names_biases_of_zero_and_xavier_weights():
    module = ImageCrossAttentionModule(32, 16, 4)
    shapes = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    assert shapes == {
        "q_proj.weight": (16, 32),
        "q_proj.bias": (16,),
        "out_proj.weight": (32, 16),
        "out_proj.bias": (32,),
        "k_proj.weight": (16, 16),
        "k_proj.bias": (16,),
        "v_proj.weight": (16, 16),
        "v_proj.bias": (16,),
    }
    assert all(not module.get_parameter(key).any() for key in shapes if key.endswith("bias"))
    bound = (6 / (32 + 16)) ** 0.5
    assert 0.9 * bound < module.q_proj.weight.abs().max() <= bound


@pytest.mark.parametrize(
    "heads, dropout, word", [(3, 0.1, "cross_attn_heads 3"), (4, 1.0, "cross_attn_dropout 1.0")]
)
def test_bad_sizes_are_refused_with_their_value(heads, dropout, word):
    with pytest.raises(ValueError, match=word):
        CrossAttentionModule(16, heads, dropout)


@pytest.mark.bit_equality
def test_dropout_acts_in_training_and_not_in_evaluation():
    torch.manual_seed(0)
    module, x, context = CrossAttentionModule(16, 4, 0.5), torch.randn(2, 3, 16), torch.randn(20, 16)
    assert not torch.equal(module.train()(x, context), module(x, context))
    assert torch.equal(module.eval()(x, context), module(x, context))


@torch.no_grad()
def test_both_modules_are_the_textbook_formula_for_shared_and_for_own_contexts():
    torch.manual_seed(0)
    text, image = (
        CrossAttentionModule(dropout=0.1).eval(),
        ImageCrossAttentionModule(32, 24, num_heads=4).eval(),
    )
    assert text.q_proj.weight.shape == (768, 768) and text.num_heads == 8
    for attention, names, width, context_width in (
        (text, ("text_features", "image_context"), 768, 768),
        (image, ("image_features", "text_context"), 32, 24),
    ):
        x, own = torch.randn(3, 5, width), torch.randn(3, 7, context_width)
        for context in (own, own[0]):
            found = attention(**dict(zip(names, (x, context), strict=True)))
            each = context if context.dim() == 3 else [context] * 3
            expected = torch.stack(
                [textbook_attention(attention, *pair) for pair in zip(x, each, strict=True)]
            )
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_a_context_of_other_axes_or_another_number_of_sequences_is_refused():
    attention = CrossAttentionModule(8, num_heads=2)
    for shape in ((2, 7, 8), (7,), (1, 1, 7, 8)):
        with pytest.raises(ValueError, match=r"expected \[S, W\] for all 3 sequences, or \[3, S, W\]"):
            attention(torch.zeros(3, 5, 8), torch.zeros(shape))


@torch.no_grad()
def test_groups_add_their_scaled_norm_matched_residual_and_other_rows_stay():
    torch.manual_seed(0)
    attention, x = CrossAttentionModule(8, 2, 0.0), torch.randn(4, 3, 8)
    one, other = torch.randn(5, 8), torch.randn(7, 8)
    found = attend(x, [([2, 0], one), ([3], other)], attention, 0.2)
    for row, context in ((0, one), (2, one), (3, other)):
        y = textbook_attention(attention, x[row], context)
        wanted = x[row] + 0.2 * y * x[row].norm(dim=-1, keepdim=True) / y.norm(dim=-1, keepdim=True)
        torch.testing.assert_close(found[row], wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1], x[1], rtol=0, atol=0)
    plain = attend(x, [(None, one)], attention, 0.2, norm_match=False)
    wanted = torch.stack([row + 0.2 * textbook_attention(attention, row, one) for row in x])
    torch.testing.assert_close(plain, wanted, rtol=1e-4, atol=1e-5)


def test_without_contexts_or_weight_the_very_tokens_come_back_whatever_the_gate():
    x, gated = torch.randn(2, 3, 8), CrossAttentionModule(8, 2, 0.0, gate=1.0)
    assert attend(x, (), gated, 0.1) is x
    assert attend(x, [(None, torch.randn(5, 8))], gated, 0.0) is x
