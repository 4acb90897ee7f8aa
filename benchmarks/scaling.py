"""How time and peak memory grow: with images of a class, with classes, with resolution, with processes.

    python -m benchmarks.scaling --out results/performance
    python -m benchmarks.scaling --axes resolution --model_name ViT-L-14-336 --resolutions 224 336 518
    python -m benchmarks.scaling --quick

Every line of the table is a process of its own that takes the values of an axis in rising order; memory is its peak
until then. Weights are random. Writes scaling.json and scaling.md into --out, if given, and prints the table.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from benchmarks.measure import memory_now, peak_so_far, told_by
from benchmarks.report import command_line, finish, machine, said, table
from benchmarks.workload import AA_CLIP, PROJECT, TINY, Workload
from dataset.custom import register_dataset
from evaluation.local_contrast import LocalContrast
from evaluation.predictions import evaluate_dataset
from files.command import run_main
from forward_utils import anchors_of_batch, get_adapted_text_embedding
from run_folder.flags import HelpFormatter
from training.optimisation import only_training

MODULE = "benchmarks.scaling"
EXACT, BINNED = "evaluation, exact pixels", "evaluation, pixels in bins"
ONE_BY_ONE, TOGETHER = "anchors for a test", "anchors of a batch of stage 1, with gradient"
LINES = {  # axis: what is done with its values
    "images": (EXACT, BINNED),
    "classes": (ONE_BY_ONE, TOGETHER),
    "resolution": tuple(
        f"{stage}, {way}" for stage in ("stage 1", "stage 2", "test") for way in (AA_CLIP, PROJECT)
    ),
}
UNITS = {"images": "images", "classes": "classes", "resolution": "px"}
VALUES = {"images": "images", "classes": "classes", "resolution": "resolutions"}  # the flags


class Noise(Dataset):
    """A class of images made when they are asked for, every second one with a defect."""

    def __init__(self, count: int, size: int):
        self.count, self.img_size = count, size

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        random = np.random.default_rng(index)
        image = random.standard_normal((3, self.img_size, self.img_size), np.float32)
        mask = np.zeros((1, self.img_size, self.img_size), np.float32)
        if index % 2:
            top, left = random.integers(0, self.img_size * 3 // 4, 2)
            side = self.img_size // 8
            mask[0, top : top + side, left : left + side] = 1
            image[:, top : top + side, left : left + side] += 2
        return {"image": image, "mask": mask, "label": index % 2, "file_name": f"{index:06}.png"}


def evaluated(args: argparse.Namespace, what: str, images: int) -> None:
    """A whole evaluation of one class, by a filter that costs next to nothing itself."""
    size = args.side
    exact = images * size**2 if what == EXACT else 0
    sets, scorer = {"class": Noise(images, size)}, LocalContrast(size, "Industrial")
    evaluate_dataset(scorer, sets, batch_size=8, device=torch.device("cpu"), exact_pixels=exact)


def anchored(workload: Workload, what: str, classes: int) -> None:
    """The anchors of as many classes, with names of their own."""
    name = f"Classes{classes}"
    register_dataset(name, name, "Industrial", {f"{i}": f"part number {i}" for i in range(classes)})
    if what == ONE_BY_ONE:
        with torch.no_grad():
            get_adapted_text_embedding(workload.model, name, workload.device)
        return
    with only_training(workload.model, workload.model.text_modules):
        anchors = anchors_of_batch(workload.model, name, [f"{i}" for i in range(classes)])
        torch.autograd.grad(anchors.sum(), list(workload.model.text_adapter.parameters()))


def resolved(args: argparse.Namespace, what: str, size: int) -> Callable[[], Any]:
    """A function that makes a step, or scores one image, at a resolution."""
    stage, way = what.split(", ", 1)
    workload = Workload(args.model_name, size, 1 if stage == "test" else 2, "cpu")
    return workload.score(way) if stage == "test" else workload.step(stage, way)


def call_of(args: argparse.Namespace, axis: str, what: str, value: int) -> Callable[[], Any]:
    """A function that does what a line of the table says, for one value of its axis."""
    if axis == "images":
        return partial(evaluated, args, what, value)
    if axis == "classes":
        return partial(anchored, Workload(args.model_name, args.side, 1, "cpu"), what, value)
    return resolved(args, what, value)


def child(args: argparse.Namespace) -> None:
    """Print the points of one line: [{"value", "seconds", "peak MB", "start MB"}]."""
    axis, what = args.child
    points, start = [], round(memory_now(), 1)
    for value in getattr(args, VALUES[axis]):
        once = call_of(args, axis, what, value)
        begin = time.process_time()
        once()
        seconds = round(time.process_time() - begin, 4)
        points.append(
            {"value": value, "seconds": seconds, "peak MB": round(peak_so_far(), 1), "start MB": start}
        )
    print(json.dumps(points))


def line_of(args: argparse.Namespace, axis: str, what: str) -> dict[str, Any]:
    """One line of the table, measured in a process of its own."""
    flags = ["--child", axis, what, "--model_name", args.model_name, "--side", str(args.side)]
    for key in VALUES.values():
        flags += [f"--{key}", *map(str, getattr(args, key))]
    points = told_by(MODULE, *flags)
    first, last = points[0], points[-1]
    found = {"axis": axis, "what": what, "points": points}
    if last["value"] > first["value"] and first["seconds"]:
        ratio = math.log(last["value"] / first["value"])
        found["exponent"] = round(math.log(last["seconds"] / first["seconds"]) / ratio, 2)
    return found


def markdown(result: dict[str, Any]) -> list[str]:
    """The table people read."""
    rows = []
    for line in result["lines"]:
        points, unit = line["points"], UNITS[line["axis"]]
        rows.append(
            (
                line["what"],
                " → ".join(str(point["value"]) for point in points) + f" {unit}",
                " → ".join(str(point["seconds"]) for point in points),
                f"value^{line['exponent']}" if "exponent" in line else "–",
                " → ".join(str(point["peak MB"]) for point in points) + f" ({points[0]['start MB']})",
            )
        )
    head = ("", "values", "seconds", "time grows as", "peak MB (start)")
    return [
        "# Scaling",
        "",
        f"{said(result)} {result['model_name']}, images of {result['side']} px where resolution is not the axis; "
        "random weights, one call each.",
        "",
        *table(head, rows),
    ]


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags, checked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=HelpFormatter)
    parser.add_argument(
        "--axes", nargs="+", default=list(LINES), choices=list(LINES), help="which to measure"
    )
    parser.add_argument("--model_name", default=TINY, help="architecture; ViT-L-14-336 is AA-CLIP's")
    parser.add_argument("--side", type=int, default=128, help="pixels of an image, where no axis")
    parser.add_argument("--images", type=int, nargs="+", default=[100, 400, 1600], help="of a class")
    parser.add_argument("--classes", type=int, nargs="+", default=[2, 8, 32], help="of a data set or batch")
    parser.add_argument("--resolutions", type=int, nargs="+", default=[96, 128, 192], help="image sides")
    parser.add_argument("--quick", action="store_true", help="less than a minute: few and small values")
    parser.add_argument("--out", help="folder for scaling.json and scaling.md")
    parser.add_argument("--child", nargs=2, metavar=("AXIS", "WHAT"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.quick:
        args.model_name, args.side, args.images, args.classes, args.resolutions = (
            TINY,
            64,
            [20, 80],
            [1, 4],
            [64, 96],
        )
    for key in VALUES.values():
        values = getattr(args, key)
        if values != sorted(values):
            raise ValueError(f"--{key} {values}: expected rising values, as memory is a peak until then")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parsed(argv)
    if args.child:
        return child(args)
    result = {
        "command": command_line(MODULE, argv),
        **{key: getattr(args, key) for key in ("model_name", "side")},
        **machine(),
        "lines": [line_of(args, axis, what) for axis in args.axes for what in LINES[axis]],
    }
    finish("scaling", result, markdown(result), args.out)


if __name__ == "__main__":
    run_main(main)
