"""Semantic fusion: the simple alternative to the cross-attention, a map added token by token."""

from math import isqrt

import torch
from torch import Tensor, nn

from synthesis.attention import TOKEN_WIDTH, SemanticLayers


class SemanticFusion(nn.Module):
    """x + W s + b with W and b that start at 0 (4,160 parameters at the width of 64).

    Each token of the map is added to the token at its place in either panel, for both show the same scene. Addition
    pairs tokens, so the map must have as many as one panel: a 512-pixel map has 1,024, each panel of a 512 x 1024
    diptych has 1,024 too. The output equals the input bit for bit while the projection is 0.
    """

    def __init__(self, width=TOKEN_WIDTH):
        super().__init__()
        self.projection = nn.Linear(width, width)
        nn.init.zeros_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)

    def forward(
        self,
        tokens: Tensor,
        semantic: Tensor,
        token_places: Tensor,
        semantic_places: Tensor,
        keep: Tensor | None = None,
    ) -> Tensor:
        """Add the map to a diptych's tokens; arguments as in `SemanticCrossAttention.forward`.

        Args:
            tokens: [B, N, width], two panels side by side in reading order.
            semantic: [B, N / 2, width].
            token_places, semantic_places: not needed, tokens are paired by their order.
            keep: [B] booleans; where False the example stays as it is, as if there were no map.

        Returns:
            [B, N, width] in the type of `tokens`.

        Raises:
            ValueError: the map has another number of tokens than a panel.
        """
        if 2 * semantic.shape[1] != tokens.shape[1]:
            raise ValueError(
                f"--semantic_mode fusion: the map has {semantic.shape[1]} tokens and each panel "
                f"{tokens.shape[1] // 2}: give a map of the panel's size, or train with cross_attention, "
                "which takes any"
            )
        rows = isqrt(semantic.shape[1])
        change = self.projection(semantic.to(self.projection.weight.dtype)).unflatten(1, (rows, rows))
        change = torch.cat((change, change), dim=2).flatten(1, 2)  # [B, N, width], the map beside itself
        if keep is not None:
            change = change * keep.to(change)[:, None, None]
        return (tokens + change).to(tokens.dtype)

    def scales(self) -> Tensor:
        """[1] mean absolute weight of the projection."""
        return self.projection.weight.detach().abs().mean()[None]

    def mean_scale(self) -> float:
        """Mean absolute weight of the projection, for the log."""
        return self.scales().item()


SemanticModule = SemanticLayers | SemanticFusion  # what brings the map in, called alike
