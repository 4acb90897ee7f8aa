"""Cross-attention from one tower's tokens to what the other tower sees, and how it enters the residual stream.

A context always comes with the rows it is for: contexts are given as a list of groups (rows, context [S, W]), where
`rows` are the prompts or images that attend to it; None for all. In place of one context a group may have several, of
which each is attended to by itself.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.adapter_modules import match_norm
from model.attention import scaled_dot_product
from model.transfer import send

NORM_FLOOR = 1e-6  # added to the norm that is divided by
DOCUMENTED_WIDTH = (
    768  # the reference fork's default, ViT-L-14-336's text width; a model passes its backbone's own
)
MAX_TEMPERATURE = 100.0  # CLIP's bound of its own logit scale
Context = Tensor | tuple[Tensor, ...]  # [S, W], or several
Contexts = Sequence[tuple[Sequence[int] | None, Context]]  # groups (rows, context)
Gate = float | tuple[float, ...] | None


class MultiHeadCrossAttention(nn.Module):
    """out_proj(concat over heads of softmax(Q K^T / sqrt(head width)) V), arXiv 1706.03762, before it is scaled.

    Q is projected from the tokens that attend, K and V from the context; heads share the context's width. With a
    temperature the weights are softmax(t cos(Q, K)), t learned per head (query-key normalisation, arXiv 2010.04245;
    per head and bounded as in Swin V2, arXiv 2111.09883): their sharpness does not depend on how long tokens are.

    Args:
        query_dim: width of the tokens that attend, and of the result.
        context_dim: width of the context.
        num_heads: must divide `context_dim`.
        dropout: on the attention weights, active in training mode only.
        gate: start of a learned residual scale, or of one for each of several contexts; None for a fixed one.
        temperature: start of the learned temperatures; None for plain scaled dot products.

    Raises:
        ValueError: the heads do not divide the context's width, the dropout is no probability below 1, or the
            temperature is not in (0, MAX_TEMPERATURE].
    """

    def __init__(
        self,
        query_dim: int,
        context_dim: int,
        num_heads: int,
        dropout: float,
        gate: Gate,
        temperature: float | None = None,
    ):
        super().__init__()
        if context_dim % num_heads:
            raise ValueError(f"--cross_attn_heads {num_heads} does not divide the text width {context_dim}")
        if not 0 <= dropout < 1:
            raise ValueError(f"--cross_attn_dropout {dropout}: expected a probability in [0, 1)")
        if temperature is not None and not 0 < temperature <= MAX_TEMPERATURE:
            raise ValueError(
                f"--cross_attn_temperature {temperature}: expected a number above 0, at most {MAX_TEMPERATURE:g}"
            )
        self.num_heads, self.dropout = num_heads, dropout
        # The order in which the layers are made and drawn decides what a seed gives.
        self.q_proj, self.out_proj = nn.Linear(query_dim, context_dim), nn.Linear(context_dim, query_dim)
        self.k_proj, self.v_proj = nn.Linear(context_dim, context_dim), nn.Linear(context_dim, context_dim)
        self.gate = None if gate is None else nn.Parameter(torch.tensor(gate, dtype=torch.float32))
        self.log_temperature = None
        if temperature is not None:
            self.log_temperature = nn.Parameter(torch.full((num_heads,), math.log(temperature)))
        for linear in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Attend from tokens to a context.

        Args:
            x: [n, N, query_dim].
            context: [S, context_dim], one that all n share, or [n, S, context_dim], each its own.

        Returns:
            [n, N, query_dim].

        Raises:
            ValueError: the context has another number of axes, or not one entry for each of the n.
        """
        if context.dim() not in (2, 3) or context.dim() == 3 and len(context) != len(x):
            raise ValueError(
                f"context of shape {[*context.shape]}: expected [S, W] for all {len(x)} sequences, or "
                f"[{len(x)}, S, W]"
            )
        if context.dim() == 2:
            # As one long sequence, so that the shared keys are not copied n times: [1, n * N, query_dim].
            return self._attend(x.flatten(0, 1)[None], context[None]).unflatten(1, x.shape[:2])[0]
        return self._attend(x, context)

    def _attend(self, x: Tensor, context: Tensor) -> Tensor:
        """[b, N, query_dim] of x [b, N, query_dim] and its contexts [b, S, context_dim]."""
        query, key = self._queries_and_keys(x, context)
        value = self._heads(self.v_proj(context))
        y = scaled_dot_product(query, key, value, dropout_p=self.dropout if self.training else 0.0)
        return self.out_proj(y.transpose(1, 2).flatten(2))  # the heads side by side again

    @property
    def temperature(self) -> Tensor | None:
        """[heads], what cosines of queries and keys are multiplied by; None without query-key normalisation."""
        return None if self.log_temperature is None else self.log_temperature.exp().clamp(max=MAX_TEMPERATURE)

    def _queries_and_keys(self, x, context):
        """[..., heads, tokens, head width] each, whose products over sqrt(head width) are the logits."""
        query, key = self._heads(self.q_proj(x)), self._heads(self.k_proj(context))
        if self.log_temperature is None:
            return query, key
        scale = self.temperature[:, None, None] * query.shape[-1] ** 0.5
        # Back to the values' type: under autocast a norm is float32.
        return (scale * F.normalize(query, dim=-1)).to(query.dtype), F.normalize(key, dim=-1).to(key.dtype)

    def _heads(self, x):
        return x.unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)  # [..., heads, tokens, head width]

    def attention_weights(self, x: Tensor, context: Tensor) -> Tensor:
        """Attention weights [n, heads, N, S] without dropout; they sum to 1 over S.

        Args:
            x: [n, N, query_dim].
            context: [S, context_dim] or [n, S, context_dim].
        """
        query, key = self._queries_and_keys(x, context)
        return (query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5).softmax(dim=-1)

    def attention_map(self, x: Tensor, context: Context) -> Tensor:
        """Attention weights [n, N, S], averaged over the heads, for pictures; arguments as `attention_weights`.

        Of several contexts the weights stand one behind the other, over their number, so that they still sum to 1.
        """
        parts = parts_of(context)
        maps = [self.attention_weights(x, part).mean(dim=1) for part in parts]
        return torch.cat(maps, dim=-1) / len(parts)


class CrossAttentionModule(MultiHeadCrossAttention):
    """Text -> image: prompt tokens attend to patches of their width W = `dim`; names are the reference fork's."""

    def __init__(
        self,
        dim: int = DOCUMENTED_WIDTH,
        num_heads: int = 8,
        dropout: float = 0.1,
        gate: Gate = None,
        temperature: float | None = None,
    ):
        super().__init__(dim, dim, num_heads, dropout, gate, temperature)

    def forward(self, text_features: Tensor, image_context: Tensor) -> Tensor:
        """Prompt tokens [n, T, W] attend to patches [S, W] or [n, S, W] -> [n, T, W]."""
        return super().forward(text_features, image_context)


class ImageCrossAttentionModule(MultiHeadCrossAttention):
    """Image -> text: image tokens of width C = `image_dim` attend to prompt tokens of width W = `text_dim`."""

    def __init__(
        self,
        image_dim: int,
        text_dim: int,
        num_heads: int = 8,
        dropout: float = 0.1,
        gate: Gate = None,
        temperature: float | None = None,
    ):
        super().__init__(image_dim, text_dim, num_heads, dropout, gate, temperature)

    def forward(self, image_features: Tensor, text_context: Tensor) -> Tensor:
        """Image tokens [n, N, C] attend to prompt tokens [S, W] or [n, S, W] -> [n, N, C]."""
        return super().forward(image_features, text_context)


def attend(
    x: Tensor, contexts: Contexts, attention: MultiHeadCrossAttention, weight: float, norm_match: bool = True
) -> Tensor:
    """x + w * y * |x| / |y|, y = attention(x, context), in every group's rows; other rows stay as they are.

    Of several contexts of a group each adds its own such residual.

    Args:
        x: tokens [n, N, width] of a tower.
        contexts: groups (rows, context).
        weight: w, unless the attention has a learned gate, or one for each context; 0 switches it off exactly,
            whatever the gate.
        norm_match: False for the ablation x + w * y.

    Raises:
        ValueError: a group has another number of contexts than the attention has gates.
    """
    if not contexts or not weight:
        return x
    attending, residuals = [], []
    for rows, context in contexts:
        rows = _row_numbers(rows, x)
        attending.append(rows)
        residuals.append(_residual(x[rows], parts_of(context), attention, weight, norm_match))
    # One addition for all groups; under autocast the residuals are bfloat16, the stream is not.
    return x.index_add(0, torch.cat(attending), torch.cat(residuals).to(x.dtype))


def _residual(x, parts, attention, weight, norm_match):
    """Sum of w * y over the contexts that x [n, N, width] attends to."""
    scales = _scales(attention, weight, len(parts))
    ys = [attention(x, part) for part in parts]
    if norm_match:
        ys = [match_norm(y, x, NORM_FLOOR) for y in ys]
    first, *others = (scale * y for scale, y in zip(scales, ys, strict=True))
    return sum(others, first)


def _scales(attention, weight, count):
    """The scale of each of `count` contexts."""
    gate = attention.gate
    if gate is None or not gate.dim():
        return [weight if gate is None else gate] * count
    if len(gate) != count:
        raise ValueError(
            f"{count} context(s) for {len(gate)} gates: with --split_text_context images attend to two contexts, "
            "those of text_context_of_class"
        )
    return list(gate)


def parts_of(context: Context) -> tuple[Tensor, ...]:
    """The contexts [S, W] that are attended to one by one."""
    return context if isinstance(context, tuple) else (context,)


def _row_numbers(rows: Sequence[int] | None, x: Tensor) -> Tensor:
    """A group's rows as a tensor on the device of x [n, ...]; None are all n."""
    if rows is None:
        return torch.arange(x.shape[0], device=x.device)
    return send(torch.as_tensor(rows), x.device)
