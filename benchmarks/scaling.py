"""How time and peak memory grow: with images of a class, with classes, with resolution, with processes.

    python -m benchmarks.scaling --out results/performance
    python -m benchmarks.scaling --axes resolution --model_name ViT-L-14-336 --resolutions 224 336 518
    python -m benchmarks.scaling --quick

Every line of the table is a process of its own that takes the values of an axis in rising order; memory is its peak
until then (`--quick` and several processes put the lines of an axis into one). Processes are started by torchrun, on
CPUs, with a thread each; what they share is the same, seconds are the busiest one's. Weights are random. Writes
scaling.json and scaling.md into --out, if given, and prints the table.
"""

import argparse
import importlib.util
import json
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import Any

import torch

from benchmarks import shared_work
from benchmarks.measure import memory_now, peak_so_far, told_by
from benchmarks.noise import Noise
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
    "processes": shared_work.LINES,
}
UNITS = {"images": "images", "classes": "classes", "resolution": "px", "processes": "processes"}
VALUES = {axis: axis for axis in LINES} | {"resolution": "resolutions"}  # the flags
CALLS = count()
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node")


def evaluated(args: argparse.Namespace, what: str, images: int) -> None:
    """A whole evaluation of one class, by a filter that costs next to nothing itself."""
    size = args.side
    exact = images * size**2 if what == EXACT else 0
    sets, scorer = {"class": Noise(images, size)}, LocalContrast(size, "Industrial")
    evaluate_dataset(scorer, sets, batch_size=8, device=torch.device("cpu"), exact_pixels=exact)


def anchored(workload: Workload, what: str, classes: int) -> None:
    """The anchors of as many classes that no call before has seen: the tokens of a class are made once."""
    call = next(CALLS)
    name = f"Classes{classes}OfCall{call}"
    register_dataset(name, name, "Industrial", {f"{i}": f"part {i} of lot {call}" for i in range(classes)})
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


def points_of(args: argparse.Namespace, axis: str, what: str) -> list[dict[str, float]]:
    """The points of one line: [{"value", "seconds", "peak MB", "start MB"}]."""
    points, start, values = [], round(memory_now(), 1), getattr(args, VALUES[axis])
    call_of(args, axis, what, values[0])()  # what a process does once is no part of it
    for value in values:
        once = call_of(args, axis, what, value)
        begin = time.process_time()
        once()
        seconds = round(time.process_time() - begin, 4)
        points.append(
            {"value": value, "seconds": seconds, "peak MB": round(peak_so_far(), 1), "start MB": start}
        )
    return points


def child(args: argparse.Namespace) -> None:
    """Print {line: its points} of some lines of an axis."""
    axis, *lines = args.child
    print(json.dumps({what: points_of(args, axis, what) for what in lines}))


def lines_of(args: argparse.Namespace, axis: str) -> list[dict[str, Any]]:
    """The lines of an axis."""
    if axis == "processes":
        words = (shared_work.MODULE, args.model_name, str(args.side), str(args.shared))
        found = [
            told_by(*words) if number == 1 else told_by(*TORCHRUN, str(number), "-m", *words)
            for number in args.processes
        ]
        return [line_of(axis, what, [points[what] for points in found]) for what in LINES[axis]]
    key = VALUES[axis]
    flags = ["--model_name", args.model_name, "--side", str(args.side)]
    flags += [f"--{key}", *map(str, getattr(args, key)), "--child", axis]
    apart = [LINES[axis]] if args.quick else [(what,) for what in LINES[axis]]
    found = {}
    for group in apart:
        found |= told_by(MODULE, *flags, *group)
    return [line_of(axis, what, points) for what, points in found.items()]


def line_of(axis: str, what: str, points: list[dict[str, float]]) -> dict[str, Any]:
    """One line of the table: its points, and the power of the value that time grows with."""
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
        f"random weights, one call each behind one of the least value. "
        f"Processes share {result['shared']} images, a thread each; seconds and memory "
        "are the largest of a process, and value^-1 is work divided without a loss.",
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
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="that work together")
    parser.add_argument("--shared", type=int, default=16, help="images of a batch or class they share")
    parser.add_argument("--quick", action="store_true", help="less than a minute: few and small values")
    parser.add_argument("--out", help="folder for scaling.json and scaling.md")
    parser.add_argument("--child", nargs="+", metavar=("AXIS", "WHAT"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.quick:
        args.model_name, args.side, args.shared = TINY, 64, 4
        args.images, args.classes, args.resolutions = [8, 32], [1, 4], [64, 96]
    for key in VALUES.values():
        values = getattr(args, key)
        if values != sorted(values):
            raise ValueError(f"--{key} {values}: expected rising values, as memory is a peak until then")
    if "processes" in args.axes and max(args.processes) > 1 and not importlib.util.find_spec("accelerate"):
        raise ModuleNotFoundError(
            f"--processes {args.processes}: several need the package accelerate: pip install -r "
            "requirements-distributed.txt, or give --processes 1"
        )
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parsed(argv)
    if args.child:
        return child(args)
    result = {
        "command": command_line(MODULE, argv),
        **{key: getattr(args, key) for key in ("model_name", "side", "shared")},
        **machine(),
        "lines": [line for axis in args.axes for line in lines_of(args, axis)],
    }
    finish("scaling", result, markdown(result), args.out)


if __name__ == "__main__":
    run_main(main)
