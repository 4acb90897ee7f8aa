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


@torch.no_grad()
def test_with_query_key_normalisation_weights_are_those_of_cosines_times_each_heads_temperature():
    torch.manual_seed(0)
    attention = CrossAttentionModule(4, 2, 0.0, temperature=10.0)
    torch.testing.assert_close(attention.temperature, torch.tensor([10.0, 10.0]))
    attention.log_temperature.copy_(torch.tensor([2.0, 50.0]).log())
    x, context = torch.randn(2, 3, 4), torch.randn(5, 4)
    query, key, value = attention.q_proj(x[1]), attention.k_proj(context), attention.v_proj(context)
    heads = []
    for head, temperature in ((slice(0, 2), 2.0), (slice(2, 4), 50.0)):
        cosine = torch.cosine_similarity(query[:, None, head], key[None, :, head], dim=-1)  # [3, 5]
        heads.append((temperature * cosine).softmax(dim=-1))
    torch.testing.assert_close(attention.attention_weights(x, context)[1], torch.stack(heads))
    joined = torch.cat([weights @ value[:, 2 * i : 2 * i + 2] for i, weights in enumerate(heads)], dim=-1)
    torch.testing.assert_close(attention(x, context)[1], attention.out_proj(joined), rtol=1e-5, atol=1e-6)
    longer = attention.attention_weights(7 * x, context) - attention.attention_weights(x, context)
    assert longer.abs().max() < 1e-5  # the projections' biases start at 0
    attention.log_temperature.fill_(20.0)
    assert attention.temperature.tolist() == [100.0, 100.0]


def test_query_key_normalisation_lets_every_parameter_learn_and_keeps_bfloat16():
    torch.manual_seed(0)
    attention, x = CrossAttentionModule(16, 4, 0.0, gate=0.1, temperature=10.0), torch.randn(2, 3, 16)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = attend(x, [(None, torch.ones(1, 16)), ([1], torch.randn(9, 16))], attention, 0.1)
    assert rounded.dtype == torch.float32 and rounded.isfinite().all()
    attend(x, [(None, torch.randn(9, 16))], attention, 0.1).pow(3).sum().backward()
    assert all(parameter.grad.norm() > 0 for parameter in attention.parameters())


@pytest.mark.parametrize("temperature", [0.0, -1.0, 101.0])
def test_a_temperature_out_of_range_is_refused(temperature):
    with pytest.raises(ValueError, match=rf"--cross_attn_temperature {temperature}: expected .* at most 100"):
        CrossAttentionModule(16, 4, 0.0, temperature=temperature)


@torch.no_grad()
def test_several_contexts_are_attended_to_apart_and_each_has_its_gate():
    torch.manual_seed(0)
    normal, abnormal, x = torch.randn(5, 8), torch.randn(6, 8), torch.randn(3, 2, 8)
    attention = CrossAttentionModule(8, 2, 0.0, gate=(0.5, -0.25))
    found = attend(x, [([2, 0], (normal, abnormal))], attention, 1.0)
    for row in (0, 2):
        wanted = x[row].clone()
        for gate, context in ((0.5, normal), (-0.25, abnormal)):
            y = textbook_attention(attention, x[row], context)
            wanted += gate * y * x[row].norm(dim=-1, keepdim=True) / y.norm(dim=-1, keepdim=True)
        torch.testing.assert_close(found[row], wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1], x[1], rtol=0, atol=0)
    maps = attention.attention_map(x, (normal, abnormal))
    assert maps.shape == (3, 2, 11)
    torch.testing.assert_close(maps[..., 5:], attention.attention_map(x, abnormal) / 2)
    with pytest.raises(ValueError, match=r"1 context\(s\) for 2 gates: with --split_text_context"):
        attend(x, [(None, normal)], attention, 1.0)
