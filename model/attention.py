"""Attention without what torch's own spends: transposes, and in bfloat16 on CPUs a slow fused kernel."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.tiled_attention import TiledAttention, suits_tiles


def scaled_dot_product(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0
) -> Tensor:
    """F.scaled_dot_product_attention; as products where its fused kernel is slower: in bfloat16 on CPUs, and of many
    tokens where products are oneDNN's (`--matmul auto`).

    Args:
        query, key, value: [..., tokens, head width].
        attn_mask: added to the logits, or bool, True where a key is seen; broadcast to [..., queries, keys]; or None.
        dropout_p: probability on the attention weights.

    Returns:
        [..., tokens, head width].
    """
    if attn_mask is None and not dropout_p and suits_tiles(query, key):
        return TiledAttention.apply(query, key, value)
    if query.dtype != torch.bfloat16 or query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask, dropout_p=dropout_p)
    logits = query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        logits = logits.masked_fill(~attn_mask, float("-inf"))
    elif attn_mask is not None:
        logits = logits + attn_mask.to(logits.dtype)
    weights = logits.softmax(dim=-1)
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

    def at(self, tokens: Tensor, query: Tensor, visible: Tensor | None = None) -> Tensor:
        """What `forward` gives for one token of each sequence, without the queries of the others.

        Args:
            tokens: [B, N, C], of which the keys and values are.
            query: [B, 1, C], the tokens that attend.
            visible: [B, 1, 1, N] bool, the keys that they see; None for all.

        Returns:
            [B, 1, C].
        """
        width, heads = tokens.shape[-1], self.num_heads
        weight, bias = self.in_proj_weight, self.in_proj_bias
        own = F.linear(query, weight[:width], bias[:width]).unflatten(-1, (heads, -1)).transpose(1, 2)
        seen = F.linear(tokens, weight[width:], bias[width:]).unflatten(-1, (2, heads, -1))
        out = scaled_dot_product(own, *seen.permute(2, 0, 3, 1, 4), visible)  # [B, heads, 1, head width]
        return self.out_proj(out.transpose(1, 2).flatten(-2))


def use_batch_first_attention(blocks: Iterable[nn.Module]) -> None:
    """Give residual blocks a BatchFirstAttention with the weights and the names of their nn.MultiheadAttention."""
    for block in blocks:
        block.attn = BatchFirstAttention(block.attn)
