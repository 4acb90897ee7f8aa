"""Stage 1's image side: patch features of the frozen backbone, what the text tower learns to segment."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.blocks import run_blocks
from model.frozen_cache import LookUp

ACROSS, WITHIN = "across the batch", "within an image"  # what surgery attention may attend to


@torch.no_grad()
def frozen_patches(
    clip: nn.Module,
    surgery: nn.Module,
    image: Tensor,
    levels: Sequence[int],
    look_up: LookUp | None = None,
    share: Any = None,
) -> tuple[dict[int, Tensor], Tensor]:
    """Stage 1's image side: frozen patch features per level, with the image's CLS added to every patch.

    Args:
        clip: plain CLIP, whose pooled CLS is used.
        surgery: the surgery model, whose patches are used. Leading blocks that are the very same modules in both
            (`model.clip.surgery_copy`) run once.
        image: [B, 3, H, W].
        levels: ascending levels to return.
        look_up: of model.frozen_cache, for what an image has by itself; None to compute everything.
        share: of a batch that several processes share: the images are this one's. Attention across the batch then takes
            all images at some positions instead (`to_positions`, `to_images` of training.acceleration.Share).

    Returns:
        (patches, cls): {level: [B, L, E] = normalize(ln_post(patch) @ proj) + cls}, and cls [B, E] of unit length.
    """
    kind = None if look_up is None else _surgery_attends(clip, surgery)
    if kind == ACROSS and max(levels) > _shared_blocks(clip, surgery):
        return _looked_up_to_the_surgery(clip, surgery, levels, look_up)
    if kind is not None:
        return _looked_up(clip, surgery, levels, look_up, kind)
    last, tokens = _tokens_of_both(clip, surgery, image, levels, share)
    cls = F.normalize(clip.pool(last), dim=-1)
    return _patches(surgery.visual, levels, tokens, cls), cls


@torch.no_grad()
def frozen_cls(clip: nn.Module, image: Tensor, look_up: LookUp | None = None) -> Tensor:
    """Plain CLIP's pooled CLS of images [B, 3, H, W]: [B, E], of unit length; `look_up` as in `frozen_patches`."""

    def compute(images):
        return {"cls": F.normalize(clip.embed_image(images), dim=-1)}

    return (compute(image) if look_up is None else look_up(["cls"], compute))["cls"]


def plain_patches(visual: nn.Module, tokens: Tensor) -> Tensor:
    """Patches [B, L, E] of unit length, projected as CLS is, of a level's tokens [B, N, C]."""
    return F.normalize(visual.ln_post(tokens[:, 1:]) @ visual.proj, dim=-1)


def _patches(visual, levels, tokens, cls):
    """{level: [B, L, E]} of tokens [B, N, C]: plain CLIP's CLS lends every local patch what the whole image says."""
    return {level: plain_patches(visual, x) + cls[:, None] for level, x in zip(levels, tokens, strict=True)}


def _surgery_attends(clip, surgery):
    """ACROSS or WITHIN: what the surgery's blocks attend to; None for a surgery model of another make."""
    replaced = surgery.visual.transformer.resblocks[_shared_blocks(clip, surgery) :]
    kinds = {getattr(block.attn, "across_batch", None) for block in replaced}
    if clip.visual.conv1 is not surgery.visual.conv1 or kinds not in (set(), {True}, {False}):
        return None
    return ACROSS if True in kinds else WITHIN


def _looked_up(clip, surgery, levels, look_up, kind):
    """`frozen_patches` where other images have no say."""
    shared = _shared_blocks(clip, surgery)
    names = {k: _name(k, f", value-value {kind} after block {shared}" * (k > shared)) for k in levels}

    def compute(images):
        last, tokens = _tokens_of_both(clip, surgery, images, levels)
        cls = F.normalize(clip.pool(last), dim=-1)
        patches = _patches(surgery.visual, levels, tokens, cls)
        return {"cls": cls} | {names[k]: patches[k] for k in levels}

    found = look_up(["cls", *names.values()], compute)
    return {k: found[names[k]] for k in levels}, found["cls"]


def _looked_up_to_the_surgery(clip, surgery, levels, look_up):
    """`frozen_patches` with a surgery across the batch: looked up are plain CLIP's CLS and what lies before it."""
    shared, plain = _shared_blocks(clip, surgery), clip.visual.transformer.resblocks
    early, late = [k for k in levels if k <= shared], [k for k in levels if k > shared]
    names, trunk = {k: _name(k) for k in early}, f"tokens after block {shared}"
    run = partial(run_blocks, autocast=clip.visual.autocast)

    def compute(images):
        tokens, at_levels = run(plain, clip.visual.embed(images), early, stop_after=shared)
        cls = F.normalize(clip.pool(clip.visual.run_to_cls(tokens, shared)), dim=-1)
        patches = _patches(surgery.visual, early, at_levels, cls)
        return {"cls": cls, trunk: tokens} | {names[k]: patches[k] for k in early}

    found = look_up(["cls", trunk, *names.values()], compute)
    behind = [k - shared for k in late]
    local = surgery.visual.transformer.resblocks[shared:]
    at_levels = run(local, found[trunk], behind, stop_after=max(behind))[1]
    patches = {k: found[names[k]] for k in early} | _patches(surgery.visual, late, at_levels, found["cls"])
    return patches, found["cls"]


def _name(level, surgery=""):
    return f"patches of level {level} with CLS{surgery}"


def _shared_blocks(clip, surgery):
    """How many leading blocks are the very same modules in both."""
    plain, local = clip.visual.transformer.resblocks, surgery.visual.transformer.resblocks
    return next((i for i, (a, b) in enumerate(zip(plain, local, strict=True)) if a is not b), len(plain))


def _tokens_of_both(clip, surgery, image, levels, share=None):
    """(plain CLIP's last CLS [B, 1, C], surgery tokens per level); blocks that are the same in both run once."""
    plain, local = list(clip.visual.transformer.resblocks), list(surgery.visual.transformer.resblocks)
    same_input = clip.visual.conv1 is surgery.visual.conv1
    shared = _shared_blocks(clip, surgery) if same_input else 0
    run = partial(run_blocks, autocast=clip.visual.autocast)
    trunk, early = run(plain, clip.visual.embed(image), [k for k in levels if k <= shared], stop_after=shared)
    last = clip.visual.run_to_cls(trunk, shared)
    late = [k - shared for k in levels if k > shared]
    if not late:
        return last, early
    start = trunk if same_input else surgery.visual.embed(image)
    across = share is not None and any(getattr(block.attn, "across_batch", False) for block in local)
    positions = start.shape[1]
    start = share.to_positions(start) if across else start
    found = run(local[shared:], start, late, stop_after=max(late))[1]
    return last, early + ([share.to_images(x, positions) for x in found] if across else found)
