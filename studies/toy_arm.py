"""One arm of the toy study of semantic fill: its pictures, its training, and what is measured of it."""

import argparse
import logging
import time
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from synthesis.data import to_pixels
from synthesis.flow import interpolate, predict_velocity
from synthesis.latents import encode_triptych, fill_mask_of
from synthesis.sampling import Filler
from synthesis.system import FillSystem, assemble
from synthesis.training import Schedule, make_optimizer, train

PROMPT = "right: with a dark spot"
DEFECT_COLOUR = (-0.9, -0.8, -0.7)
CHANGE = 0.3  # mean change of a pixel's channels, in [-1, 1], from which it counts as defect
TIME = 0.7
LEARNING_RATE = 1e-3


def draw(count: int, side: int, seed: int) -> tuple[dict, Tensor]:
    """A batch of `count` triptychs, [count, 3, side, side] each, and their masks [count, 1, side, side]."""
    generator = torch.Generator().manual_seed(seed)
    ramp = torch.linspace(-0.2, 0.2, side)
    slope = torch.randn(2, count, 1, 1, 1, generator=generator)
    visible = torch.rand(count, 3, 1, 1, generator=generator) * 0.8 - 0.2
    visible = visible + slope[0] * ramp[:, None] + slope[1] * ramp  # [count, 3, side, side]
    radius = side * (0.11 + 0.08 * torch.rand(2, count, 1, 1, 1, generator=generator))
    centre = radius + torch.rand(2, count, 1, 1, 1, generator=generator) * (side - 2 * radius)
    place = torch.arange(side)
    mask = (
        ((place[:, None] - centre[0]) / radius[0]) ** 2 + ((place - centre[1]) / radius[1]) ** 2 < 1
    ).float()
    target = visible * (1 - mask) + torch.tensor(DEFECT_COLOUR).view(1, 3, 1, 1) * mask
    semantic = (2 * mask - 1).expand(-1, 3, -1, -1).contiguous()
    names = [f"{index:04d}" for index in range(count)]
    return {"visible": visible, "target": target, "semantic": semantic, "name": names}, mask


@torch.no_grad()
def velocity_error(system: FillSystem, batch: dict[str, Tensor], fill_mask: str, seed: int) -> float:
    """Mean squared error of the velocity at t = 0.7 over both panels, with the same noise for every arm."""
    encoded = encode_triptych(
        system.backbone.vae, batch["visible"], batch["target"], batch["semantic"], fill_mask
    )
    noise = torch.randn(encoded.clean.shape, generator=torch.Generator().manual_seed(seed))
    count = len(noise)
    times = torch.full((count,), TIME)
    noisy, target = interpolate(encoded.clean, noise, times)
    prompt = system.prompts.batch([PROMPT] * count)
    predicted = predict_velocity(system.backbone, system.attention, noisy, encoded, prompt, times)
    return (predicted - target).square().mean().item()


def overlap(images: Tensor, visible: Tensor, mask: Tensor) -> float:
    """Mean intersection over union of changed pixels and mask.

    Args:
        images, visible: [B, 3, S, S] in [-1, 1].
        mask: [B, 1, S, S] of 0 and 1.
    """
    changed = (images - visible).abs().mean(1, keepdim=True) > CHANGE
    both, either = (changed & (mask > 0)).flatten(1).sum(1), (changed | (mask > 0)).flatten(1).sum(1)
    return (both / either).mean().item()


def run_arm(arm: tuple, args: argparse.Namespace, logger: logging.Logger, picture: Path) -> dict:
    """Train one arm, measure it, draw its first samples.

    Args:
        arm: (semantic layers, layout, positions, fill mask, what is expected of it).
        args: the command's flags.  picture: file of the samples.

    Returns:
        {"velocity_mse", "overlap", "codec_overlap", "seconds", ...}
    """
    layers, layout, positions, fill, _ = arm
    torch.manual_seed(args.seed)
    config = {
        "dtype": "float32",
        "lora_rank": 32,
        "lora_alpha": 32,
        "train_backbone": True,
        "prompt": PROMPT,
        "semantic_layers": layers,
        "semantic_heads": 8,
        "semantic_layout": layout,
        "semantic_pos": positions,
    }
    system = assemble("small", config)
    schedule = Schedule(
        args.steps, args.batch_size, args.seed, PROMPT, fill, semantic_drop=0.0, log_every=100
    )
    seen, _ = draw(args.train_pictures, args.size, args.seed)
    items = [{name: values[index] for name, values in seen.items()} for index in range(args.train_pictures)]
    begin, processor = time.perf_counter(), time.process_time()
    train(system, items, make_optimizer("adamw", system.trainable(), LEARNING_RATE), schedule, logger)
    unseen, mask = draw(args.test_pictures, args.size, args.seed + 1_000_000)
    visible, fill_mask = unseen["visible"], fill_mask_of(unseen["semantic"], fill)
    error = velocity_error(system, unseen, fill_mask, args.seed)
    samples = Filler(system, PROMPT).fill(
        visible, unseen["semantic"], fill_mask, seeds=list(range(args.test_pictures)), steps=28
    )
    codec = system.backbone.vae
    kept = codec.decode(codec.encode(unseen["target"]).latent_dist.mode()).sample
    columns = [
        torch.cat((visible[i], unseen["target"][i], samples[i]), dim=1) for i in range(min(8, len(samples)))
    ]
    Image.fromarray(to_pixels(torch.cat(columns, dim=2))).save(picture)
    return {
        "velocity_mse": error,
        "overlap": overlap(samples, visible, mask),
        "codec_overlap": overlap(kept, visible, mask),
        "semantic_scale": system.attention.mean_scale(),
        "semantic_parameters": sum(value.numel() for value in system.attention.parameters()),
        "seconds": round(time.perf_counter() - begin, 1),
        "cpu_seconds": round(time.process_time() - processor, 1),
    }
