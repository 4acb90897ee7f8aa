"""A tiny CLIP whose joint and text widths are equal, as text -> image attention needs."""

import json

import open_clip
import torch
from safetensors.torch import save_file

MODEL = "ViT-TestCross-8"
WIDTH = 16
CONFIG = {
    "embed_dim": WIDTH,
    "vision_cfg": {"image_size": 32, "layers": 4, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": WIDTH, "heads": 2, "layers": 4},
}


def write_world(folder):
    """Register the architecture, write random weights so large that attention matters; their file."""
    (folder / f"{MODEL}.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    open_clip.add_model_config(folder)
    torch.manual_seed(7)
    model = open_clip.CLIP(**CONFIG)
    generator = torch.Generator().manual_seed(7)
    state = {
        name: value + (0.2 * torch.randn(value.shape, generator=generator) if value.dim() > 1 else 0)
        for name, value in model.state_dict().items()
    }
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "tiny.safetensors")
    return folder / "tiny.safetensors"


def textbook_attention(module, x, context):
    """[T, width]: softmax(Q K^T / sqrt(d)) V of every head, joined and projected, for one sequence and its context."""
    query, key, value = module.q_proj(x), module.k_proj(context), module.v_proj(context)
    width = query.shape[-1] // module.num_heads
    heads = []
    for start in range(0, query.shape[-1], width):
        q, k, v = (one[:, start : start + width] for one in (query, key, value))
        heads.append((q @ k.T / width**0.5).softmax(dim=-1) @ v)
    return module.out_proj(torch.cat(heads, dim=-1))
