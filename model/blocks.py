"""The one loop over transformer blocks that every use of a tower goes through."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import islice

import torch
from torch import Tensor, nn

from model.attention import BatchFirstAttention
from model.recompute import recomputed


def run_blocks(
    blocks: nn.ModuleList | Sequence[nn.Module],
    x: Tensor,
    levels: Sequence[int] = (),
    after_block: Callable[[int, Tensor], Tensor] | None = None,
    stop_after: int | None = None,
    attn_mask: Tensor | None = None,
    autocast: torch.dtype | None = None,
    recompute: bool = False,
) -> tuple[Tensor, list[Tensor]]:
    """Run residual blocks and collect the features at the requested levels.

    Args:
        blocks: sequence of batch-first residual attention blocks.
        x: [B, N, width] input tokens.
        levels: numbers of blocks (1-based) after which the tokens are collected.
        after_block: function (i, x) -> x called after block i (0-based); this is where adaptation enters.
        stop_after: number of blocks to run; all when None.
        attn_mask: [N, N] additive attention mask, or None.
        autocast: dtype of the blocks' matrix products (torch.bfloat16), or None for that of `x`. The residual
            stream and what is returned keep the dtype of `x`.
        recompute: keep a block's input alone for the backward pass, which computes the block again.

    Returns:
        (x, features): the last tokens [B, N, width] and one [B, N, width] tensor per entry of `levels`, in order.

    Raises:
        ValueError: a level lies outside the blocks that are run.
    """
    count = len(blocks) if stop_after is None else stop_after
    outside = [level for level in levels if not 1 <= level <= count]
    if outside:
        raise ValueError(f"levels {outside} lie outside 1..{count}: choose levels the tower reaches")
    collected = {}
    with nullcontext() if autocast is None else torch.autocast(x.device.type, autocast):
        for i, block in enumerate(islice(blocks, count)):
            x = recomputed(block, x, attn_mask=attn_mask) if recompute else block(x, attn_mask=attn_mask)
            if after_block is not None:
                x = after_block(i, x)
            if i + 1 in levels:
                collected[i + 1] = x
    return x, [collected[level] for level in levels]


def block_at(x: Tensor, block: nn.Module, end: Tensor | None = None) -> Tensor:
    """A residual block's output at one token of each sequence: a tower's last block, where no other token is read.

    Args:
        x: [B, N, width] input tokens.
        block: batch-first residual attention block of open_clip's; with an attention that cannot be asked for one token
            all are computed.
        end: [B] of int64, the tokens, which see those before them and themselves; None for the first token, which sees
            all (a ViT's CLS).

    Returns:
        [B, 1, width].
    """
    places = torch.arange(x.shape[1], device=x.device)
    if not isinstance(block.attn, BatchFirstAttention):
        causal = None if end is None else torch.zeros(len(places), len(places), device=x.device)
        if causal is not None:
            causal = causal.masked_fill(places > places[:, None], float("-inf"))
        return token_at(block(x, attn_mask=causal), end)
    tokens = block.ln_1(x)
    visible = None if end is None else (places <= end[:, None])[:, None, None]
    y = token_at(x, end) + block.ls_1(block.attn.at(tokens, token_at(tokens, end), visible))
    return y + block.ls_2(block.mlp(block.ln_2(y)))


def token_at(x: Tensor, end: Tensor | None) -> Tensor:
    """One token of each sequence [B, N, width] -> [B, 1, width]: that at `end` [B], or the first."""
    return x[:, :1] if end is None else x[torch.arange(len(x), device=x.device), end][:, None]
