"""What starting costs: the peak memory over the network's size and the seconds until a backbone's weights are loaded.

    python -m benchmarks.loading --model_name ViT-L-14-336 --out results/performance
    python -m benchmarks.loading --quick

Weight files of random values are written into a temporary folder and read by a process of their own, each as often as
--repeats says; the file is then in the disk's cache. Writes loading.json and loading.md into --out, if given, and
prints the table.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.measure import memory_now, peak_so_far, told_by
from benchmarks.report import command_line, finish, machine, said, table
from benchmarks.workload import TINY, default_size
from files.command import run_main
from model.clip import CONFIGS, create_model
from run_folder.flags import HelpFormatter

MODULE = "benchmarks.loading"
KINDS = {  # of weight file: what the table calls it
    "float32.safetensors": "`.safetensors` in float32",
    "float16.safetensors": "`.safetensors` in float16",
    "float32.pt": "state dict (`.pt`) in float32",
    "float16.pt": "state dict (`.pt`) in float16",
}


def write_weights(path: Path, model_name: str) -> None:
    """Write random weights of an architecture in the kind of file that the path's name says."""
    import open_clip  # seconds, which --help does not wait for

    open_clip.add_model_config(CONFIGS)
    state = open_clip.create_model(model_name).state_dict()
    if path.name.startswith("float16"):
        state = {name: value.half() for name, value in state.items()}
    if path.suffix == ".safetensors":
        save_file({name: value.contiguous() for name, value in state.items()}, path)
    else:
        torch.save(state, path)


def child(args: argparse.Namespace) -> None:
    """Print what one start takes: [peak over the network's size, processor seconds, seconds, the network's MB]."""
    before, processor, clock = memory_now(), time.process_time(), time.perf_counter()
    clip = create_model(args.model_name, args.img_size, "openai", clip_weights=args.child)
    seconds = time.process_time() - processor, time.perf_counter() - clock
    size = sum(value.nbytes for value in clip.parameters()) / 2**20
    print(json.dumps([(peak_so_far() - before) / size, *seconds, size]))


def measured(args: argparse.Namespace) -> dict[str, dict]:
    """{kind of file: {"peak over size", "processor seconds", "seconds", "network MB", "file MB"}}."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in args.kinds:
            path = Path(folder) / kind
            write_weights(path, args.model_name)
            flags = ("--model_name", args.model_name, "--img_size", str(args.img_size), "--child", str(path))
            starts = [told_by(MODULE, *flags) for _ in range(args.repeats)]
            peaks, processor, clock, sizes = zip(*starts, strict=True)
            found[kind] = {
                "peak over size": [round(min(peaks), 2), round(max(peaks), 2)],
                "processor seconds": round(statistics.median(processor), 2),
                "seconds": round(statistics.median(clock), 2),
                "network MB": round(sizes[0], 1),
                "file MB": round(path.stat().st_size / 2**20, 1),
            }
            path.unlink()
    return found


def markdown(result: dict) -> list[str]:
    """The table people read."""
    rows = []
    for kind, row in result["files"].items():
        low, high = row["peak over size"]
        peak = f"{low} × the network" if low == high else f"{low}–{high} × the network"
        rows.append((KINDS[kind], row["file MB"], peak, row["processor seconds"], row["seconds"]))
    size = next(iter(result["files"].values()))["network MB"]
    return [
        "# Starting",
        "",
        f"{said(result)} {result['model_name']} at {result['img_size']} px, {size} MB of weights in float32; median of "
        f"{result['repeats']} starts, the file in the disk's cache.",
        "",
        *table(("file", "MB", "peak above the start", "processor seconds", "seconds"), rows),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=HelpFormatter)
    parser.add_argument("--model_name", default="ViT-L-14-336", help="architecture")
    parser.add_argument("--img_size", type=int, help="default 128 for the tiny CLIP, 518 otherwise")
    parser.add_argument("--repeats", type=int, default=3, help="starts from every file")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS), help="of weight file")
    parser.add_argument(
        "--quick", action="store_true", help="less than a minute: the tiny CLIP, one kind, one start"
    )
    parser.add_argument("--out", help="folder for loading.json and loading.md")
    parser.add_argument("--child", metavar="FILE", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.quick:
        args.model_name, args.repeats, args.kinds = TINY, 1, list(KINDS)[:1]
    args.img_size = args.img_size or default_size(args.model_name)
    if args.child:
        return child(args)
    result = {
        "command": command_line(MODULE, argv),
        **{key: getattr(args, key) for key in ("model_name", "img_size", "repeats")},
        **machine(),
        "files": measured(args),
    }
    finish("loading", result, markdown(result), args.out)


if __name__ == "__main__":
    run_main(main)
