"""What cross-attention and self-reference cost: parameters added, and time per training step against the baseline's.

    python benchmarks/cross_attention_cost.py --model_name ViT-Tiny-8-demo
    python benchmarks/cross_attention_cost.py --model_name ViT-L-14-336 --random_weights

The baseline's and the others' steps alternate in one process, so that a busy machine slows both; medians are compared.
Prints one JSON object, and writes it and a table into --out, if given. With --sync_debug each step is made once more,
and one that waits for the GPU is an error.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measure import in_turn  # noqa: E402
from benchmarks.report import command_line, finish_flat, machine  # noqa: E402
from benchmarks.workload import (  # noqa: E402
    DATASET,
    IMAGE_LR,
    TEXT_LR,
    TINY,
    Step,
    default_size,
    random_batch,
    step,
    surgery_start,
)
from files.command import run_main  # noqa: E402
from forward_utils import anchors_of_batch, fixed_anchors, frozen_image_features  # noqa: E402
from forward_utils_cross_attention import (  # noqa: E402
    anchors_seeing_images,
    comparison_seeing_prompts,
    scope_named,
    text_context_dictionary,
)
from model.adapter import AdaptedCLIP  # noqa: E402
from model.adapter_cross_attention import AdaptedCLIPWithCrossAttention  # noqa: E402
from model.clip import CLIP, create_model, surgery_copy  # noqa: E402
from run_folder.flags import HelpFormatter  # noqa: E402
from training.stages import image_stage_loss, text_stage_loss  # noqa: E402
from utils import choose_device, setup_seed  # noqa: E402


def steps_without_a_wait(steps: Sequence[Step], device: torch.device) -> int:
    """Make each step under CUDA's synchronisation debugging; the number of steps that were looked at.

    Raises:
        ValueError: the device is no CUDA device.
        RuntimeError: a step waits for the GPU; the traceback shows where.
    """
    check_sync_debug(device)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for once in steps:
            once()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return len(steps)


def check_sync_debug(device: torch.device) -> None:
    """Raises ValueError where there is no GPU to wait for."""
    if device.type != "cuda":
        raise ValueError(f"--sync_debug on {device}: only CUDA can tell who waits for it; give --device cuda")


def alternate(steps: Sequence[Step], repeats: int, device: torch.device) -> list[float]:
    """Median seconds of every function, run in turn."""
    return list(in_turn(dict(enumerate(steps)), repeats, device).values())


def text_steps(
    plain: AdaptedCLIP, crossed: AdaptedCLIPWithCrossAttention, surgery: CLIP, batch: dict
) -> tuple[Step, Step]:
    """Steps of stage 1: the baseline's, cross-attention's."""
    last = plain.levels[-1:]
    losses = {"loss_levels": last, "norm_weight": 0.1}
    alone = partial(
        text_stage_loss,
        patches_of=frozen_image_features(plain, surgery, last),
        anchors_of=lambda batch, patches: anchors_of_batch(plain, DATASET, batch["class_name"]),
        **losses,
    )
    seeing = partial(
        text_stage_loss,
        patches_of=frozen_image_features(crossed, surgery, [crossed.levels[0], *last]),
        anchors_of=anchors_seeing_images(crossed, DATASET, scope_named("class")),
        **losses,
    )
    return (
        step(plain, plain.text_modules, alone, batch, TEXT_LR),
        step(crossed, crossed.text_modules, seeing, batch, TEXT_LR),
    )


def image_steps(
    plain: AdaptedCLIP,
    crossed: AdaptedCLIPWithCrossAttention,
    referring: AdaptedCLIPWithCrossAttention,
    batch: dict,
) -> tuple[Step, Step, Step]:
    """Steps of stage 2: the baseline's, cross-attention's, and with self-reference too."""
    anchors_of = fixed_anchors(crossed, DATASET)
    with torch.no_grad():
        contexts = text_context_dictionary(crossed, DATASET)
    alone = partial(
        image_stage_loss,
        compare=lambda batch, anchors: plain.compare(batch["image"], anchors),
        anchors_of=anchors_of,
    )
    seeing, both = (
        partial(image_stage_loss, compare=comparison_seeing_prompts(model, contexts), anchors_of=anchors_of)
        for model in (crossed, referring)
    )
    return (
        step(plain, plain.image_modules, alone, batch, IMAGE_LR),
        step(crossed, crossed.image_modules, seeing, batch, IMAGE_LR),
        step(referring, referring.image_modules, both, batch, IMAGE_LR),
    )


def shown_times(seconds: Sequence[float]) -> dict[str, float]:
    """What the JSON says of one stage's medians: the baseline's, cross-attention's, self-reference's if timed."""
    baseline, with_attention, *with_reference = seconds
    times = {
        "baseline s": round(baseline, 4),
        "cross-attention s": round(with_attention, 4),
        "ratio": round(with_attention / baseline, 3),
    }
    for one in with_reference:
        times |= {"and self-reference s": round(one, 4), "and self-reference ratio": round(one / baseline, 3)}
    return times


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--model_name", default=TINY, help="architecture; ViT-L-14-336 is AA-CLIP's")
    parser.add_argument("--img_size", type=int, help="default 128 for the tiny CLIP, 518 otherwise")
    parser.add_argument("--random_weights", action="store_true", help="time does not depend on the weights")
    parser.add_argument("--batch_size", type=int, default=2, help="images per step")
    parser.add_argument("--repeats", type=int, default=9, help="timed steps of each kind")
    parser.add_argument("--device", help="torch device; default CUDA if there, else CPU")
    parser.add_argument("--sync_debug", action="store_true", help="fail if a step waits for the GPU")
    parser.add_argument("--out", help="folder for cross_attention_cost.json and .md")
    args = parser.parse_args(argv)
    setup_seed(0)
    device = choose_device(args.device)
    if args.sync_debug:
        check_sync_debug(device)
    size = args.img_size or default_size(args.model_name)
    clip = create_model(args.model_name, size, None if args.random_weights else "openai", device=device)
    surgery = surgery_copy(clip, surgery_start(args.model_name))
    plain, crossed = AdaptedCLIP(clip).to(device), AdaptedCLIPWithCrossAttention(clip, relu=False).to(device)
    referring = AdaptedCLIPWithCrossAttention(clip, relu=False, self_reference=0.3).to(device)
    batch = random_batch(args.batch_size, size, device)
    result = {
        "command": command_line("benchmarks.cross_attention_cost", argv),
        "model_name": args.model_name,
        "img_size": size,
        "batch_size": args.batch_size,
        **machine(device),
    }
    for key in ("text_cross_attn", "image_cross_attn", "text_adapter", "image_adapter"):
        result[f"{key} parameters"] = sum(p.numel() for p in getattr(crossed, key).parameters())
    for name, steps in (
        ("stage 1", text_steps(plain, crossed, surgery, batch)),
        ("stage 2", image_steps(plain, crossed, referring, batch)),
    ):
        result[name] = shown_times(alternate(steps, args.repeats, device))
        if args.sync_debug:
            result[f"{name} steps without a wait"] = steps_without_a_wait(steps, device)
    finish_flat("cross_attention_cost", "What cross-attention costs", result, args.out)


if __name__ == "__main__":
    run_main(main)
