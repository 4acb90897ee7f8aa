"""The one loop over transformer blocks that every use of a tower goes through."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import islice

import torch
from torch import Tensor, nn

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
