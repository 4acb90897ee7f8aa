"""What pixel metrics cost: scikit-learn's, the exact ones, and those counted in bins, in seconds and in memory.

    python -m benchmarks.metrics
    python -m benchmarks.metrics --quick

Seconds: AUROC, average precision and the largest F1 of the same images by the three of them, in turn in one process,
so that a busy machine slows all alike; their ratios count. The project's two give AUPRO with it. Memory: the peak of a
process of its own, for two numbers of images that arrive one batch after the other, as in a test run.
Writes metrics.json and metrics.md into --out, if given, and prints the table.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version

import cv2
import numpy as np

from benchmarks.measure import peak_so_far, told_by
from benchmarks.report import command_line, finish, machine, said, table
from evaluation.accumulate import WARM_UP, ClassAccumulator
from files.command import run_main
from metrics import (
    ScoreBins,
    binned_pixel_metrics,
    pixel_metrics,
    reference_ranking_metrics,
    region_shares,
)

MODULE = "benchmarks.metrics"
GRID = 37  # patches on a side at 518 px
BATCH = 8
SHARE_ABNORMAL = 2  # every second image


def images(count: int, side: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(maps [b, side, side] float32, masks of bool), smooth as a patch grid gives them, every second with defects."""
    for start in range(0, count, BATCH):
        numbers = range(start, min(start + BATCH, count))
        maps, masks = np.empty((2, len(numbers), side, side), np.float32)
        for place, number in enumerate(numbers):
            random = np.random.default_rng(number)
            grid = random.normal(size=(GRID, GRID)).astype(np.float32)
            maps[place] = cv2.resize(grid, (side, side), interpolation=cv2.INTER_LINEAR)
            masks[place] = 0
            if number % SHARE_ABNORMAL:
                for _ in range(3):
                    centre = random.integers(0, side, 2).tolist()
                    axes = random.integers(max(2, side // 50), max(3, side // 8), 2).tolist()
                    cv2.ellipse(masks[place], centre, axes, float(random.integers(180)), 0, 360, 1, -1)
        yield maps + 1.5 * masks, masks > 0


def in_bins(batches: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict:
    """{metric: Estimate} of some batches, each counted on its own."""
    bins = ScoreBins(batches[0][0])
    for maps, masks in batches:
        shares, regions = zip(*map(region_shares, masks), strict=True)
        bins.add(maps, maps[masks], np.concatenate(shares), sum(regions))
    return binned_pixel_metrics(bins.falling())


def timed(count: int, side: int, repeats: int) -> dict:
    """Median CPU seconds of the three, in turn, and how far apart their numbers are."""
    batches = list(images(count, side))
    maps, masks = (np.concatenate(part) for part in zip(*batches, strict=True))
    ways: dict[str, Callable[[], dict]] = {
        "scikit-learn": lambda: reference_ranking_metrics(masks, maps),
        "exact": lambda: pixel_metrics(masks, maps),
        "binned": lambda: in_bins(batches),
    }
    seconds, found = {name: [] for name in ways}, {}
    for _ in range(repeats):
        for name, way in ways.items():
            begin = time.process_time()
            found[name] = way()
            seconds[name].append(time.process_time() - begin)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    reference, exact, binned = found.values()
    return {
        "images": count,
        "side": side,
        "repeats": repeats,
        "cpu seconds": {name: round(value, 4) for name, value in median.items()},
        "times scikit-learn": {
            name: round(median["scikit-learn"] / median[name], 1) for name in ("exact", "binned")
        },
        "exact minus scikit-learn": {key: abs(exact[key] - value) for key, value in reference.items()},
        "binned minus exact": {key: abs(estimate.value - exact[key]) for key, estimate in binned.items()},
        "bound": {key: estimate.error for key, estimate in binned.items()},
    }


def evaluated(count: int, side: int, way: str) -> None:
    """Take images as a test run does: whole, or through an accumulator that yields a comparison's rows too."""
    if way == "exact":
        maps, masks = (np.concatenate(part) for part in zip(*images(count, side), strict=True))
        pixel_metrics(masks, maps)
        return
    accumulator, done = ClassAccumulator(count, min(WARM_UP, count)), 0
    for maps, masks in images(count, side):
        numbers = range(done, done + len(maps))
        accumulator.add(
            numbers,
            {
                "maps": maps,
                "masks": masks,
                "mask_known": np.ones(len(maps), bool),
                "head": maps.mean(axis=(1, 2)),
                "labels": masks.any(axis=(1, 2)).astype(int),
                "files": [f"{number:06}.png" for number in numbers],
            },
        )
        done += len(maps)
    accumulator.finish()


def peak_of(count: int, side: int, way: str) -> dict[str, float]:
    """{"start", "peak"}: MB of a fresh process before its first image, and at most."""
    return told_by(MODULE, "--child", way, str(count), str(side))


def child(way: str, count: int, side: int) -> None:
    """Print what `peak_of` reads."""
    start = peak_so_far()
    evaluated(count, side, way)
    print(json.dumps({"start": start, "peak": peak_so_far()}))


def grown(few: int, many: int, side: int, way: str) -> dict:
    """How a process's peak grows with the number of images."""
    low, high = peak_of(few, side, way), peak_of(many, side, way)
    return {
        "images": [few, many],
        "side": side,
        "start MB": round(low["start"], 1),
        "peak MB": [round(low["peak"], 1), round(high["peak"], 1)],
        "growth percent": round(100 * (high["peak"] / low["peak"] - 1), 2),
        "bytes per image": round((high["peak"] - low["peak"]) * 2**20 / (many - few)),
        "bytes per pixel": round((high["peak"] - low["peak"]) * 2**20 / (many - few) / side**2, 3),
    }


def markdown(result: dict) -> list[str]:
    """The tables people read."""
    speed = result["speed"]
    rows = []
    for name, off in (
        ("scikit-learn", None),
        ("exact", "exact minus scikit-learn"),
        ("binned", "binned minus exact"),
    ):
        cells = [
            "–" if off is None or key not in speed[off] else f"{speed[off][key]:.1e}"
            for key in speed["bound"]
        ]
        ratio = speed["times scikit-learn"].get(name, 1)
        rows.append((name, speed["cpu seconds"][name], ratio, *cells))
    bounds = (f"{error:.1e}" for error in speed["bound"].values())
    rows.append(("bound of the binned", "", "", *bounds))
    memory = [
        (
            name,
            "{} → {} of {side}²".format(*row["images"], side=row["side"]),
            "{} → {} ({start})".format(*row["peak MB"], start=row["start MB"]),
            f"{row['growth percent']} %",
            f"{row['bytes per image'] / 1000:.1f} kB, {row['bytes per pixel']} bytes a pixel",
        )
        for name, row in result["memory"].items()
    ]
    header = ("", "CPU seconds", "× scikit-learn", "AUROC off", "AP off", "F1-max off", "AUPRO off")
    return [
        "# Pixel metrics",
        "",
        said(result),
        "",
        f"{speed['images']} images of {speed['side']}², median of {speed['repeats']}:",
        "",
        *table(header, rows),
        "",
        *table(("memory", "images", "peak MB (start)", "growth", "per image"), memory),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100, help="images that are timed")
    parser.add_argument("--side", type=int, default=518, help="of the images, in pixels")
    parser.add_argument("--repeats", type=int, default=3, help="turns of the three")
    parser.add_argument(
        "--few", type=int, default=200, help="images of the smaller class whose memory is measured"
    )
    parser.add_argument("--many", type=int, default=2000, help="images of the larger one")
    parser.add_argument("--quick", action="store_true", help="less than a minute: fewer and smaller images")
    parser.add_argument("--out", help="folder for metrics.json and metrics.md")
    parser.add_argument("--child", nargs=3, metavar=("WAY", "IMAGES", "SIDE"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    cv2.setNumThreads(1)
    if args.child:
        way, count, side = args.child
        return child(way, int(count), int(side))
    if args.quick:
        args.images, args.repeats, args.few, args.many = 8, 1, 40, 400
        memory_side = 128
    else:
        memory_side = args.side
    result = {
        "command": command_line(MODULE, argv),
        **machine(),
        "numpy": np.__version__,
        "scikit-learn": version("scikit-learn"),
        "OpenCV": cv2.__version__,
        "speed": timed(args.images, args.side, args.repeats),
        "memory": {
            "exact": grown(args.few // 10, args.few // 5, memory_side, "exact"),
            "binned": grown(args.few, args.many, memory_side, "binned"),
        },
    }
    finish("metrics", result, markdown(result), args.out)


if __name__ == "__main__":
    run_main(main)
