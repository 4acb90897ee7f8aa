"""What the tests of semantic fill share: tiny systems and triptychs whose defect is where only the map says."""

import argparse

import torch
from diffusers import AutoencoderKL
from PIL import Image

from synthesis.backbone import load_backbone
from synthesis.data import to_pixels
from synthesis.system import assemble
from synthesis.text import tiny_text_pipeline

SIZE = 32  # pixels; 2 x 2 tokens a panel
CONFIG = {
    "dtype": "float32",
    "lora_rank": 4,
    "lora_alpha": 4,
    "train_backbone": False,
    "prompt": "a defect",
    "semantic_layers": 1,
    "semantic_heads": 8,
    "semantic_layout": "33k",
    "semantic_pos": "local",
}


def tiny_system(seed=0, scale=None, model="tiny", **changes):
    """A system on the tiny backbone; `scale` replaces the attention's zeros."""
    torch.manual_seed(seed)
    system = assemble(model, {**CONFIG, **changes})
    if scale is not None:
        for layer in system.attention:
            layer.scale.data.fill_(scale)
    return system


def triptychs(count, size=SIZE, seed=0):
    """A batch [count, 3, size, size]: plain ground, the same with a dark square, and the square's mask."""
    generator = torch.Generator().manual_seed(seed)
    visible = (torch.rand(count, 3, 1, 1, generator=generator) - 0.3).expand(-1, -1, size, size).contiguous()
    mask = torch.zeros(count, 1, size, size)
    for index in range(count):
        row, column = torch.randint(0, size - size // 3, (2,), generator=generator).tolist()
        mask[index, :, row : row + size // 3, column : column + size // 3] = 1
    target = visible * (1 - mask) - 0.9 * mask
    semantic = (2 * mask - 1).expand(-1, 3, -1, -1).contiguous()
    return {
        "visible": visible,
        "target": target,
        "semantic": semantic,
        "name": [f"{i:03d}" for i in range(count)],
    }


def items(batch):
    """A batch as a list of items, which torch's loader takes for a dataset."""
    return [{name: values[index] for name, values in batch.items()} for index in range(len(batch["name"]))]


def write_folders(folder, batch):
    """The three-folder layout of a batch on disk."""
    for panel in ("visible", "target", "semantic"):
        (folder / panel).mkdir(parents=True)
        for name, image in zip(batch["name"], batch[panel], strict=True):
            Image.fromarray(to_pixels(image)).save(folder / panel / f"{name}.png")
    return folder


def flags(data, run, steps, *more):
    """Command line of train_semantic_fill.py at test size."""
    return [
        "--model",
        "tiny",
        "--data",
        str(data),
        "--out",
        str(run),
        "--steps",
        str(steps),
        "--batch_size",
        "2",
        "--size",
        str(SIZE),
        "--lora_rank",
        "4",
        "--lora_alpha",
        "4",
        "--device",
        "cpu",
        "--log_every",
        "1",
        "--lr",
        "1e-3",
        *more,
    ]


def write_model_folder(folder):
    """A FLUX.1-Fill model in diffusers' layout with tiny parts: the way real weights come."""
    pipeline = tiny_text_pipeline()
    torch.manual_seed(10)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=16,
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=0.3611,
        shift_factor=0.1159,
    )
    parts = load_backbone("tiny")
    pipeline.register_modules(vae=vae, transformer=parts.transformer, scheduler=parts.scheduler)
    pipeline.save_pretrained(folder)
    return folder


def parameters_of(system):
    """{name: copy} of everything in transformer and attention."""
    parts = argparse.Namespace(transformer=system.backbone.transformer, attention=system.attention)
    return {
        f"{part}.{name}": value.detach().clone()
        for part, module in vars(parts).items()
        for name, value in module.state_dict().items()
    }
