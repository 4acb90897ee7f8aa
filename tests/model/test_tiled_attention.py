"""Attention in tiles of queries under `--matmul auto`: model/tiled_attention.py."""

import pytest
import torch
import torch.nn.functional as F

from model import tiled_attention
from model.attention import BatchFirstAttention, scaled_dot_product
from model.matrix_products import onednn_products, why_not
from model.tiled_attention import TiledAttention

needs_onednn = pytest.mark.skipif(why_not("cpu") is not None, reason="this torch was built without oneDNN")


@pytest.fixture
def taken(monkeypatch):
    """Shapes of the queries that were done in tiles, of 5 queries from 6 tokens on."""
    shapes, apply = [], TiledAttention.apply
    monkeypatch.setattr(tiled_attention, "TILE", 5)
    monkeypatch.setattr(tiled_attention, "LEAST", 6)
    monkeypatch.setattr(TiledAttention, "apply", lambda *of: shapes.append(tuple(of[0].shape)) or apply(*of))
    return shapes


def with_gradients(attend, *tensors):
    tensors = [one.detach().requires_grad_() for one in tensors]
    out = attend(*tensors)
    weight = torch.arange(out.numel()).view(out.shape).sin()
    return out, *torch.autograd.grad(out, tensors, weight)


@needs_onednn
@pytest.mark.parametrize("queries", [6, 10, 13])
def test_tiles_give_the_fused_kernels_numbers_and_gradients(taken, queries):
    torch.manual_seed(0)
    packed = torch.randn(2, 11, 3, 4, 8).permute(2, 0, 3, 1, 4)  # as a tower's heads lie in memory
    query, key, value = torch.randn(2, 4, queries, 8), 3 * packed[1], packed[2]
    wanted = with_gradients(F.scaled_dot_product_attention, query, key, value)
    with onednn_products():
        found = with_gradients(scaled_dot_product, query, key, value)
    assert taken == [(2, 4, queries, 8)]
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape and (one - other).norm() < 2e-6 * other.norm()


@needs_onednn
def test_what_is_masked_dropped_short_or_not_float32_is_not_tiled(taken):
    x, short = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 5, 8)
    scaled_dot_product(x, x, x)
    with onednn_products():
        scaled_dot_product(x, x, x, attn_mask=torch.zeros(8, 8))
        scaled_dot_product(x, x, x, dropout_p=0.5)
        scaled_dot_product(short, x, x)
        scaled_dot_product(x, short, short)
        scaled_dot_product(*[x.double()] * 3)
        scaled_dot_product(*[x.bfloat16()] * 3)
        assert not taken
        scaled_dot_product(x, x, x)
    assert len(taken) == 1


@needs_onednn
def test_a_towers_attention_has_the_same_numbers_in_tiles(taken):
    torch.manual_seed(0)
    attention, x = (
        BatchFirstAttention(torch.nn.MultiheadAttention(16, 4, batch_first=True)),
        torch.randn(3, 7, 16),
    )
    wanted, _ = attention(x)
    with onednn_products():
        found, _ = attention(x)
    assert taken == [(3, 4, 7, 4)]
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
