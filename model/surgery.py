"""Value-value attention: the surgery that makes CLIP's patch tokens local (CLIP Surgery, arXiv 2304.05653)."""

import copy

import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import scaled_dot_product


class ValueValueAttention(nn.Module):
    """Self-attention with q = k = v, over the value and output projections of an existing attention.

    Known deviation, kept by default: with `across_batch` the [B, N, C] tokens are read as [N, B, C], so every position
    attends to the same position of the batch's other images (`--surgery_attention spatial` corrects it).
    """

    def __init__(self, attention: nn.Module, across_batch: bool = True):
        """attention: BatchFirstAttention or nn.MultiheadAttention, one fused input projection; weights are shared."""
        super().__init__()
        self.num_heads = attention.num_heads
        self.in_proj_weight = attention.in_proj_weight
        self.in_proj_bias = attention.in_proj_bias
        self.out_proj = attention.out_proj
        self.across_batch = across_batch

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """query [B, N, C] -> ([B, N, C], None); key and value are ignored, as q = k = v is the point."""
        width = query.shape[-1]
        v = F.linear(query, self.in_proj_weight[2 * width :], self.in_proj_bias[2 * width :])
        if self.across_batch:
            v = v.transpose(0, 1)  # [N, B, C]: attention now runs over the batch
        heads = v.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [B or N, heads, tokens, head width]
        out = scaled_dot_product(heads, heads, heads, attn_mask)
        out = out.transpose(1, 2).flatten(-2)
        if self.across_batch:
            out = out.transpose(0, 1)
        return self.out_proj(out), None


def replace_attention(blocks: nn.ModuleList, last: int, across_batch: bool = True) -> nn.ModuleList:
    """Copies of `blocks` (weights shared) whose `last` final blocks use value-value attention.

    Raises:
        ValueError: there are fewer than `last` blocks.
    """
    if not 0 <= last <= len(blocks):
        raise ValueError(
            f"surgery on the last {last} blocks of a tower with {len(blocks)}: "
            f"--surgery_until_layer must lie in 1..{len(blocks) + 1} (it replaces one block less than it says)"
        )
    kept = len(blocks) - last
    replaced = []
    for block in blocks[kept:]:
        block = copy.copy(block)
        # Own children, shared weights: the plain block keeps its attention.
        block._modules = dict(block._modules)
        block.attn = ValueValueAttention(block.attn, across_batch)
        replaced.append(block)
    return nn.ModuleList([*blocks[:kept], *replaced])
