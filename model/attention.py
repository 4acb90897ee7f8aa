"""Attention without what torch's own spends: transposes, and in bfloat16 on CPUs a slow fused kernel."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def scaled_dot_product(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0
) -> Tensor:
    """F.scaled_dot_product_attention, as two products where its fused kernel is several times slower.

    Args:
        query, key, value: [..., tokens, head width].
        attn_mask: [tokens, tokens], added to the logits, or None.
        dropout_p: probability on the attention weights.

    Returns:
        [..., tokens, head width].
    """
    if query.dtype != torch.bfloat16 or query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask, dropout_p=dropout_p)
    logits = query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1)
    weights = (logits if attn_mask is None else logits + attn_mask.to(logits.dtype)).softmax(dim=-1)
    return F.dropout(weights, dropout_p) @ value


class BatchFirstAttention(nn.Module):
    """The numbers of a batch-first nn.MultiheadAttention, up to rounding, without its transposes.

    With them torch multiplies a frozen projection once per token instead of once ([tokens, B, C] does not fold into a
    matrix): on a CPU a third of stage 2's time.
    """

    def __init__(self, attention: nn.MultiheadAttention):
        """attention: with one fused input projection; its weights are shared."""
        super().__init__()
        self.num_heads = attention.num_heads
        self.in_proj_weight = attention.in_proj_weight
        self.in_proj_bias = attention.in_proj_bias
        self.out_proj = attention.out_proj

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """query [B, N, C] -> ([B, N, C], None); key and value are ignored, self-attention is all a ViT has."""
        qkv = F.linear(query, self.in_proj_weight, self.in_proj_bias).unflatten(-1, (3, self.num_heads, -1))
        heads = qkv.permute(2, 0, 3, 1, 4)  # [3, B, heads, N, head width]
        out = scaled_dot_product(*heads, attn_mask)
        return self.out_proj(out.transpose(1, 2).flatten(-2)), None


def use_batch_first_attention(blocks: Iterable[nn.Module]) -> None:
    """Give residual blocks a BatchFirstAttention with the weights and the names of their nn.MultiheadAttention."""
    for block in blocks:
        block.attn = BatchFirstAttention(block.attn)
