"""The fork's idea: each tower looks at the other through one scaled, norm-matched cross-attention.

Text -> image: after text block 0, prompt tokens attend to image patches (stage 1).
Image -> text: after vision block 0, image tokens attend to the class's prompt tokens (stage 2 and testing).
Both add w * y * |x| / |y| to x. Without the scale w and the norm match the residual drowns x, and the gradient of
the adapters behind it shrinks ("gradient dilution", measured by test_stage2_gradients.py).

A context is an argument of a call, never kept in a model, and always comes with the rows it is for: contexts are given
as a list of groups (rows, context [S, W]), where `rows` are the prompts or images that attend to it; None for all.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from inspect import signature

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.adapter import AdaptedCLIP, compare_embeddings
from model.adapter_modules import match_norm
from model.attention import scaled_dot_product
from model.blocks import run_blocks
from model.self_reference import SelfReference
from model.settings import CrossAttentionSettings, SelfReferenceSettings
from model.transfer import send

NORM_FLOOR = 1e-6  # added to the norm that is divided by
Contexts = Sequence[tuple[Sequence[int] | None, Tensor]]  # groups (rows, context [S, W])


class CrossAttentionModule(nn.Module):
    """Text -> image: multi-head attention from prompt tokens to a context of the same width, before it is scaled.

    out_proj(concat over heads of softmax(Q K^T / sqrt(head width)) V), arXiv 1706.03762.

    Args:
        dim: text width W; also the context's width.
        num_heads: must divide `dim`.
        dropout: on the attention weights, active in training mode only.
        gate: start of a learned residual scale; None for the caller's fixed one.
    """

    def __init__(self, dim: int = 768, num_heads: int = 8, dropout: float = 0.1, gate: float | None = None):
        super().__init__()
        self._build(dim, dim, num_heads, dropout, gate)

    def _build(self, query_dim, dim, num_heads, dropout, gate):
        if dim % num_heads:
            raise ValueError(f"--cross_attn_heads {num_heads} does not divide the text width {dim}")
        if not 0 <= dropout < 1:
            raise ValueError(f"--cross_attn_dropout {dropout}: expected a probability in [0, 1)")
        self.num_heads, self.dropout = num_heads, dropout
        self.q_proj, self.out_proj = nn.Linear(query_dim, dim), nn.Linear(dim, query_dim)
        self.k_proj, self.v_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.gate = None if gate is None else nn.Parameter(torch.tensor(float(gate)))
        for linear in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def _heads(self, x):
        return x.unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)  # [..., heads, tokens, head width]

    def forward(self, text_features: Tensor, image_context: Tensor) -> Tensor:
        """Attend from prompt tokens to patches.

        Args:
            text_features: [n, T, W].
            image_context: [S, W], one that all n share, or [n, S, W], each its own.

        Returns:
            [n, T, W].

        Raises:
            ValueError: the context has another number of axes, or not one entry for each of the n.
        """
        return self._attend(text_features, image_context)

    def _attend(self, x, context):
        if context.dim() not in (2, 3) or context.dim() == 3 and len(context) != len(x):
            raise ValueError(
                f"context of shape {[*context.shape]}: expected [S, W] for all {len(x)} sequences, or "
                f"[{len(x)}, S, W]"
            )
        key, value = self._heads(self.k_proj(context)), self._heads(self.v_proj(context))
        dropout = self.dropout if self.training else 0.0
        if context.dim() == 3:
            y = scaled_dot_product(self._heads(self.q_proj(x)), key, value, dropout_p=dropout)
            return self.out_proj(y.transpose(1, 2).flatten(2))
        # One context, one call: [1, heads, n * T, head width]
        query = self._heads(self.q_proj(x.flatten(0, 1)))[None]
        y = scaled_dot_product(query, key[None], value[None], dropout_p=dropout)
        return self.out_proj(y[0].transpose(0, 1).flatten(1)).unflatten(0, x.shape[:2])

    def attention_map(self, x: Tensor, context: Tensor) -> Tensor:
        """Attention weights, averaged over the heads, for pictures: x [n, T, ...], context [S, dim] -> [n, T, S]."""
        query, key = self._heads(self.q_proj(x)), self._heads(self.k_proj(context))
        weights = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
        return weights.softmax(dim=-1).mean(dim=1)


class ImageCrossAttentionModule(CrossAttentionModule):
    """Image -> text: q projects C -> W, k and v W -> W, out W -> C; otherwise as CrossAttentionModule."""

    def __init__(
        self,
        image_dim: int,
        text_dim: int,
        num_heads: int = 8,
        dropout: float = 0.1,
        gate: float | None = None,
    ):
        nn.Module.__init__(self)
        self._build(image_dim, text_dim, num_heads, dropout, gate)

    def forward(self, image_features: Tensor, text_context: Tensor) -> Tensor:
        """Attend from image tokens [n, N, C] to prompt tokens [S, W] or [n, S, W] -> [n, N, C]; raises as above."""
        return self._attend(image_features, text_context)


class AdaptedCLIPWithCrossAttention(AdaptedCLIP):
    """AdaptedCLIP whose towers may attend to each other; without contexts it is AdaptedCLIP.

    Args:
        clip_model, adapter_arguments: AdaptedCLIP's.
        settings: fields of model.settings.CrossAttentionSettings and SelfReferenceSettings by name, as
            `cross_attn_heads=8, cross_attn_dropout=0.1, text_cross_attn_weight=0.1, image_cross_attn_weight=0.1`, and
            AdaptedCLIP's arguments by name, of which `relu` is True here unless it is given. A weight of 0 switches
            its direction off exactly, whatever the gate. `cross_attn_gate` "fixed": the residual scale is the weight;
            "learned": a parameter that starts at it; "zero": a parameter that starts at 0.

    Raises:
        ValueError: a setting is out of range, or the joint width is not the text width.
        TypeError: no setting has that name.
    """

    def __init__(self, clip_model, *adapter_arguments, **settings):
        attention, settings = _taken(CrossAttentionSettings(), settings)
        reference, settings = _taken(SelfReferenceSettings(), settings)
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
        starts = {
            "learned": (attention.text_cross_attn_weight, attention.image_cross_attn_weight),
            "zero": (0, 0),
        }
        text_gate, image_gate = starts.get(attention.cross_attn_gate, (None, None))
        heads, dropout = attention.cross_attn_heads, attention.cross_attn_dropout
        self.text_cross_attn = CrossAttentionModule(text_width, heads, dropout, text_gate)
        self.image_cross_attn = ImageCrossAttentionModule(
            vision_width, text_width, heads, dropout, image_gate
        )
        self.self_reference = SelfReference(len(self.levels), reference) if reference.self_reference else None

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

    @property
    def text_modules(self) -> dict[str, nn.Module]:
        return super().text_modules | {"text_cross_attn": self.text_cross_attn}

    @property
    def image_modules(self) -> dict[str, nn.Module]:
        own = {} if self.self_reference is None else {"self_reference": self.self_reference}
        return super().image_modules | {"image_cross_attn": self.image_cross_attn} | own

    def encode_text(self, text: Tensor, adapt_text: bool = True, image_contexts: Contexts = ()) -> Tensor:
        """Text features [P, E] of token ids [P, T].

        Args:
            image_contexts: groups (prompt rows, patches [S, E]); prompts in no group attend to nothing.
        """
        if not image_contexts or not adapt_text:
            return super().encode_text(text, adapt_text)

        after_block = self._attend_once(
            self.text_cross_attn, image_contexts, self.attention.text_cross_attn_weight, self.after_text_block
        )
        return self.text_adapter[-1](self.clipmodel.text_tokens_at_end(text, after_block))

    def forward(self, image: Tensor, text_contexts: Contexts = ()) -> tuple[list[Tensor], Tensor]:
        """(seg, det) of images [B, 3, H, W], as AdaptedCLIP.forward; self-reference enters in `compare`.

        Args:
            text_contexts: groups (image rows, prompt tokens [S, W] from `text_context`).
        """
        after_block = self._attend_once(
            self.image_cross_attn,
            text_contexts,
            self.attention.image_cross_attn_weight,
            self.after_image_block,
            self.attention.image_cross_attn_after,
        )
        return self.embed_levels(self.image_levels(image, after_block))

    def compare(
        self,
        image: Tensor,
        anchors: Tensor,
        text_contexts: Contexts = (),
        rarities: list[Tensor] | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """(patch logits [B, L, 2] per level, head cosines [B, 2]), as AdaptedCLIP.compare.

        With self-reference, rarity is one more coordinate of the embeddings; the abnormal anchor has 1 there.

        Args:
            anchors: [B, E, 2].
            text_contexts: as in `forward`.
            rarities: of SelfReference.rarities for these images, if they are at hand; the pass is made otherwise.
        """
        seg, det = self(image, text_contexts)
        if self.self_reference is None:
            return compare_embeddings(seg, det, anchors)
        if rarities is None:
            rarities = self.self_reference.rarities(self.clipmodel, image, self.levels)
        rare, peak = self.self_reference(rarities)
        row = F.pad(anchors.new_ones(*anchors.shape[:-2], 1, 1), (1, 0))  # 0 for normal, 1 for abnormal
        return compare_embeddings(
            [torch.cat(pair, dim=-1) for pair in zip(seg, rare, strict=True)],
            torch.cat([det, peak], dim=-1),
            torch.cat([anchors, row], dim=-2),
        )

    def attending_tokens(self, image: Tensor) -> Tensor:
        """The tokens [B, N, C] of images that attend to prompts: after block `image_cross_attn_after`."""
        visual, place = self.clipmodel.visual, self.attention.image_cross_attn_after

        def adapt_before(i, x):
            return x if i == place else self.after_image_block(i, x)

        return run_blocks(
            visual.transformer.resblocks,
            visual.embed(image),
            (),
            adapt_before,
            place + 1,
            autocast=visual.autocast,
        )[0]

    def _attend_once(
        self,
        module: CrossAttentionModule,
        contexts: Contexts,
        weight: float,
        after_block: Callable[[int, Tensor], Tensor],
        place: int = 0,
    ) -> Callable[[int, Tensor], Tensor]:
        """The block-loop hook that attends after block `place` and then adapts as `after_block` does."""

        def attend_then_adapt(i, x):
            if i == place and contexts and weight:
                x = self._attend(module, x, contexts, weight)
            return after_block(i, x)

        return attend_then_adapt

    def _attend(self, module: CrossAttentionModule, x: Tensor, contexts: Contexts, weight: float) -> Tensor:
        """x + w * y * |x| / |y| with y = module(x, context), for every group of rows; other rows stay as they are."""
        scale = weight if module.gate is None else module.gate
        attending, residuals = [], []
        for rows, context in contexts:
            every = rows is None
            rows = (
                torch.arange(x.shape[0], device=x.device) if every else send(torch.as_tensor(rows), x.device)
            )
            y = module(x[rows], context)
            if not self.attention.no_norm_match:
                y = match_norm(y, x[rows], NORM_FLOOR)
            attending.append(rows)
            residuals.append(scale * y)
        return x.index_add(0, torch.cat(attending), torch.cat(residuals).to(x.dtype))

    def text_context(self, text: Tensor) -> Tensor:
        """What images attend to: prompt tokens after text block 0 and text_adapter[0].

        Args:
            text: token ids [P, T] of one class's prompts, padding included.

        Returns:
            [P * T, W], each token of unit length (unless `no_normalize_context`). The rows of padding are there
            too; see forward_utils_cross_attention.text_context_of_class for the mask that hides them.
        """
        clip = self.clipmodel
        x = clip.token_embedding(text) + clip.positional_embedding[: text.shape[1]]
        mask = clip.attn_mask[: text.shape[1], : text.shape[1]]
        x, _ = run_blocks(
            clip.transformer.resblocks, x, (), self.after_text_block, stop_after=1, attn_mask=mask
        )
        x = x.flatten(0, 1)
        return x if self.attention.no_normalize_context else F.normalize(x, dim=-1)


def _taken(defaults, settings):
    """(the dataclass `defaults` with what `settings` says of its fields, the rest of `settings`)."""
    own = {field.name for field in fields(defaults)} & settings.keys()
    taken = {name: settings[name] for name in own}
    return replace(defaults, **taken), {name: value for name, value in settings.items() if name not in own}
