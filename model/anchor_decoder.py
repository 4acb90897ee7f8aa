"""Anchors decoded against the image they judge: a two-way decoder after the image tower, at every level.

Both anchors are queries. In each layer they attend to each other, then to the image's patches, pass an MLP, and the
patches attend to them, as in the mask decoder of A. Kirillov et al., "Segment Anything", ICCV 2023 (section A, "mask
decoder"). What it adds to the anchors passes a projection that starts at 0, so that training starts from the baseline.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.cross_attention import MultiHeadCrossAttention
from model.settings import ANCHOR_DECODER_CONTROLS, AnchorDecoderSettings


class TwoWayLayer(nn.Module):
    """One layer: queries [B, 2, E] and patches [B, L, E] -> both, each normalised after its residuals.

    Args:
        width: E.
        heads: of every attention; must divide E.
        dropout: on the attention weights.
    """

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.between, self.to_image, self.to_queries = (
            MultiHeadCrossAttention(width, width, heads, dropout, None) for _ in range(3)
        )
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))

    def forward(self, queries: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """queries [B, 2, E], patches [B, L, E] -> (queries, patches)."""
        after_queries, after_image, after_mlp, after_patches = self.norms
        queries = after_queries(queries + self.between(queries, queries))
        queries = after_image(queries + self.to_image(queries, patches))
        queries = after_mlp(queries + self.mlp(queries))
        return queries, after_patches(patches + self.to_queries(patches, queries))


class AnchorDecoder(nn.Module):
    """What an image's patches add to both anchors; one decoder for all levels, which it sees one by one.

    Args:
        width: E, of anchors and patches.
        heads, dropout: of every attention.
        settings: `anchor_decoder` layers, at least one; with the control "constant" the queries start at two fixed
            vectors, the same for every class, so that nothing of the text is decoded.

    Raises:
        ValueError: the layers are too few, or there is no such control.
    """

    def __init__(self, width: int, heads: int, dropout: float, settings: AnchorDecoderSettings):
        super().__init__()
        if settings.anchor_decoder < 1:
            raise ValueError(
                f"--anchor_decoder {settings.anchor_decoder}: expected 1 layer or more, or 0 for none"
            )
        if settings.anchor_decoder_control not in ANCHOR_DECODER_CONTROLS:
            raise ValueError(
                f"--anchor_decoder_control {settings.anchor_decoder_control}: expected one of "
                f"{', '.join(ANCHOR_DECODER_CONTROLS)}"
            )
        self.layers = nn.ModuleList(
            TwoWayLayer(width, heads, dropout) for _ in range(settings.anchor_decoder)
        )
        self.last = MultiHeadCrossAttention(width, width, heads, dropout, None)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        start = torch.randn(2, width, generator=torch.Generator().manual_seed(0))
        constant = settings.anchor_decoder_control == "constant"
        self.register_buffer("start", F.normalize(start, dim=-1) if constant else None, persistent=False)

    def forward(self, seg: list[Tensor], anchors: Tensor) -> list[Tensor]:
        """What is added to the anchors, [B, E, 2] per level.

        Args:
            seg: patches [B, L, E] per level, unit length.
            anchors: [B, E, 2], normal and abnormal, unit length.
        """
        first = anchors.transpose(1, 2) if self.start is None else self.start.expand(anchors.shape[0], -1, -1)
        return [self._decode(first, patches).transpose(1, 2) for patches in seg]

    def _decode(self, queries, patches):
        """[B, 2, E] of the first queries [B, 2, E] and one level's patches [B, L, E]."""
        for layer in self.layers:
            queries, patches = layer(queries, patches)
        return self.out(self.norm(queries + self.last(queries, patches)))
