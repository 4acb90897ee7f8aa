"""Attention of many tokens as products of two matrices: under `--matmul auto` faster on CPUs than torch's fused kernel.

That kernel multiplies by torch's own library, which --matmul auto has found to be slow. Here every head is done by
itself and in tiles of queries, so that a tile's logits stay in the processor's cache; the backward pass makes the
weights again instead of keeping them, as the fused kernel does (arXiv 2205.14135).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.matrix_products import by_onednn, product

TILE = 256  # queries at once: of 64, 128, 256 and 512 the fastest at 1,370 tokens
LEAST = 512  # tokens from which it is worth it; at 257 the fused kernel is as fast


def suits_tiles(query: Tensor, key: Tensor) -> bool:
    """Whether attention of query and key [..., tokens, head width], without mask and dropout, is done in tiles."""
    if not by_onednn() or torch.compiler.is_compiling() or query.device.type != "cpu":
        return False
    return query.dtype == torch.float32 and min(query.shape[-2], key.shape[-2]) >= LEAST


class TiledAttention(torch.autograd.Function):
    """softmax(Q K^T / sqrt(head width)) V of query, key and value [..., heads, tokens, head width] on a CPU."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[..., heads, queries, head width]"""
        out = query.new_empty(query.shape)
        whole = (query.contiguous(), key.contiguous(), value.contiguous(), out)  # once, not for every tile
        for q, k, v, o in zip(*map(_heads, whole), strict=True):
            for rows in _tiles(q):
                o[rows] = product(_weights(q[rows], k), v)
        ctx.save_for_backward(query, key, value, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients to query, key and value, of their shapes."""
        given = [one.contiguous() for one in ctx.saved_tensors]
        found = [one.new_zeros(one.shape) for one in given[:3]]
        for q, k, v, o, g, to_q, to_k, to_v in zip(
            *map(_heads, (*given, gradient.contiguous(), *found)), strict=True
        ):
            mean = (g * o).sum(-1, keepdim=True)  # of the gradient to the weights, by the weights
            for rows in _tiles(q):
                weights, own = _weights(q[rows], k), g[rows]
                to_v += product(weights.t(), own)
                to_logits = product(own, v.t()).sub_(mean[rows]).mul_(weights).mul_(_scale(q))
                to_q[rows] = product(to_logits, k)
                to_k += product(to_logits.t(), q[rows])
        return tuple(found)


def _weights(query, key):
    """softmax(query @ key^T / sqrt(head width)) [queries, keys] of one head."""
    return product(query * _scale(query), key.t()).softmax(dim=-1)


def _scale(query):
    return query.shape[-1] ** -0.5


def _heads(x):
    """[..., tokens, width] as [heads of all, tokens, width]."""
    return x.flatten(0, -3)


def _tiles(query):
    """Slices of at most TILE queries."""
    return [slice(start, start + TILE) for start in range(0, len(query), TILE)]
