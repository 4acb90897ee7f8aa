"""The fork's idea: each tower looks at the other through one scaled, norm-matched cross-attention.

Text -> image: after text block 0, prompt tokens attend to image patches (stage 1).
Image -> text: after vision block 0, image tokens attend to the class's prompt tokens (stage 2 and testing).
Both add w * y * |x| / |y| to x (model.cross_attention.attend). Without the scale w and the norm match the residual
drowns x, and the gradient of the adapters behind it shrinks ("gradient dilution", of test_stage2_gradients.py).

A context is an argument of a call, never kept in a model.
"""

from inspect import signature
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from model.adapter import AdaptedCLIP, compare_embeddings, patch_logits
from model.anchor_attention import anchor_attention_of
from model.anchor_decoder import AnchorDecoder
from model.clip import CLIP
from model.cross_attention import (
    Contexts,
    CrossAttentionModule,
    Gate,
    ImageCrossAttentionModule,
    attend,
)
from model.frozen_cache import LookUp
from model.self_reference import SelfReference
from model.settings import (
    AnchorAttentionSettings,
    AnchorDecoderSettings,
    CrossAttentionSettings,
    SelfReferenceSettings,
    taken_from,
)

__all__ = ["AdaptedCLIPWithCrossAttention", "Contexts", "CrossAttentionModule", "ImageCrossAttentionModule"]


class AdaptedCLIPWithCrossAttention(AdaptedCLIP):
    """AdaptedCLIP whose towers may attend to each other; without contexts it is AdaptedCLIP.

    Args:
        clip_model, adapter_arguments: AdaptedCLIP's.
        settings: fields of CrossAttentionSettings, SelfReferenceSettings, AnchorAttentionSettings and
            AnchorDecoderSettings of model.settings by name, as `cross_attn_heads=8, cross_attn_dropout=0.1,
            text_cross_attn_weight=0.1, image_cross_attn_weight=0.1`, and AdaptedCLIP's arguments by name, of which
            `relu` is True here unless it is given. A weight of 0 switches its direction off exactly, whatever the gate.
            `cross_attn_gate` "fixed": the residual scale is the weight; "learned": a parameter that starts at it;
            "zero": a parameter that starts at 0. `split_text_context`: images attend to a class's normal and abnormal
            prompts apart, which then are two contexts of a group.

    Raises:
        ValueError: a setting is out of range, or the joint width is not the text width.
        TypeError: no setting has that name.
    """

    def __init__(self, clip_model: CLIP, *adapter_arguments, **settings):
        attention, settings = taken_from(settings, CrossAttentionSettings())
        reference, settings = taken_from(settings, SelfReferenceSettings())
        late, settings = taken_from(settings, AnchorAttentionSettings())
        decoder, settings = taken_from(settings, AnchorDecoderSettings())
        given = signature(AdaptedCLIP).bind_partial(clip_model, *adapter_arguments, **settings).arguments
        if unknown := given.get("unread"):
            raise TypeError(f"no setting is called {', '.join(sorted(unknown))}")
        super().__init__(**({"relu": True} | given))
        text_width, vision_width = clip_model.ln_final.weight.shape[0], clip_model.visual.proj.shape[0]
        if clip_model.embed_dim != text_width:
            raise ValueError(
                f"text -> image attention reads patches of the joint width {clip_model.embed_dim} as keys of the text "
                f"width {text_width}: choose a backbone where they are equal, as ViT-L-14-336"
            )
        last, place = max(self.levels) - 1, attention.image_cross_attn_after
        if not 0 <= place <= last:
            raise ValueError(f"--image_cross_attn_after {place}: expected a vision block in 0..{last}")
        self.attention = attention
        text_gate, image_gate = first_gates(attention)
        heads, dropout = attention.cross_attn_heads, attention.cross_attn_dropout
        temperature = attention.cross_attn_temperature if attention.cross_attn_qk_norm else None
        self.text_cross_attn = CrossAttentionModule(text_width, heads, dropout, text_gate, temperature)
        self.image_cross_attn = ImageCrossAttentionModule(
            vision_width, text_width, heads, dropout, image_gate, temperature
        )
        self.self_reference = SelfReference(len(self.levels), reference) if reference.self_reference else None
        self.anchor_attention = anchor_attention_of(late, len(self.levels))
        self.anchor_decoder = None
        if decoder.anchor_decoder:
            self.anchor_decoder = AnchorDecoder(clip_model.embed_dim, heads, dropout, decoder)

    @property
    def sees_another_image(self) -> bool:
        """Whether an image's maps depend on another image of its batch: `--anchor_attention_control other_image`."""
        return self.anchor_attention is not None and self.anchor_attention.control == "other_image"

    def forward(self, image: Tensor, text_contexts: Contexts = ()) -> tuple[list[Tensor], Tensor]:
        """(seg, det) of images [B, 3, H, W], as AdaptedCLIP.forward; self-reference enters in `compare`.

        Args:
            text_contexts: groups (image rows, prompt tokens [S, W] from `text_context`, or two such contexts).
        """
        place, weight = self.attention.image_cross_attn_after, self.attention.image_cross_attn_weight

        def attend_then_adapt(i, x):  # [B, N, C]
            if i == place:
                x = attend(x, text_contexts, self.image_cross_attn, weight, not self.attention.no_norm_match)
            return self.after_image_block(i, x)

        return self.embed_levels(self.image_levels(image, attend_then_adapt))

    def encode_text(self, text: Tensor, adapt_text: bool = True, image_contexts: Contexts = ()) -> Tensor:
        """Text features [P, E] of token ids [P, T].

        Args:
            image_contexts: groups (prompt rows, patches [S, E]); prompts in no group attend to nothing.
        """
        if not image_contexts or not adapt_text:
            return super().encode_text(text, adapt_text)
        attend_then_adapt = self._seeing(image_contexts)
        return self.text_adapter[-1](self.clipmodel.text_tokens_at_end(text, attend_then_adapt))

    def encode_prompts(self, tokens: Tensor, end: Tensor, image_contexts: Contexts = ()) -> Tensor:
        """`encode_text` [P, E] of prompts that text block 0 has done, as AdaptedCLIP.encode_prompts."""
        if not image_contexts:
            return super().encode_prompts(tokens, end)
        features = self.clipmodel.text_at_end(tokens, end, self._seeing(image_contexts))
        return self.text_adapter[-1](features)

    def _seeing(self, image_contexts):
        """What stands behind a text block: of the first the attention to images, of all the adapters."""
        weight = self.attention.text_cross_attn_weight

        def attend_then_adapt(i, x):  # [P, T, W]
            if i == 0:
                x = attend(x, image_contexts, self.text_cross_attn, weight, not self.attention.no_norm_match)
            return self.after_text_block(i, x)

        return attend_then_adapt

    def compare(
        self,
        image: Tensor,
        anchors: Tensor,
        text_contexts: Contexts = (),
        rarities: list[Tensor] | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """(patch logits [B, L, 2] per level, head cosines [B, 2]), as AdaptedCLIP.compare.

        Args:
            anchors: [B, E, 2].
            text_contexts: as in `forward`.
            rarities: of SelfReference.rarities for these images, if they are at hand; the pass is made otherwise.
        """
        return self.compare_features(image, *self(image, text_contexts), anchors, rarities)

    def compare_features(
        self,
        image: Tensor,
        seg: list[Tensor],
        det: Tensor,
        anchors: Tensor,
        rarities: list[Tensor] | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """`compare` of images whose embeddings (seg, det), as `forward` returns them, are at hand."""
        # p (a + m) = p a + p m: only the patches' logits see moved anchors, and rarity's coordinate stays as it is.
        moved = [
            [patch_logits(patches, move) for patches, move in zip(seg, part(seg, anchors), strict=True)]
            for part in (self.anchor_attention, self.anchor_decoder)
            if part is not None
        ]
        if self.self_reference is not None:
            if rarities is None:
                rarities = self.self_reference.rarities(self.clipmodel, image, self.levels)
            seg, det, anchors = self.self_reference.with_coordinate(seg, det, anchors, rarities)
        logits, head = compare_embeddings(seg, det, anchors)
        for more in moved:
            logits = [one + other for one, other in zip(logits, more, strict=True)]
        return logits, head

    def frozen_arguments(self, image: Tensor, look_up: LookUp) -> dict[str, Any]:
        """The `rarities` that `compare` takes where there is a self-reference, as AdaptedCLIP.frozen_arguments."""
        reference = self.self_reference
        if reference is None:
            return {}
        return {"rarities": reference.rarities(self.clipmodel, image, self.levels, look_up)}

    def text_context(self, text: Tensor) -> Tensor:
        """What images attend to: prompt tokens after text block 0 and text_adapter[0].

        Args:
            text: token ids [P, T] of one class's prompts, padding included.

        Returns:
            [P * T, W], each token of unit length (unless `no_normalize_context`). The rows of padding are there
            too; see forward_utils_cross_attention.text_context_of_class for the mask that hides them.
        """
        x = self.clipmodel.text_tokens(text, self.after_text_block, stop_after=1)
        x = x.flatten(0, 1)  # [P * T, W]
        return x if self.attention.no_normalize_context else F.normalize(x, dim=-1)

    def attending_tokens(self, image: Tensor) -> Tensor:
        """The tokens [B, N, C] of images that attend to prompts: after block `image_cross_attn_after`."""
        place = self.attention.image_cross_attn_after

        def adapt_before(i, x):
            return x if i == place else self.after_image_block(i, x)

        visual = self.clipmodel.visual
        return visual.run(visual.embed(image), (), adapt_before, stop_after=place + 1)[0]

    @property
    def text_modules(self) -> dict[str, nn.Module]:
        """What stage 1 trains, by checkpoint key."""
        return super().text_modules | {"text_cross_attn": self.text_cross_attn}

    @property
    def image_modules(self) -> dict[str, nn.Module]:
        """What stage 2 trains, by checkpoint key."""
        own = {
            "self_reference": self.self_reference,
            "anchor_attention": self.anchor_attention,
            "anchor_decoder": self.anchor_decoder,
        }
        own = {key: module for key, module in own.items() if module is not None}
        return super().image_modules | {"image_cross_attn": self.image_cross_attn} | own

    @property
    def t_ca_w(self) -> float:
        """The reference fork's name of `--text_cross_attn_weight`."""
        return self.attention.text_cross_attn_weight

    @property
    def i_ca_w(self) -> float:
        """The reference fork's name of `--image_cross_attn_weight`."""
        return self.attention.image_cross_attn_weight

    def _refuse_context(self, context):
        raise AttributeError(
            "current_image_context: a model keeps no context; hand it to the call, as encode_text(text, "
            "image_contexts=[(None, patches)])"
        )

    current_image_context = property(fset=_refuse_context)


def first_gates(attention: CrossAttentionSettings) -> tuple[Gate, Gate]:
    """Where the learned residual scales of text -> image and image -> text start; None for fixed ones.

    Raises:
        ValueError: there is no such `cross_attn_gate`.
    """
    weights = {
        "fixed": (None, None),
        "learned": (float(attention.text_cross_attn_weight), float(attention.image_cross_attn_weight)),
        "zero": (0.0, 0.0),
    }
    if attention.cross_attn_gate not in weights:
        raise ValueError(
            f"--cross_attn_gate {attention.cross_attn_gate}: expected one of {', '.join(weights)}"
        )
    text, image = weights[attention.cross_attn_gate]
    return text, (image, image) if attention.split_text_context and image is not None else image
