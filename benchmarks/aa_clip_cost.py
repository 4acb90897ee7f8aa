"""AA-CLIP's training steps at AA-CLIP's cost: the project's numbers by the operations that AA-CLIP spends on them.

Attention is asked for its weights, which rules out fused kernels; surgery blocks project queries and keys that nobody
reads; CLIP is not frozen, so that the backward pass makes gradients for all of it; every class's prompts go through the
text tower by themselves and with all 77 tokens; both image models run all of their blocks.
"""

import copy
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forward_utils import anchor_pair, prompts_of
from model.adapter import AdaptedCLIP, patch_logits
from model.attention import BatchFirstAttention
from model.clip import CLIP
from model.transfer import send
from training.stages import orthogonality_loss, segmentation


class ReturnedWeights(nn.Module):
    """nn.MultiheadAttention whose weights are asked for and thrown away."""

    def __init__(self, attention: BatchFirstAttention):
        super().__init__()
        width, own = attention.in_proj_weight.shape[1], attention
        self.attention = nn.MultiheadAttention(width, own.num_heads, batch_first=True, device="meta")
        self.attention.in_proj_weight, self.attention.in_proj_bias = own.in_proj_weight, own.in_proj_bias
        self.attention.out_proj = own.out_proj

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """query, key, value [B, N, C] -> ([B, N, C], weights [B, N, N])"""
        return self.attention(query, key, value, need_weights=True, attn_mask=attn_mask)


class WholeProjection(nn.Module):
    """Value-value attention across the batch, as model.surgery has it by default, over projections of all three."""

    def __init__(self, attention: BatchFirstAttention):
        super().__init__()
        self.attention = attention

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """query [B, N, C] -> ([B, N, C], weights [N, heads, B, B])"""
        own = self.attention
        v = F.linear(query.transpose(0, 1), own.in_proj_weight, own.in_proj_bias).chunk(3, dim=-1)[2]
        heads = v.unflatten(-1, (own.num_heads, -1)).transpose(1, 2)  # [N, heads, B, head width]
        weights = (heads * heads.shape[-1] ** -0.5 @ heads.transpose(-2, -1)).softmax(dim=-1)
        out = (weights @ heads).transpose(1, 2).flatten(-2).transpose(0, 1)
        return own.out_proj(out), weights


def costly_networks(clip: CLIP, surgery_until_layer: int) -> tuple[CLIP, CLIP]:
    """(CLIP that is not frozen, surgery model), each with weights of its own, the values of `clip`."""
    plain, surgery = copy.deepcopy(clip), copy.deepcopy(clip)
    for network, replaced in ((plain, 0), (surgery, surgery_until_layer - 1)):
        vision, text = network.visual.transformer.resblocks, network.transformer.resblocks
        for block in (*text, *vision[: len(vision) - replaced]):
            block.attn = ReturnedWeights(block.attn)
        for block in vision[len(vision) - replaced :]:
            block.attn = WholeProjection(block.attn)
    return plain.requires_grad_(True), surgery


def costly_text_loss(
    model: AdaptedCLIP, surgery: CLIP, dataset: str, norm_weight: float = 0.1
) -> Callable[[dict], Tensor]:
    """Stage 1's loss, a function of a batch: the numbers of training.stages.text_stage_loss."""
    clip = model.clipmodel

    def loss_of(batch):
        with torch.no_grad():
            cls = F.normalize(clip.encode_image(batch["image"])[0], dim=-1)
            tokens, visual = surgery.encode_image(batch["image"], model.levels)[1], surgery.visual
            patches = [
                F.normalize(visual.ln_post(x[:, 1:]) @ visual.proj, dim=-1) + cls[:, None] for x in tokens
            ]
        pairs = {name: costly_anchors(model, dataset, name) for name in dict.fromkeys(batch["class_name"])}
        anchors = torch.stack([pairs[name] for name in batch["class_name"]])
        losses = [segmentation([patch_logits(level, anchors)], batch["mask"]) for level in patches]
        return losses[-1] + norm_weight * orthogonality_loss(
            anchors
        )  # every level's is made, the last one counts

    return loss_of


def costly_anchors(model: AdaptedCLIP, dataset: str, name: str) -> Tensor:
    """Anchors [E, 2] of one class: its normal and its abnormal prompts one after the other, all 77 tokens of each."""
    clip, (ids, normal, _) = model.clipmodel, prompts_of(dataset, name)
    states = []
    for own in (ids[:normal], ids[normal:]):
        own = send(own, model.device)
        tokens = clip.ln_final(clip.text_tokens(own, model.after_text_block))
        at_end = tokens[torch.arange(len(own), device=own.device), own.argmax(dim=-1)]
        states.append(F.normalize(model.text_adapter[-1](at_end), dim=-1))
    return anchor_pair(tuple(states))


def costly_step(
    loss_of: Callable[[dict], Tensor], parameters: Sequence[nn.Parameter], batch: dict, lr: float
) -> Callable[[], Tensor]:
    """A function that makes one training step of some parameters; CLIP's gradients pile up, and nobody reads them."""
    optimizer = torch.optim.Adam(parameters, lr=lr, betas=(0.5, 0.999))

    def once():
        optimizer.zero_grad()
        loss = loss_of(batch)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return once
