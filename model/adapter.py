"""AA-CLIP's adapted model: residual adapters in both towers of a frozen CLIP (arXiv 2503.06661)."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.adapter_modules import SimpleAdapter, SimpleProj, match_norm
from model.clip import CLIP
from model.frozen_cache import LookUp

SIMILARITY_SCALE = 100.0  # CLIP's logit scale, applied to every cosine of a similarity map


def warn_of_unread(unread: Iterable[str], read: Iterable[str]) -> None:
    """Warn of arguments that nothing reads.

    Args:
        unread, read: names of arguments.

    Raises:
        TypeError: one of them is almost the name of an argument that is read.
    """
    for name in unread:
        if meant := get_close_matches(name, list(read), 1, cutoff=0.85):
            raise TypeError(f"no argument is called {name}: write {meant[0]}")
        warnings.warn(f"AdaptedCLIP reads no argument {name}, as in AA-CLIP: leave it away", stacklevel=3)


class AdaptedCLIP(nn.Module):
    """A frozen CLIP with trainable text and image adapters; the constructor is upstream's.

    Args:
        clip_model: backbone from model.clip.create_model; not trained.
        text_adapt_weight, image_adapt_weight: residual weight w in x <- w * adapted + (1 - w) * x.
        text_adapt_until, image_adapt_until: number of first blocks that are followed by an adapter.
        levels: numbers of vision blocks whose patches are compared with text; the quarters of the depth when None.
        relu: LeakyReLU after the segmentation and detection projections.
        unread: AA-CLIP takes any further argument by name, such as `image_encoder`, and reads none; a warning says so.

    Raises:
        ValueError: more adapters than blocks.
        TypeError: a further argument is a slip of the pen for one that is read.
    """

    def __init__(
        self,
        clip_model: CLIP,
        text_adapt_weight: float = 0.1,
        image_adapt_weight: float = 0.1,
        text_adapt_until: int = 3,
        image_adapt_until: int = 6,
        levels: Sequence[int] | None = None,
        relu: bool = False,
        **unread: Any,
    ):
        super().__init__()
        warn_of_unread(unread, signature(AdaptedCLIP).parameters)
        self.clipmodel = clip_model
        self.text_adapt_weight, self.image_adapt_weight = text_adapt_weight, image_adapt_weight
        self.text_adapt_until, self.image_adapt_until = text_adapt_until, image_adapt_until
        self.levels = list(clip_model.default_levels if levels is None else levels)
        for flag, wanted, tower in (
            ("text_adapt_until", text_adapt_until, clip_model.transformer),
            ("image_adapt_until", image_adapt_until, clip_model.visual.transformer),
        ):
            if not 0 <= wanted <= len(tower.resblocks):
                raise ValueError(
                    f"--{flag} {wanted}: the tower has {len(tower.resblocks)} blocks; choose at most that"
                )
        text_width, vision_width = clip_model.ln_final.weight.shape[0], clip_model.visual.proj.shape[0]
        embed_width = clip_model.embed_dim
        self.text_adapter = nn.ModuleList(
            [SimpleAdapter(text_width, text_width) for _ in range(text_adapt_until)]
            + [SimpleProj(text_width, embed_width, relu=True)]
        )
        self.image_adapter = nn.ModuleDict(
            {
                "layer_adapters": nn.ModuleList(
                    SimpleAdapter(vision_width, vision_width) for _ in range(image_adapt_until)
                ),
                "seg_proj": nn.ModuleList(SimpleProj(vision_width, embed_width, relu) for _ in self.levels),
                "det_proj": SimpleProj(vision_width, embed_width, relu),
            }
        )
        for adapter in (self.text_adapter, self.image_adapter):
            for parameter in adapter.parameters():
                nn.init.xavier_uniform_(parameter)

    def train(self, mode: bool = True) -> "AdaptedCLIP":
        """Training mode for the adapters; the frozen CLIP stays in eval mode."""
        super().train(mode)
        self.clipmodel.eval()
        return self

    def after_text_block(self, i: int, x: Tensor) -> Tensor:
        """Text tokens [P, T, W] after block i, with the block's adapter mixed in."""
        if i >= self.text_adapt_until:
            return x
        return self._mix(self.text_adapter[i], x, self.text_adapt_weight)

    def after_image_block(self, i: int, x: Tensor) -> Tensor:
        """Vision tokens [B, N, C] after block i, with the block's adapter mixed in."""
        if i >= self.image_adapt_until:
            return x
        return self._mix(self.image_adapter["layer_adapters"][i], x, self.image_adapt_weight)

    @staticmethod
    def _mix(adapter, x, weight):
        """w * adapted + (1 - w) * x, the adapted tokens at the norm of x; AA-CLIP's residual adapter."""
        return weight * match_norm(adapter(x), x) + (1 - weight) * x

    def encode_text(self, text: Tensor, adapt_text: bool = True) -> Tensor:
        """Text features of token ids [P, T] -> [P, E], not normalised; plain CLIP's when `adapt_text` is off."""
        if not adapt_text:
            return self.clipmodel.encode_text(text)
        return self.text_adapter[-1](self.clipmodel.text_tokens_at_end(text, self.after_text_block))

    def encode_prompts(self, tokens: Tensor, end: Tensor) -> Tensor:
        """`encode_text` [P, E] of prompts that text block 0 has done, as model.clip.CLIP.text_at_end takes them."""
        return self.text_adapter[-1](self.clipmodel.text_at_end(tokens, end, self.after_text_block))

    def image_levels(
        self, image: Tensor, after_block: Callable[[int, Tensor], Tensor] | None = None
    ) -> list[Tensor]:
        """Adapted vision tokens at every level: images [B, 3, H, W] -> list of [B, N, C].

        `after_block` replaces `after_image_block` as the place where adaptation enters.
        """
        visual, after_block = self.clipmodel.visual, after_block or self.after_image_block
        return visual.run(visual.embed(image), self.levels, after_block, stop_after=max(self.levels))[1]

    def forward(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        """Patch and image embeddings, compared with anchors by cosine.

        Args:
            image: [B, 3, H, W], normalised with CLIP's mean and standard deviation.

        Returns:
            (seg, det): list of [B, L, E] per level, and [B, E]; seg is unit length per patch, det the mean of
            unit-length patches of the last level.
        """
        return self.embed_levels(self.image_levels(image))

    @property
    def device(self) -> torch.device:
        """Where the adapters lie."""
        return next(self.text_adapter.parameters()).device

    @property
    def text_modules(self) -> dict[str, nn.Module]:
        """What stage 1 trains, by checkpoint key."""
        return {"text_adapter": self.text_adapter}

    @property
    def image_modules(self) -> dict[str, nn.Module]:
        """What stage 2 trains, by checkpoint key."""
        return {"image_adapter": self.image_adapter}

    def compare(self, image: Tensor, anchors: Tensor) -> tuple[list[Tensor], Tensor]:
        """Similarities of images to anchor pairs, what both the loss of stage 2 and the scores at test are made of.

        Args:
            image: [B, 3, H, W].
            anchors: [B, E, 2], one pair per image.

        Returns:
            (patch logits [B, L, 2] per level, SIMILARITY_SCALE times the cosines; head cosines [B, 2]).
        """
        return compare_embeddings(*self(image), anchors)

    def frozen_arguments(self, image: Tensor, look_up: LookUp) -> dict[str, Any]:
        """Arguments of `compare` for images [B, 3, H, W] that no training changes, looked up; here there are none."""
        return {}

    def embed_levels(self, tokens: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Patch and image embeddings (seg, det), as `forward`, of vision tokens [B, N, C] per level."""
        patches = [self.clipmodel.visual.ln_post(x[:, 1:]) for x in tokens]  # [B, L, C], CLS dropped
        seg = [  # [B, L, E]
            F.normalize(project(x), dim=-1)
            for project, x in zip(self.image_adapter["seg_proj"], patches, strict=True)
        ]
        det = F.normalize(self.image_adapter["det_proj"](patches[-1]), dim=-1).mean(dim=1)
        return seg, det


def compare_embeddings(seg: list[Tensor], det: Tensor, anchors: Tensor) -> tuple[list[Tensor], Tensor]:
    """(patch logits [B, L, 2] per level, head cosines [B, 2]) of embeddings as `AdaptedCLIP.forward` returns them.

    Args:
        seg: patches [B, L, E] per level.  det: [B, E].
        anchors: [B, E, 2].
    """
    return [patch_logits(patches, anchors) for patches in seg], torch.einsum("be,bec->bc", det, anchors)


def patch_logits(patches: Tensor, anchors: Tensor) -> Tensor:
    """SIMILARITY_SCALE times the cosines of patches [B, L, E] and anchors [E, 2] or [B, E, 2]: [B, L, 2]."""
    return SIMILARITY_SCALE * patches @ anchors
