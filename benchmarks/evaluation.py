"""What testing costs: a test image by AA-CLIP's operations and by every scorer of the project, anchors, and metrics.

    python -m benchmarks.evaluation --model_name ViT-L-14-336 --batch_sizes 1 --out results/performance/vit_l_518
    python -m benchmarks.evaluation --device cuda --precisions fp32 tf32 --batch_sizes 2 16 64
    python -m benchmarks.evaluation --quick

Weights are random, time does not depend on them. All take turns in one process, and on a CPU their processor seconds
are counted; the ratios count. AA-CLIP's operations (benchmarks/aa_clip_cost.py) are attention with returned weights in
the adapted model, prompts of 77 tokens, scikit-learn's metrics. Scores are made in float32, or in TF32 on a GPU:
evaluation has no other precision. `--memory` measures the peak of every scorer in a process of its own, `--profile` the
largest operations of a forward pass. Writes evaluation.json and evaluation.md into --out, if given, and prints them.
"""

import argparse
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.aa_clip_cost import costly_anchors, costly_clip
from benchmarks.flops import flops_of
from benchmarks.measure import (
    OUT_OF_MEMORY,
    device_of,
    in_turn,
    peak_of_process,
    peak_told_by,
    product_speed,
)
from benchmarks.metrics import images as maps_and_masks
from benchmarks.operations import write_profile
from benchmarks.report import NOT_MEASURED, finish, head_of, said, table, turns
from benchmarks.training_step import in_precision, shown_row
from benchmarks.workload import (
    AA_CLIP,
    CLASSES,
    DATASET,
    PROJECT,
    SHOWN,
    TEST_WAYS,
    TINY,
    Workload,
    available,
    default_size,
)
from files.command import run_main
from forward_utils import encode_anchors
from metrics import class_metrics, reference_ranking_metrics, table_row
from run_folder.flags import HelpFormatter
from utils import choose_device

MODULE = "benchmarks.evaluation"
METRIC_IMAGES = 8


def measured(args: argparse.Namespace, images: int, device: torch.device) -> dict[str, Any]:
    """One batch size: {"batch size", "product GFLOP/s", "scores apart", "ways": [rows]}."""
    workload = Workload(args.model_name, args.img_size, images, device)
    here = [way for way in TEST_WAYS if available(way, device)]
    ways = [(way, one) for one in args.precisions for way in here]
    if "fp32" not in args.precisions:
        ways.insert(0, (AA_CLIP, "fp32"))
    steps = {(way, one): in_precision(workload.score(way), one) for way, one in ways}
    speeds = {one: 0.0 for _, one in ways}

    def products():
        for one in speeds:
            speeds[one] = max(speeds[one], product_speed(device, one))

    seconds = in_turn(steps, args.repeats, device, products, not args.cold)
    meta, reference = Workload(args.model_name, args.img_size, images, "meta"), seconds[AA_CLIP, "fp32"]
    flops = {way: meta.score_flops(way) for way in here}
    rows = [
        {"way": way, "precision": one}
        | shown_row(seconds[way, one], reference, flops[way], speeds[one], images)
        for way, one in ways
    ]
    apart = None  # where one of the two has too little memory
    if OUT_OF_MEMORY not in (reference, seconds.get((PROJECT, "fp32"))):
        theirs, ours = workload.score(AA_CLIP)()[0], workload.score(PROJECT)()[0]
        apart = float((theirs - ours).abs().max() / theirs.abs().max())
    return {
        "batch size": images,
        "product GFLOP/s": {one: round(speed / 1e9, 1) for one, speed in speeds.items()},
        "maps apart": apart,
        "ways": rows,
    }


def anchors_of_a_class(args: argparse.Namespace, device: torch.device) -> dict[str, dict[str, float]]:
    """Seconds and TFLOP of a class's anchors, made once for all of its images, both ways."""
    rows = {}
    for place in (device, torch.device("meta")):
        workload = Workload(args.model_name, args.img_size, 1, place)
        costly = workload.adapted(costly_clip(workload.clip))
        ways = {
            AA_CLIP: torch.no_grad()(lambda: costly_anchors(costly, DATASET, CLASSES[0])),  # noqa: B023
            PROJECT: torch.no_grad()(
                lambda: encode_anchors(workload.model, DATASET, CLASSES[:1])  # noqa: B023
            ),
        }
        if place.type == "meta":
            for way, once in ways.items():
                rows[way]["TFLOP"] = round(flops_of(once) / 1e12, 4)
        else:
            seconds = in_turn(ways, args.repeats, place)
            rows = {way: {"seconds": round(value, 4)} for way, value in seconds.items()}
    return rows


def metrics_of_an_image(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Processor seconds of a class's metrics for every image of it: scikit-learn's, and all that the project has."""
    maps, masks = (
        np.concatenate(part) for part in zip(*maps_and_masks(args.metric_images, args.img_size), strict=True)
    )
    labels, head = masks.any(axis=(1, 2)).astype(int), maps.mean(axis=(1, 2))

    def ours():
        class_metrics(masks, labels, maps, head, "Industrial", 4)
        table_row(masks, labels, maps, head, CLASSES[0], "Industrial")

    ways = {AA_CLIP: lambda: reference_ranking_metrics(masks, maps), PROJECT: ours}
    seconds = in_turn(ways, args.repeats, torch.device("cpu"))
    return {way: {"seconds": round(value / len(maps), 5)} for way, value in seconds.items()}


def child(args: argparse.Namespace) -> None:
    """Print what `peak_told_by` reads."""
    device, (precision,), (images,) = choose_device(args.device), args.precisions, args.batch_sizes

    def once():
        return in_precision(
            Workload(args.model_name, args.img_size, images, device).score(args.child), precision
        )

    print(json.dumps(peak_of_process(once, device)))


def markdown(result: dict[str, Any]) -> list[str]:
    """The tables people read."""
    lines = [
        "# Evaluation",
        "",
        f"{said(result)} {result['model_name']} at {result['img_size']} px, random weights, "
        f"{turns(result)}; × faster than AA-CLIP's operations in float32. Memory is the peak of a process "
        "of its own.",
        "",
    ]
    header = ("batch", "scores by", "precision", "seconds an image", "images/s", "× faster", "TFLOP an image")
    rows = []
    for found in result["batches"]:
        count = found["batch size"]
        for row in found["ways"]:
            share, speed = row["share of the product"], found["product GFLOP/s"][row["precision"]]
            seconds = row["seconds"]
            rows.append(
                (
                    *(count, SHOWN.get(row["way"], row["way"]), row["precision"]),
                    seconds if seconds == OUT_OF_MEMORY else round(seconds / count, 4),
                    *(row["images per second"], row["times faster"], round(row["TFLOP"] / count, 4)),
                    None if share is None else f"{100 * share:.0f} % of {speed}",
                    row.get("peak MB"),
                )
            )
    lines += [*table((*header, "share of the fastest product, GFLOP/s", "peak MB"), rows), ""]
    apart = ", ".join(
        f"{NOT_MEASURED if found['maps apart'] is None else format(found['maps apart'], '.1e')} at batch "
        f"{found['batch size']}"
        for found in result["batches"]
    )
    lines += [f"Maps of the first two in float32, largest difference over the largest value: {apart}.", ""]
    rows = [
        (
            *(way, result["anchors"][way]["seconds"], result["anchors"][way]["TFLOP"]),
            *(result["metrics"][way]["seconds"], f"{100 * result['metrics'][way]['share']:.1f} %"),
        )
        for way in (AA_CLIP, PROJECT)
    ]
    head = (
        "",
        "anchors, seconds a class",
        "TFLOP a class",
        "metrics, seconds an image",
        "their share of an image",
    )
    return [
        *lines,
        *table(head, rows),
        "",
        f"Metrics of {result['metric images']} images, on the CPU: AA-CLIP's are scikit-learn's pixel AUROC and AP "
        "(F1-max too, by the same curve); the project's are these, AUPRO and the image metrics, exact. The share is of "
        f"forward and metrics at batch {result['batches'][0]['batch size']}.",
    ]


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags, checked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=HelpFormatter)
    parser.add_argument("--model_name", default=TINY, help="architecture; ViT-L-14-336 is AA-CLIP's")
    parser.add_argument("--img_size", type=int, help="default 128 for the tiny CLIP, 518 otherwise")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[2], help="images scored together")
    parser.add_argument(
        "--precisions", nargs="+", default=["fp32"], choices=("fp32", "tf32"), help="of products"
    )
    parser.add_argument("--repeats", type=int, default=5, help="timed turns")
    parser.add_argument(
        "--metric_images", type=int, default=METRIC_IMAGES, help="images whose metrics are timed"
    )
    parser.add_argument("--cold", action="store_true", help="no turn to warm up: for steps of minutes")
    parser.add_argument("--device", help="torch device; default CUDA if there, else CPU")
    parser.add_argument(
        "--memory", action="store_true", help="peak of every scorer, in processes of their own"
    )
    parser.add_argument(
        "--profile", action="store_true", help="the largest operations of a forward pass, too"
    )
    parser.add_argument("--quick", action="store_true", help="less than a minute: the tiny CLIP, one turn")
    parser.add_argument("--out", help="folder for evaluation.json and .md, evaluation_profile.json and .md")
    parser.add_argument("--child", metavar="WAY", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.quick:
        args.model_name, args.repeats, args.metric_images = TINY, 1, 4
    args.img_size = args.img_size or default_size(args.model_name)
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parsed(argv)
    if args.child:
        return child(args)
    device = device_of(args)
    result = {
        **head_of(MODULE, argv, args, device),
        "batches": [measured(args, images, device) for images in args.batch_sizes],
        "anchors": anchors_of_a_class(args, device),
        "metric images": args.metric_images,
        "metrics": metrics_of_an_image(args),
    }
    first = result["batches"][0]
    for way, row in result["metrics"].items():
        forward = next(one["seconds"] for one in first["ways"] if one["way"] == way)
        image = 0 if forward == OUT_OF_MEMORY else forward / first["batch size"]
        row["share"] = round(row["seconds"] / (row["seconds"] + image), 4)
    if args.memory:
        for found in result["batches"]:
            for row in found["ways"]:
                row["peak MB"] = peak_told_by(
                    MODULE, args, [row["way"]], found["batch size"], row["precision"]
                )
    finish("evaluation", result, markdown(result), args.out)
    if args.profile:
        images = args.batch_sizes[0]
        once = Workload(args.model_name, args.img_size, images, device).score(PROJECT)
        title = f"test, batch {images}, {PROJECT}, float32"
        write_profile("evaluation_profile", {title: once}, result, device, args.out)


if __name__ == "__main__":
    run_main(main)
