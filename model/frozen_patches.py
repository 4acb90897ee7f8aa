"""Stage 1's image side: patch features of the frozen backbone, what the text tower learns to segment."""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.blocks import run_blocks


@torch.no_grad()
def frozen_patches(
    clip: nn.Module, surgery: nn.Module, image: Tensor, levels: Sequence[int]
) -> tuple[dict[int, Tensor], Tensor]:
    """Stage 1's image side: frozen patch features per level, with the image's CLS added to every patch.

    Args:
        clip: plain CLIP, whose pooled CLS is used.
        surgery: the surgery model, whose patches are used. Leading blocks that are the very same modules in both
            (`model.clip.surgery_copy`) run once.
        image: [B, 3, H, W].
        levels: ascending levels to return.

    Returns:
        (patches, cls): {level: [B, L, E] = normalize(ln_post(patch) @ proj) + cls}, and cls [B, E] of unit length.
    """
    last, tokens = _tokens_of_both(clip, surgery, image, levels)
    visual, cls = surgery.visual, F.normalize(clip.pool(last), dim=-1)
    # [B, N, C] -> [B, L, E]: plain CLIP's CLS lends every local patch what the whole image says.
    patches = [F.normalize(visual.ln_post(x[:, 1:]) @ visual.proj, dim=-1) + cls[:, None] for x in tokens]
    return dict(zip(levels, patches, strict=True)), cls


def _tokens_of_both(clip, surgery, image, levels):
    """(plain CLIP's last CLS [B, 1, C], surgery tokens per level); blocks that are the same in both run once."""
    plain, local = list(clip.visual.transformer.resblocks), list(surgery.visual.transformer.resblocks)
    same_input = clip.visual.conv1 is surgery.visual.conv1
    shared = next((i for i, (a, b) in enumerate(zip(plain, local, strict=True)) if a is not b), len(plain))
    shared = shared if same_input else 0
    run = partial(run_blocks, autocast=clip.visual.autocast)
    trunk, early = run(plain, clip.visual.embed(image), [k for k in levels if k <= shared], stop_after=shared)
    last = clip.visual.run_to_cls(trunk, shared)
    late = [k - shared for k in levels if k > shared]
    start = trunk if same_input else surgery.visual.embed(image)
    return last, early + (run(local[shared:], start, late, stop_after=max(late))[1] if late else [])
