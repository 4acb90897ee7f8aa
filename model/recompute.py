"""Activation checkpointing: blocks whose inner values the backward pass computes again instead of keeping them."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

RECOMPUTED = ("none", "mlp", "full")  # values of --activation_checkpointing


def recomputed(function: Callable[..., Tensor], x: Tensor, **options: Any) -> Tensor:
    """`function(x, **options)`, of which only `x` is kept until the backward pass; with no gradient to come, plainly.

    The function must draw no random numbers: the generators' states are not kept, as that would wait for a CUDA device.
    """
    if not (torch.is_grad_enabled() and x.requires_grad):
        return function(x, **options)
    return checkpoint(function, x, use_reentrant=False, preserve_rng_state=False, **options)


class RecomputedMLP(nn.Sequential):
    """A block's MLP, with the same children and so the same parameter names."""

    def forward(self, x: Tensor) -> Tensor:
        """x [B, N, C] -> [B, N, C]"""
        return recomputed(super().forward, x)


def recompute_activations(clip: nn.Module, which: str) -> None:
    """Make the blocks of both towers of a model.clip.CLIP keep less for the backward pass: the same numbers, more time.

    Args:
        which: "none", "mlp" (the widest values, four times the block's width), or "full" (all but each block's input).

    Raises:
        ValueError: another word.
    """
    if which not in RECOMPUTED:
        raise ValueError(f"--activation_checkpointing {which}: expected one of {', '.join(RECOMPUTED)}")
    clip.recompute_blocks = clip.visual.recompute_blocks = which == "full"
    if which == "mlp":
        for block in (*clip.transformer.resblocks, *clip.visual.transformer.resblocks):
            block.mlp = RecomputedMLP(OrderedDict(block.mlp.named_children()))
