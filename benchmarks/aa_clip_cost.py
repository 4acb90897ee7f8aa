"""AA-CLIP's steps at AA-CLIP's cost: the project's numbers by the operations that AA-CLIP spends on them.

Attention is asked for its weights, which rules out fused kernels; surgery blocks project queries and keys that nobody
reads and lead the plain attention's path beside the other one; CLIP is not frozen, so that the backward pass makes
gradients for all of it; every class's prompts go through the text tower by themselves and with all 77 tokens; in stage
1 both image models run all of their blocks; the focal loss makes its targets on the CPU. A test image goes through one
model, the adapted one.

How near it is, for ViT-L-14-336 at 518 px and batch 2: AA-CLIP itself spends 5.19 and 6.24 TFLOP on a step of stages 1
and 2, and 1.04 on a test image; `python -m benchmarks.training_step` counts what is spent here. AA-CLIP's block of
returned weights takes 1.45 times as long as a fused one, its surgery block 1.32 times as long as one of values alone;
here 1.35 and 1.32. Kinder than AA-CLIP beside that: prompts are tokenised once, their ids go to a GPU without a wait,
the loss is not read after every step, the returned weights are dropped at once. Harsher: tokens are copied to [N, B, C]
before every attention, some 11 MB of memory traffic a block.
"""

import copy
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forward_utils import anchor_pair, dice_loss, prompts_of
from model.adapter import AdaptedCLIP, patch_logits
from model.clip import CLIP
from model.transfer import send
from training.stages import orthogonality_loss


class ReturnedWeights(nn.Module):
    """torch's multi-head attention whose weights are asked for and thrown away.

    AA-CLIP's tokens are [N, B, C], for which torch has no fast path without gradients either.
    """

    def __init__(self, attention: nn.Module):
        """attention: with one fused input projection; its weights are shared."""
        super().__init__()
        self.num_heads, self.out_proj = attention.num_heads, attention.out_proj
        self.in_proj_weight, self.in_proj_bias = attention.in_proj_weight, attention.in_proj_bias

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """query [B, N, C] -> ([B, N, C], weights [B, N, N]); key and value are the same."""
        x = query.transpose(0, 1).contiguous()
        out, weights = F.multi_head_attention_forward(
            *(x, x, x, x.shape[-1], self.num_heads),
            *(self.in_proj_weight, self.in_proj_bias),
            bias_k=None,
            bias_v=None,
            add_zero_attn=False,
            dropout_p=0.0,
            out_proj_weight=self.out_proj.weight,
            out_proj_bias=self.out_proj.bias,
            training=False,
            need_weights=True,
            attn_mask=attn_mask,
        )
        return out.transpose(0, 1), weights


class BothPaths(nn.Module):
    """Value-value attention across the batch, as model.surgery has it by default, beside the plain attention's path.

    CLIP Surgery (arXiv 2304.05653) keeps both paths; only the first one's result is used. AA-CLIP's FLOPs and time of a
    surgery block are those of 13 products of C x C for every token: queries, keys, values, two outputs, the MLP.
    """

    def __init__(self, attention: nn.Module):
        """attention: with one fused input projection; its weights are shared."""
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
        projected = F.linear(query.transpose(0, 1).contiguous(), own.in_proj_weight, own.in_proj_bias)
        q, k, v = (
            part.unflatten(-1, (own.num_heads, -1)).transpose(1, 2) for part in projected.chunk(3, dim=-1)
        )  # [N, heads, B, head width]
        scale = v.shape[-1] ** -0.5
        plain = (q * scale @ k.transpose(-2, -1)).softmax(dim=-1)
        weights = (v * scale @ v.transpose(-2, -1)).softmax(dim=-1)
        out, _ = (own.out_proj((one @ v).transpose(1, 2).flatten(-2)) for one in (weights, plain))
        return out.transpose(0, 1), weights


def costly_clip(clip: CLIP) -> CLIP:
    """CLIP that is not frozen, with weights of its own, the values of `clip`."""
    plain = copy.deepcopy(clip)
    for block in (*plain.transformer.resblocks, *plain.visual.transformer.resblocks):
        block.attn = ReturnedWeights(block.attn)
    return plain.requires_grad_(True)


def costly_surgery(clip: CLIP, surgery_until_layer: int) -> CLIP:
    """The surgery model of AA-CLIP, with weights of its own, the values of `clip`."""
    surgery = copy.deepcopy(clip)
    blocks = surgery.visual.transformer.resblocks
    kept = len(blocks) - (surgery_until_layer - 1)
    for i, block in enumerate(blocks):
        block.attn = (ReturnedWeights if i < kept else BothPaths)(block.attn)
    return surgery


def costly_segmentation(logits: Tensor, mask: Tensor) -> Tensor:
    """Focal and Dice loss of one level's patch logits [B, L, 2] against the mask [B, 1, S, S]: a scalar.

    The targets of the focal loss are made on the CPU, which waits for the device once.
    """
    side = int(logits.shape[1] ** 0.5)
    grid = logits.transpose(1, 2).unflatten(2, (side, side))
    probability = F.interpolate(grid, size=mask.shape[-2:], mode="bilinear", align_corners=True).softmax(
        dim=1
    )
    classes = (mask if mask.is_meta else mask.cpu()).long()
    target = classes.new_zeros(classes.shape[0], 2, *classes.shape[-2:], dtype=mask.dtype).scatter_(
        1, classes, 1
    )
    target = send(target.clamp(1e-5, 1 - 1e-5), logits.device)
    right = (target * probability).sum(dim=1) + 1e-5
    focal = (-((1 - right) ** 2) * right.log()).mean()
    return focal + dice_loss(probability[:, 0], 1 - mask) + dice_loss(probability[:, 1], mask)


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
        # Every level's loss is made, the last one counts.
        losses = [costly_segmentation(patch_logits(level, anchors), batch["mask"]) for level in patches]
        return losses[-1] + norm_weight * orthogonality_loss(anchors)

    return loss_of


def costly_image_loss(model: AdaptedCLIP, anchors_of: Callable[[dict], Tensor]) -> Callable[[dict], Tensor]:
    """Stage 2's loss, a function of a batch: the numbers of training.stages.image_stage_loss.

    Args:
        model: of `costly_clip`.
        anchors_of: batch -> anchors [B, E, 2].
    """

    def loss_of(batch):
        logits, head = model.compare(batch["image"], anchors_of(batch))
        segmented = [costly_segmentation(level, batch["mask"]) for level in logits]
        return F.cross_entropy(head, batch["label"]) + sum(segmented)

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
