"""What `--watch` says of a stage: training/watch.py."""

import math

import pytest
import torch
from torch import nn

from model.cross_attention import CrossAttentionModule
from training.watch import Watch, entropy_share, every_so_many, mean_cosine, watch_line


def test_entropy_is_one_for_uniform_weights_and_zero_for_one_key():
    weights = torch.tensor([[0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]])
    torch.testing.assert_close(entropy_share(weights), torch.tensor([1.0, 0.0, math.log(2) / math.log(4)]))


def test_mean_cosine_is_that_of_all_pairs_of_queries():
    outputs = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1))
    pairs = [(0, 1), (0, 2), (1, 2)]
    cosines = [torch.cosine_similarity(outputs[:, i], outputs[:, j], dim=-1) for i, j in pairs]
    torch.testing.assert_close(mean_cosine(outputs), sum(cosines) / 3)
    assert float(mean_cosine(torch.ones(4, 2))) == pytest.approx(1)
    assert mean_cosine(torch.tensor([[1.0, 0.0], [0.0, 0.0]])).isnan()


@pytest.mark.parametrize(("count", "taken"), [(3, 3), (8, 8), (9, 5), (1370, 8)])
def test_a_sample_is_spread_and_no_larger_than_asked_for(count, taken):
    assert len(range(count)[every_so_many(count, 8)]) == taken


@pytest.fixture
def attention():
    torch.manual_seed(5)
    return CrossAttentionModule(8, num_heads=2, dropout=0.0, gate=0.5).train()


def seen(attention, x, context):
    """The entry of one call of a watched attention."""
    watch = Watch({"text_cross_attn": attention})
    with watch.looking():
        attention(x, context)
    return watch.entry()


def test_an_attention_is_uniform_where_its_keys_are_alike_and_sharp_where_one_of_them_is_meant(attention):
    x, context = torch.randn(1, 4, 8), torch.randn(6, 8)
    with torch.no_grad():
        alike = seen(attention, x, context[:1].expand(6, -1))
        for projection in (attention.q_proj, attention.k_proj):
            projection.weight.copy_(torch.eye(8))
        sharp = seen(attention, 1e3 * context[None, :4], context)
    assert alike["attention_entropy"]["text_cross_attn"] == pytest.approx(1, abs=1e-6)
    assert alike["output_cosine"]["text_cross_attn"] == pytest.approx(1, abs=1e-6)
    assert sharp["attention_entropy"]["text_cross_attn"] < 0.1
    assert sharp["output_cosine"]["text_cross_attn"] < 0.99 and sharp["gate"] == {"text_cross_attn": 0.5}


def test_the_weights_looked_at_are_those_the_attention_uses(attention):
    x, own = torch.randn(2, 3, 8), torch.randn(2, 6, 8)
    value = attention._heads(attention.v_proj(own))  # [n, heads, S, head width]
    for context in (own, own[0]):
        weights = attention.attention_weights(x, context)
        value = attention._heads(attention.v_proj(context))
        by_hand = attention.out_proj((weights @ value).transpose(1, 2).flatten(2))
        torch.testing.assert_close(by_hand, attention(x, context))


def test_nothing_is_said_of_one_key_of_one_query_or_outside_of_training(attention):
    assert "attention_entropy" not in seen(attention, torch.randn(1, 4, 8), torch.randn(1, 8))
    assert "output_cosine" not in seen(attention, torch.randn(3, 1, 8), torch.randn(6, 8))
    assert set(seen(attention.eval(), torch.randn(1, 4, 8), torch.randn(6, 8))) == {"displacement", "gate"}


def test_a_step_that_is_not_finite_does_not_count(attention):
    x, context = torch.randn(1, 4, 8), torch.randn(6, 8)
    watch = Watch({"a": attention})
    with torch.no_grad(), watch.looking():
        attention(x, context)
        once = watch.entry()
        attention(x * torch.nan, context * torch.nan)
    assert watch.entry() == once


def test_displacement_is_the_length_of_the_way_over_that_of_the_first_weights():
    layer = nn.Linear(2, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0, 0.0]]))
        layer.bias.fill_(4.0)
    watch = Watch({"layer": layer})
    with torch.no_grad():
        layer.weight[0, 1] = 1.0
    assert watch.entry() == {"displacement": {"layer": pytest.approx(1 / 5)}}


def test_sums_go_on_where_another_process_left_them(attention):
    x, context = torch.randn(2, 1, 4, 8), torch.randn(6, 8)
    whole, first, second = (Watch({"a": attention}) for _ in range(3))
    with torch.no_grad():
        with whole.looking():
            attention(x[0], context), attention(x[1], context)
        with first.looking():
            attention(x[0], context)
        with second.looking():
            second.restore(first.content(), "cpu")
            attention(x[1], context)
    assert second.entry() == whole.entry() != first.entry()


def test_the_line_of_a_log_names_what_and_whose():
    entry = {"displacement": {"a": 0.12345, "b": 2}, "gate": {"a": [0.5, -0.25]}}
    assert watch_line(entry) == "displacement: a 0.1235, b 2; gate: a 0.5/-0.25"
