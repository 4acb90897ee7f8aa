"""Toy study of semantic fill: can the transformer put a defect where only the map says?

    python -m studies.semantic_fill_toy

Pictures of 64 x 64 pixels, a slope of one colour; the target has a dark ellipse at a random place, and only the
semantic map knows where. The small backbone is random, so all of it is trained. An arm whose JSON lies in
results/synthesis/toy/ is not repeated. Reported: the velocity's mean squared error on unseen pictures at t = 0.7,
relative to the arm without semantics, and how well the ellipses of sampled pictures overlap those of the map, beside
what the codec itself keeps of them.
"""

import argparse
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from files.atomic import write_text
from files.command import run_main
from files.logs import open_logger
from run_folder.flags import HelpFormatter
from synthesis.data import to_pixels
from synthesis.flow import interpolate, predict_velocity
from synthesis.latents import encode_triptych, fill_mask_of
from synthesis.sampling import Filler
from synthesis.system import FillSystem, assemble
from synthesis.training import Schedule, make_optimizer, train
from synthesis.weights import library_versions

ARMS = {  # arm: (semantic layers, layout, positions, fill mask, what its relative error is expected to be)
    "none": (0, "33k", "none", "panel", "1 by definition"),
    "source": (1, "source", "none", "panel", "about 1"),
    "33k_local": (1, "33k", "local", "panel", "at most 0.92"),
    "33k_local_semantic_fill": (1, "33k", "local", "semantic", "at most 0.5"),
    "none_semantic_fill": (0, "33k", "none", "semantic", "the fill mask without attention"),
}
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


def run_arm(arm: str, args: argparse.Namespace, logger: logging.Logger, picture: Path) -> dict:
    """Train one arm, measure it, draw its first samples.

    Returns:
        {"velocity_mse", "overlap", "codec_overlap", "seconds", ...}
    """
    layers, layout, positions, fill, _ = ARMS[arm]
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


def table(results: dict[str, dict]) -> str:
    """Markdown of {arm: result}; relative errors need the arm without semantics."""
    titles = (
        "arm",
        "velocity MSE",
        "relative to none",
        "expected",
        "overlap of samples",
        "codec alone",
        "CPU s",
    )
    lines = ["| " + " | ".join(titles) + " |", "|" + "--|" * len(titles)]
    base = results.get("none", {}).get("velocity_mse")
    for arm, result in results.items():
        relative = f"{result['velocity_mse'] / base:.3f}" if base else "–"
        lines.append(
            f"| {arm} | {result['velocity_mse']:.4f} | {relative} | {ARMS[arm][-1]} | {result['overlap']:.3f} | "
            f"{result['codec_overlap']:.3f} | {result['cpu_seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=list(ARMS), help="default all")
    parser.add_argument("--steps", type=int, default=500, help="updates of every arm")
    parser.add_argument("--batch_size", type=int, default=8, help="pictures per update")
    parser.add_argument("--size", type=int, default=64, help="panel side in pixels")
    parser.add_argument("--train_pictures", type=int, default=256, help="pictures an arm learns from")
    parser.add_argument("--test_pictures", type=int, default=64, help="unseen pictures an arm is measured on")
    parser.add_argument("--seed", type=int, default=0, help="of pictures, weights, noise and order")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("results/synthesis/toy"),
        help="folder of JSON files, pictures and table",
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # the figures are those of one thread
    logger = open_logger("semantic_fill_toy")
    args.out.mkdir(parents=True, exist_ok=True)
    settings = {key: value for key, value in vars(args).items() if key not in ("arms", "out")}
    results = {}
    for arm in ARMS:
        file = args.out / f"{arm}_seed{args.seed}.json"
        if file.is_file():
            results[arm] = json.loads(file.read_text(encoding="utf-8"))
            if results[arm]["settings"] != settings:
                raise ValueError(
                    f"{file} was made with {results[arm]['settings']}, not {settings}: give another --out"
                )
        elif arm in args.arms:
            logger.info(f"arm {arm}")
            result = run_arm(arm, args, logger, args.out / f"{arm}_seed{args.seed}.png")
            results[arm] = {"arm": arm, "settings": settings, **result, "versions": library_versions()}
            write_text(file, json.dumps(results[arm], indent=1) + "\n")
        write_text(args.out / f"table_seed{args.seed}.md", table(results))
    logger.info(table(results))


if __name__ == "__main__":
    run_main(main)
