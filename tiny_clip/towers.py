"""CLIP's two towers as functions over an open_clip model's own parameters, written for training speed on a CPU.

Three things differ from open_clip's forward, none of them in the result: attention is two batched products (the CPU's
fused attention has a backward several times slower at these sizes), positions are resized to the images at every call,
and text is cut behind the longest caption. A test holds them equal to open_clip's.
"""

import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor


def encode_image(
    visual: VisionTransformer,
    images: Tensor,
    kept_patches: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Image embeddings: [B, 3, S, S] normalised -> [B, E], not normalised.

    Args:
        visual: open_clip VisionTransformer with CLS pooling.
        kept_patches: patch dropout (FLIP, arXiv 2212.00794): how many random patches of each image the tower sees;
            None keeps all.
        generator: torch.Generator that draws them.
    """
    x = visual.conv1(images).flatten(2).transpose(1, 2)  # [B, L, C]
    grid = images.shape[-1] // visual.patch_size[0]
    positions = resized_positions(visual.positional_embedding, grid)
    x = x + positions[1:]
    if kept_patches is not None and kept_patches < x.shape[1]:
        order = torch.rand(x.shape[:2], generator=generator).argsort(dim=1)[:, :kept_patches]
        x = x.gather(1, order[..., None].expand(-1, -1, x.shape[2]))
    cls = (visual.class_embedding + positions[0]).expand(x.shape[0], 1, -1)
    x = visual.ln_pre(torch.cat([cls.to(x.dtype), x], dim=1))
    for block in visual.transformer.resblocks:
        x = run_block(block, x)
    return visual.ln_post(x[:, 0]) @ visual.proj


def encode_text(model: CLIP, tokens: Tensor) -> Tensor:
    """Text embeddings: ids [B, T] -> [B, E], not normalised. Columns behind the longest caption change nothing."""
    end = tokens.argmax(dim=-1)
    length = int(end.max()) + 1
    x = model.token_embedding(tokens[:, :length]) + model.positional_embedding[:length]
    for block in model.transformer.resblocks:
        x = run_block(block, x, model.attn_mask[:length, :length])
    return model.ln_final(x[torch.arange(len(x)), end]) @ model.text_projection


def run_block(block: ResidualAttentionBlock, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """One pre-norm residual attention block of open_clip: [B, N, C] -> same; `mask` [N, N] is added to the scores."""
    attention = block.attn
    batch, length, width = x.shape
    heads, head_width = attention.num_heads, width // attention.num_heads
    packed = F.linear(block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias)
    packed = packed.reshape(batch, length, 3, heads, head_width).permute(2, 0, 3, 1, 4)
    queries, keys, values = packed.reshape(3, batch * heads, length, head_width)
    scores = torch.bmm(queries * head_width**-0.5, keys.transpose(1, 2))
    if mask is not None:
        scores = scores + mask.to(scores.dtype)
    mixed = torch.bmm(scores.softmax(dim=-1).to(values.dtype), values)
    mixed = mixed.reshape(batch, heads, length, head_width).transpose(1, 2).reshape(batch, length, width)
    x = x + attention.out_proj(mixed)
    return x + block.mlp(block.ln_2(x))


def resized_positions(positions: Tensor, grid: int) -> Tensor:
    """Position embeddings [1 + G², C] for a grid of `grid`² patches, as open_clip's resize_pos_embed makes them."""
    side = int((len(positions) - 1) ** 0.5)
    if grid == side:
        return positions
    patches = positions[1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    patches = F.interpolate(patches, size=(grid, grid), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([positions[:1], patches.permute(0, 2, 3, 1).reshape(grid * grid, -1)])
