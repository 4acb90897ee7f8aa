"""Semantic cross-attention: the noisy tokens of a diptych look at the tokens of a semantic map."""

import torch
from torch import Tensor, nn
from torch.nn import functional

TOKEN_WIDTH = 64  # 16 latent channels, packed 2 x 2
LAYOUTS = ("33k", "source")
POSITIONS = ("local", "none")


class SemanticCrossAttention(nn.Module):
    """x + scale * out(attention(q(LN(x)), k(LN(s)), v(LN(s)))) with a scale that starts at 0.

    Layout "33k": inner width 2 x token width, projections without biases, one scale per channel (33,088 parameters at
    the width of 64). Layout "source": inner width = token width, biases, one scalar (16,897 parameters). The output
    equals the input bit for bit while the scale is 0.

    Attention alone is blind to place: permuting the semantic tokens changes nothing. Positions "local" add
    -slope_h * (squared grid distance) to the logits of head h, parameter-free; "none" adds nothing.

    Raises:
        ValueError: unknown layout or positions, or an inner width the heads do not divide.
    """

    def __init__(self, width=TOKEN_WIDTH, heads=8, layout="33k", positions="local"):
        super().__init__()
        for value, known, flag in ((layout, LAYOUTS, "layout"), (positions, POSITIONS, "pos")):
            if value not in known:
                raise ValueError(f"--semantic_{flag} {value}: expected one of {', '.join(known)}")
        inner, biases = (2 * width, False) if layout == "33k" else (width, True)
        if heads < 1 or inner % heads:
            raise ValueError(
                f"--semantic_heads {heads}: must divide the inner width {inner} of layout {layout}"
            )
        self.heads, self.positions = heads, positions
        self.norm_tokens = nn.LayerNorm(width)
        self.norm_semantic = nn.LayerNorm(width)
        self.query = nn.Linear(width, inner, bias=biases)
        self.key = nn.Linear(width, inner, bias=biases)
        self.value = nn.Linear(width, inner, bias=biases)
        self.out = nn.Linear(inner, width, bias=biases)
        self.scale = nn.Parameter(torch.zeros(width if layout == "33k" else ()))

    def forward(
        self,
        tokens: Tensor,
        semantic: Tensor,
        token_places: Tensor,
        semantic_places: Tensor,
        keep: Tensor | None = None,
    ) -> Tensor:
        """Let tokens look at the semantic map.

        Args:
            tokens: [B, N, width]; any float type, the arithmetic is this module's.
            semantic: [B, M, width].
            token_places: [N, 2] row and column of each token inside its panel; see `places`.
            semantic_places: [M, 2] in the same unit.
            keep: [B] booleans; where False the example stays as it is, as if there were no map.

        Returns:
            [B, N, width] in the type of `tokens`.
        """
        normed = self.norm_semantic(semantic.to(self.norm_semantic.weight.dtype))
        query = self._split(self.query(self.norm_tokens(tokens.to(normed.dtype))))
        seen = functional.scaled_dot_product_attention(
            query,
            self._split(self.key(normed)),
            self._split(self.value(normed)),
            attn_mask=self._bias(token_places, semantic_places, normed.dtype),
        )
        change = self.scale * self.out(seen.transpose(1, 2).flatten(2))  # [B, N, width]
        if keep is not None:
            change = change * keep.to(change)[:, None, None]
        return (tokens + change).to(tokens.dtype)

    def weights(
        self, tokens: Tensor, semantic: Tensor, token_places: Tensor, semantic_places: Tensor
    ) -> Tensor:
        """How much each token takes from each token of the map, for pictures; arguments as in `forward`.

        Returns:
            [B, heads, N, M], rows sum to 1.
        """
        normed = self.norm_semantic(semantic.to(self.norm_semantic.weight.dtype))
        query = self._split(self.query(self.norm_tokens(tokens.to(normed.dtype))))
        logits = query @ self._split(self.key(normed)).transpose(-1, -2) / query.shape[-1] ** 0.5
        bias = self._bias(token_places, semantic_places, normed.dtype)
        return (logits if bias is None else logits + bias).softmax(dim=-1)

    def _bias(self, token_places, semantic_places, dtype):
        if self.positions == "none":
            return None
        return locality_bias(token_places, semantic_places, self.heads)[None].to(dtype)

    def _split(self, x):
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, heads, N, inner / heads]


class SemanticLayers(nn.ModuleList):
    """`layers` cross-attentions one after another; none of them leaves the tokens alone."""

    def __init__(
        self,
        layers: int = 1,
        width: int = TOKEN_WIDTH,
        heads: int = 8,
        layout: str = "33k",
        positions: str = "local",
    ):
        if layers < 0:
            raise ValueError(f"--semantic_layers {layers}: expected 0 (no semantics) or more")
        super().__init__(SemanticCrossAttention(width, heads, layout, positions) for _ in range(layers))

    def forward(
        self,
        tokens: Tensor,
        semantic: Tensor,
        token_places: Tensor,
        semantic_places: Tensor,
        keep: Tensor | None = None,
    ) -> Tensor:
        """Tokens [B, N, width] that have seen the map in every layer -> [B, N, width].

        Args:
            semantic: [B, M, width], the map's tokens.
            token_places, semantic_places: [N, 2] and [M, 2].
            keep: [B] booleans, False for examples that see no map; None for all.
        """
        for layer in self:
            tokens = layer(tokens, semantic, token_places, semantic_places, keep)
        return tokens

    def scales(self) -> Tensor:
        """[layers] mean absolute scale of each layer."""
        means = [layer.scale.detach().abs().mean() for layer in self]
        return torch.stack(means) if means else torch.empty(0)

    def mean_scale(self) -> float:
        """Mean absolute scale over layers and channels, for the log; 0.0 without layers."""
        return (
            torch.cat([layer.scale.detach().abs().flatten() for layer in self]).mean().item()
            if len(self)
            else 0.0
        )


def places(
    rows: int, columns: int, panels: int = 1, unit: float = 1.0, device: torch.device | None = None
) -> Tensor:
    """Where tokens are inside their panel.

    Args:
        rows, columns: tokens of one panel.
        panels: panels side by side; both panels of a diptych have the same places, for both show the same scene.
        unit: size of a token of this grid in tokens of the diptych; other than 1 when the map has another resolution.
        device: where they are made, without a copy.

    Returns:
        [rows * panels * columns, 2] centre of each token (row, column) in tokens of the diptych, in reading order.
    """
    row = (torch.arange(rows, device=device) + 0.5) * unit
    column = ((torch.arange(columns, device=device) + 0.5) * unit).repeat(panels)
    return torch.stack(torch.meshgrid(row, column, indexing="ij"), dim=-1).flatten(0, 1)


def locality_bias(token_places: Tensor, semantic_places: Tensor, heads: int) -> Tensor:
    """-slope_h * squared distance with slopes 2, 1, 1/2, ...: head 0 sees its own place, the last about a panel.

    A geometric sequence of slopes per head follows ALiBi (Press et al., arXiv 2108.12409), here on squared distances.

    Returns:
        [heads, N, M]
    """
    distance = (token_places[:, None] - semantic_places[None]).square().sum(-1)  # [N, M]
    slopes = 2.0 ** (1 - torch.arange(heads, device=distance.device, dtype=distance.dtype))
    return -slopes[:, None, None] * distance
