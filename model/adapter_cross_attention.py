"""The fork's idea: each tower looks at the other through one scaled, norm-matched cross-attention.

Text -> image: after text block 0, prompt tokens attend to image patches (stage 1).
Image -> text: after vision block 0, image tokens attend to the class's prompt tokens (stage 2 and testing).
Both add w * y * |x| / |y| to x. Without the scale w and the norm match the residual drowns x, and the gradient of
the adapters behind it shrinks ("gradient dilution", measured by test_stage2_gradients.py).

A context is an argument of a call, never kept in a model, and always comes with the rows it is for: contexts are given
as a list of groups (rows, context [S, W]), where `rows` are the prompts or images that attend to it.
"""

import torch
import torch.nn.functional as F
from torch import nn

from model.adapter import AdaptedCLIP
from model.attention import scaled_dot_product
from model.blocks import run_blocks
from model.self_reference import SelfReference

NORM_FLOOR = 1e-6  # added to the norm that is divided by


class CrossAttentionModule(nn.Module):
    """Text -> image: multi-head attention from prompt tokens to a context of the same width.

    Args:
        dim: text width W; also the context's width.
        num_heads: must divide `dim`.
        dropout: on the attention weights, active in training mode only.
        gate: start of a learned residual scale; None for the caller's fixed one.
    """

    def __init__(self, dim, num_heads=8, dropout=0.1, gate=None):
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

    def forward(self, x, context):
        """Attend from x [n, T, query width] to one context [S, dim] that all n share -> [n, T, query width]."""
        query = self._heads(self.q_proj(x.flatten(0, 1)))[None]  # [1, heads, n * T, head width]: one context, one call
        key, value = self._heads(self.k_proj(context))[None], self._heads(self.v_proj(context))[None]
        y = scaled_dot_product(query, key, value, dropout_p=self.dropout if self.training else 0.0)
        return self.out_proj(y[0].transpose(0, 1).flatten(1)).unflatten(0, x.shape[:2])

    def attention_map(self, x, context):
        """Attention weights, averaged over the heads, for pictures: x [n, T, ...], context [S, dim] -> [n, T, S]."""
        query, key = self._heads(self.q_proj(x)), self._heads(self.k_proj(context))
        weights = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
        return weights.softmax(dim=-1).mean(dim=1)


class ImageCrossAttentionModule(CrossAttentionModule):
    """Image -> text: q projects C -> W, k and v W -> W, out W -> C; otherwise as CrossAttentionModule."""

    def __init__(self, image_dim, text_dim, num_heads=8, dropout=0.1, gate=None):
        nn.Module.__init__(self)
        self._build(image_dim, text_dim, num_heads, dropout, gate)


class AdaptedCLIPWithCrossAttention(AdaptedCLIP):
    """AdaptedCLIP whose towers may attend to each other; without contexts it is AdaptedCLIP.

    Args, beside AdaptedCLIP's:
        cross_attn_heads, cross_attn_dropout: of both modules.
        text_cross_attn_weight, image_cross_attn_weight: residual scale w of each direction; 0 switches it off exactly.
        norm_match: rescale y to x's norm per token (off only to reproduce the dilution).
        normalize_context: unit length for the text context's tokens (off only to reproduce the dilution).
        gate: "fixed": w as given; "learned": a parameter that starts at w; "zero": a parameter that starts at 0. A
            weight of 0 switches its direction off whatever the gate.
        image_cross_attn_after: the vision block, from 0, after which images attend to prompts.
        self_reference, self_reference_head, self_reference_neighbours, self_reference_control: arguments of
            model.self_reference.SelfReference; weight 0 for none.

    Raises:
        ValueError: a setting is out of range, or the joint width is not the text width.
    """

    def __init__(
        self, clip_model, *adapter_arguments, cross_attn_heads=8, cross_attn_dropout=0.1, text_cross_attn_weight=0.1,
        image_cross_attn_weight=0.1, norm_match=True, normalize_context=True, gate="fixed", image_cross_attn_after=0,
        self_reference=0.0, self_reference_head=1.0, self_reference_neighbours=0.08, self_reference_control="none",
        **adapter_settings,
    ):  # fmt: skip
        super().__init__(clip_model, *adapter_arguments, **adapter_settings)
        text_width, vision_width = clip_model.ln_final.weight.shape[0], clip_model.visual.proj.shape[0]
        if clip_model.embed_dim != text_width:
            raise ValueError(
                f"text -> image attention reads patches of the joint width {clip_model.embed_dim} as keys of the text "
                f"width {text_width}: choose a backbone where they are equal, as ViT-L-14-336"
            )
        self.text_cross_attn_weight, self.image_cross_attn_weight = text_cross_attn_weight, image_cross_attn_weight
        self.norm_match, self.normalize_context = norm_match, normalize_context
        last = max(self.levels) - 1
        if not 0 <= image_cross_attn_after <= last:
            raise ValueError(f"--image_cross_attn_after {image_cross_attn_after}: expected a vision block in 0..{last}")
        self.image_cross_attn_after = image_cross_attn_after
        starts = {"fixed": (None, None), "learned": (text_cross_attn_weight, image_cross_attn_weight), "zero": (0, 0)}
        text_gate, image_gate = starts[gate]
        self.text_cross_attn = CrossAttentionModule(text_width, cross_attn_heads, cross_attn_dropout, text_gate)
        self.image_cross_attn = ImageCrossAttentionModule(
            vision_width, text_width, cross_attn_heads, cross_attn_dropout, image_gate
        )
        self.self_reference = None
        if self_reference:
            self.self_reference = SelfReference(
                len(self.levels), self_reference, self_reference_head, self_reference_neighbours, self_reference_control
            )

    @property
    def image_modules(self):
        """What stage 2 trains, by checkpoint key."""
        own = {} if self.self_reference is None else {"self_reference": self.self_reference}
        return {"image_adapter": self.image_adapter, "image_cross_attn": self.image_cross_attn} | own

    def encode_text(self, text, adapt_text=True, image_contexts=None):
        """Text features [P, E] of token ids [P, T].

        Args:
            image_contexts: groups (prompt rows, patches [S, E]); prompts in no group attend to nothing.
        """
        if not image_contexts or not adapt_text:
            return super().encode_text(text, adapt_text)

        after_block = self._attend_once(
            self.text_cross_attn, image_contexts, self.text_cross_attn_weight, self.after_text_block
        )
        return self.text_adapter[-1](self.clipmodel.text_tokens_at_end(text, after_block))

    def forward(self, image, text_contexts=None):
        """(seg, det) of images [B, 3, H, W], as AdaptedCLIP.forward.

        With self-reference both have one coordinate more, E + 1, for the anchors of `with_reference`.

        Args:
            text_contexts: groups (image rows, prompt tokens [S, W] from `text_context`); None for none.
        """
        seg, det = self.semantic(image, text_contexts)
        if self.self_reference is None:
            return seg, det
        rare, peak = self.self_reference(self.clipmodel, image, self.levels)
        return [torch.cat(pair, dim=-1) for pair in zip(seg, rare, strict=True)], torch.cat([det, peak], dim=-1)

    def semantic(self, image, text_contexts=None):
        """What `forward` gives without self-reference: (seg, det) of width E."""
        after_block = self._attend_once(
            self.image_cross_attn, text_contexts or (), self.image_cross_attn_weight, self.after_image_block,
            self.image_cross_attn_after,
        )  # fmt: skip
        return self.embed_levels(self.image_levels(image, after_block))

    def attending_tokens(self, image):
        """The tokens [B, N, C] of images that attend to prompts: after block `image_cross_attn_after`."""
        place, visual = self.image_cross_attn_after, self.clipmodel.visual

        def adapt_before(i, x):
            return x if i == place else self.after_image_block(i, x)

        return run_blocks(
            visual.transformer.resblocks, visual.embed(image), (), adapt_before, place + 1, autocast=visual.autocast
        )[0]

    def with_reference(self, anchors):
        """Anchors [..., E, 2] for what `forward` gives: with self-reference [..., E + 1, 2], its row (0, 1) last."""
        if self.self_reference is None:
            return anchors
        row = anchors.new_tensor([0.0, 1.0]).expand(*anchors.shape[:-2], 1, 2)
        return torch.cat([anchors, row], dim=-2)

    def _attend_once(self, attention, contexts, weight, after_block, place=0):
        """The block-loop hook that attends after block `place` and then adapts as `after_block` does."""

        def attend_then_adapt(i, x):
            if i == place and contexts and weight:
                x = self._attend(attention, x, contexts, weight)
            return after_block(i, x)

        return attend_then_adapt

    def _attend(self, attention, x, contexts, weight):
        """x + w * attention(x, context) for every group of rows, norm-matched per token."""
        rows, parts, scale = [], [], weight if attention.gate is None else attention.gate
        for own, context in contexts:
            own = torch.as_tensor(own, device=x.device)
            y = attention(x[own], context)
            if self.norm_match:
                y = y * x[own].norm(dim=-1, keepdim=True) / (y.norm(dim=-1, keepdim=True) + NORM_FLOOR)
            rows.append(own)
            parts.append(scale * y)
        return x.index_add(0, torch.cat(rows), torch.cat(parts).to(x.dtype))

    def text_context(self, text):
        """What images attend to: prompt tokens after text block 0 and text_adapter[0].

        Args:
            text: token ids [P, T] of one class's prompts, padding included.

        Returns:
            [P * T, W], each token of unit length (unless `normalize_context` is off). The rows of padding are there
            too; see forward_utils_cross_attention.text_context_of_class for the mask that hides them.
        """
        clip = self.clipmodel
        x = clip.token_embedding(text) + clip.positional_embedding[: text.shape[1]]
        mask = clip.attn_mask[: text.shape[1], : text.shape[1]]
        x, _ = run_blocks(clip.transformer.resblocks, x, (), self.after_text_block, stop_after=1, attn_mask=mask)
        x = x.flatten(0, 1)
        return F.normalize(x, dim=-1) if self.normalize_context else x
