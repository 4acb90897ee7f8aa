"""What a training step costs: the project's against AA-CLIP's operations (benchmarks/aa_clip_cost.py), in one process.

    python -m benchmarks.training_step --model_name ViT-L-14-336 --img_size 518 --out results/performance/vit_l_518
    python -m benchmarks.training_step --device cuda --precisions fp32 tf32 bf16 --batch_sizes 2 16 64
    python -m benchmarks.training_step --quick

Weights are random, time does not depend on them. The ways take turns, so that a busy machine slows all, and on a CPU
their processor seconds are counted; the ratios count. AA-CLIP has float32 alone; its time in float32 is what every
precision is compared with. FLOPs are counted on the meta device and set against the fastest matrix product of the same
precision that was measured between the turns. Waits for the GPU are counted by CUDA, without one on fake tensors
(forward pass and optimiser, without the backward pass). `--memory` measures the peak of every way in a process of its
own, `--profile` the largest operations of a step. Writes training_step.json and training_step.md, and profile.md, into
--out, if given, and prints them.
"""

import argparse
import json
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.fake import fake_cuda
from benchmarks.measure import (
    OUT_OF_MEMORY,
    PRECISIONS,
    device_of,
    in_turn,
    peak_of_process,
    peak_told_by,
    product_speed,
    products_in,
)
from benchmarks.operations import write_profile
from benchmarks.report import finish, head_of, said, table, turns
from benchmarks.waits import WaitCounter, waits_of
from benchmarks.workload import (
    AA_CLIP,
    CLASSES,
    COMPILED,
    DATASET,
    MATMUL,
    PROJECT,
    RATES,
    SHOWN,
    STEP_WAYS,
    TINY,
    Workload,
    default_size,
    missing,
    steps_without_backward,
    work_of,
)
from files.command import run_main
from forward_utils import prompts_of
from run_folder.flags import HelpFormatter
from utils import choose_device

WAYS = {"plain": PROJECT} | {way: way for way in STEP_WAYS["stage 2"][2:]}  # values of --ways
MODULE = "benchmarks.training_step"


def ways_of(
    stage: str, precisions: Sequence[str], chosen: Sequence[str] = tuple(WAYS.values())
) -> list[tuple[str, str]]:
    """[(way, precision)] of a stage: AA-CLIP's, in float32 and in TF32 alone, in front."""
    of_stage = [way for way in STEP_WAYS[stage] if way in chosen]
    theirs = [(AA_CLIP, one) for one in dict.fromkeys(("fp32", *precisions)) if one != "bf16"]
    return [
        *theirs,
        *(
            (way, one)
            for one in precisions
            for way in of_stage
            if way != AA_CLIP and (way, one) != (MATMUL, "bf16")
        ),
    ]


def left_out(args: argparse.Namespace, device: torch.device) -> dict[str, str]:
    """{way: why it is none on this device} of the ways that were asked for."""
    return {way: reason for way in args.ways if (reason := missing(WAYS[way], device))}


def in_precision(once, precision: str):
    """`once` as a function that runs in a precision."""

    def run():
        with products_in(precision):
            return once()

    return run


def measured(args: argparse.Namespace, stage: str, images: int, device: torch.device) -> dict[str, Any]:
    """One stage at one batch size: {"stage", "batch size", "product GFLOP/s", "losses apart", "ways": [rows]}."""
    shape = (args.model_name, args.img_size, images)
    workloads = {
        kind: Workload(*shape, device, kind)
        for kind in ("fp32", "bf16")
        if kind == "fp32" or kind in args.precisions
    }
    chosen = [WAYS[one] for one in args.ways]
    ways = ways_of(stage, args.precisions, [way for way in chosen if missing(way, device) is None])
    steps = {
        (way, one): in_precision(workloads["bf16" if one == "bf16" else "fp32"].step(stage, way), one)
        for way, one in ways
    }
    speeds = {one: 0.0 for _, one in ways}

    def products():
        for one in speeds:
            speeds[one] = max(speeds[one], product_speed(device, one))

    seconds = in_turn(steps, args.repeats, device, products, not args.cold)
    theirs, ours = (None, None) if args.cold else workloads["fp32"].losses(stage)
    meta = Workload(*shape, "meta")
    flops = {work: meta.step_flops(stage, work) for work in {work_of(way) for way, _ in ways}}
    rows, reference = [], seconds[AA_CLIP, "fp32"]
    for way, one in ways:
        row = {"way": way, "precision": one}
        if device.type == "cuda" and seconds[way, one] != OUT_OF_MEMORY:
            row["waits"] = waits_of(steps[way, one], device)
        elif device.type != "cuda" and way in (AA_CLIP, PROJECT):
            row["waits"] = waits_without_a_gpu(args, stage, images, way, one)
        rows.append(row | shown_row(seconds[way, one], reference, flops[work_of(way)], speeds[one], images))
    return {
        "stage": stage,
        "batch size": images,
        "product GFLOP/s": {one: round(speed / 1e9, 1) for one, speed in speeds.items()},
        "losses": [theirs, ours],
        "losses apart": None if args.cold else abs(theirs - ours) / abs(theirs),
        "ways": rows,
    }


def shown_row(
    seconds: float | str, reference: float | str, flops: int, speed: float, images: int
) -> dict[str, Any]:
    """What a row says of a call's seconds ("out of memory" too), FLOPs and images.

    Args:
        reference: seconds of AA-CLIP's operations in float32.
        speed: FLOPs a second of the fastest product.
    """
    row = {"TFLOP": round(flops / 1e12, 4), "seconds": seconds}
    if seconds == OUT_OF_MEMORY:
        return row | {"images per second": None, "times faster": None, "share of the product": None}
    return row | {
        "seconds": round(seconds, 4),
        "images per second": round(images / seconds, 3),
        "times faster": None if reference == OUT_OF_MEMORY else round(reference / seconds, 2),
        "share of the product": round(flops / seconds / speed, 3),
    }


def waits_without_a_gpu(args: argparse.Namespace, stage: str, images: int, way: str, precision: str) -> int:
    """How often a step's loss and optimiser wait for a GPU, on fake tensors."""
    for name in CLASSES:
        prompts_of(DATASET, name)  # made once, on the CPU, before any step
    with fake_cuda():
        workload = Workload(args.model_name, args.img_size, images, "cuda", precision)
        part = workload.part(stage, way)
        loss, update = steps_without_backward(part, workload.batch, RATES[stage])
        with WaitCounter() as counting, torch.no_grad():
            loss()
            update()
    return len(counting.found)


def child(args: argparse.Namespace) -> None:
    """Print what `peak_told_by` reads."""
    (stage, way), device, (precision,) = args.child, choose_device(args.device), args.precisions

    def once():
        workload = Workload(args.model_name, args.img_size, args.batch_sizes[0], device, precision)
        return in_precision(workload.step(stage, way), precision)

    print(json.dumps(peak_of_process(once, device)))


def markdown(result: dict[str, Any]) -> list[str]:
    """The table people read."""
    lines = [
        "# Training step",
        "",
        f"{said(result)} {result['model_name']} at {result['img_size']} px, random weights, "
        f"{turns(result)}; × faster than AA-CLIP's operations in float32. {result['waits']} Memory is the "
        f"peak of {'the GPU in ' if result['device'] != 'CPU' else ''}a process of its own.",
        "",
    ]
    header = ("stage", "batch", "", "precision", "seconds", "images/s", "× faster", "TFLOP")
    rows = []
    for found in result["stages"]:
        for row in found["ways"]:
            share, speed = row["share of the product"], found["product GFLOP/s"][row["precision"]]
            rows.append(
                (
                    *(
                        found["stage"],
                        found["batch size"],
                        SHOWN.get(row["way"], row["way"]),
                        row["precision"],
                    ),
                    *(row["seconds"], row["images per second"], row["times faster"], row["TFLOP"]),
                    None if share is None else f"{100 * share:.0f} % of {speed}",
                    row.get("waits"),
                    row.get("peak MB"),
                )
            )
    lines += table((*header, "share of the fastest product, GFLOP/s", "waits", "peak MB"), rows)
    for way, reason in result["left out"].items():
        lines += ["", f"Not measured {SHOWN[way]}: {reason}."]
    if result["cold"]:
        return lines
    apart = ", ".join(
        f"{found['losses apart']:.1e} in {found['stage']} at batch {found['batch size']}"
        for found in result["stages"]
    )
    return [*lines, "", f"First losses of the two in float32, relative difference: {apart}."]


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags, checked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=HelpFormatter)
    parser.add_argument("--model_name", default=TINY, help="architecture; ViT-L-14-336 is AA-CLIP's")
    parser.add_argument("--img_size", type=int, help="default 128 for the tiny CLIP, 518 otherwise")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[2], help="images per step")
    parser.add_argument(
        "--precisions", nargs="+", default=["fp32"], choices=PRECISIONS, help="of the project's"
    )
    parser.add_argument(
        "--stages", nargs="+", default=list(RATES), choices=list(RATES), help="which to measure"
    )
    parser.add_argument(
        "--ways",
        nargs="+",
        default=[way for way in WAYS if way != COMPILED],
        choices=list(WAYS),
        help="beside AA-CLIP's operations; compile takes a minute or more before it is timed",
    )
    parser.add_argument("--repeats", type=int, default=5, help="timed turns")
    parser.add_argument(
        "--cold", action="store_true", help="no turn to warm up, no losses: for steps of minutes"
    )
    parser.add_argument("--device", help="torch device; default CUDA if there, else CPU")
    parser.add_argument("--memory", action="store_true", help="peak of every way, in processes of their own")
    parser.add_argument("--profile", action="store_true", help="the largest operations of a step, too")
    parser.add_argument("--quick", action="store_true", help="less than a minute: the tiny CLIP, one turn")
    parser.add_argument("--out", help="folder for training_step.json and .md, profile.json and .md")
    parser.add_argument("--child", nargs=2, metavar=("STAGE", "WAY"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.quick:
        args.model_name, args.repeats = TINY, 1
    args.img_size = args.img_size or default_size(args.model_name)
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parsed(argv)
    if args.child:
        return child(args)
    device = device_of(args)
    on_gpu = device.type == "cuda"
    result = {
        **head_of(MODULE, argv, args, device),
        "left out": left_out(args, device),
        "waits": "Waits for the GPU are CUDA's own count of a whole step."
        if on_gpu
        else "Waits for a GPU were counted on fake tensors, forward pass and optimiser alone.",
        "stages": [measured(args, stage, n, device) for n in args.batch_sizes for stage in args.stages],
    }
    if args.memory:
        for found in result["stages"]:
            for row in found["ways"]:
                made = [found["stage"], row["way"]]
                row["peak MB"] = peak_told_by(MODULE, args, made, found["batch size"], row["precision"])
    finish("training_step", result, markdown(result), args.out)
    if args.profile:
        images = args.batch_sizes[0]
        workload = Workload(args.model_name, args.img_size, images, device)
        calls = {
            f"{stage}, batch {images}, {PROJECT}, float32": workload.step(stage, PROJECT)
            for stage in args.stages
        }
        write_profile("profile", calls, result, device, args.out)


if __name__ == "__main__":
    run_main(main)
