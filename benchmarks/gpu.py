"""Everything a GPU is wanted for, in one command: stages and test, fp32, TF32 and bf16, small and large batches.

    python -m benchmarks.gpu --out results/performance/gpu
    python -m benchmarks.gpu --dry_run

Runs the other benchmarks with `--device cuda`, one after the other and each in a process of its own, so that what fails
leaves the others' results. What they print lies beside their tables, in <benchmark>.log.
"""

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.training_step import WAYS
from benchmarks.workload import TINY
from files.atomic import write_text
from files.command import Refusal, run_main
from run_folder.flags import HelpFormatter


def commands(args: argparse.Namespace) -> dict[str, list[str]]:
    """{benchmark: its flags}."""
    batches = ["--batch_sizes", *map(str, args.batch_sizes)]
    common = ["--model_name", args.model_name, "--device", "cuda"]
    size = [] if args.img_size is None else ["--img_size", str(args.img_size)]
    repeats = ["--repeats", str(args.repeats)]
    whole = [*common, *size, *batches, *repeats, "--memory", "--profile", "--out", args.out]
    scorers = [one for one in args.precisions if one != "bf16"] or ["fp32"]
    return {
        "training_step": ["--precisions", *args.precisions, "--ways", *WAYS, *whole],
        "evaluation": ["--precisions", *scorers, *whole],
        "cross_attention_cost": [*common, *size, "--random_weights", "--sync_debug", *repeats],
        "interruption_cost": [*common, *size, "--random_weights", *repeats],
    }


def check_device() -> None:
    """Raises Refusal where there is no CUDA device."""
    if not torch.cuda.is_available():
        raise Refusal(
            "benchmarks.gpu measures on a CUDA device, and torch sees none: run it where `python -c 'import torch; "
            "print(torch.cuda.is_available())'` prints True. --dry_run shows the commands; without a GPU "
            "`python -m benchmarks.training_step` and `.evaluation` measure on the CPU"
        )


def run(name: str, flags: Sequence[str], out: Path) -> int:
    """Run one benchmark, keep what it prints in `out`/`name`.log; returns its exit status."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *flags]
    # Rows of tables of tens of GB: what torch frees must fit what it needs next.
    environment = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"} | os.environ
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    write_text(out / f"{name}.log", f"{shlex.join(command[1:])}\n{done.stdout}")
    print(done.stdout, flush=True)
    return done.returncode


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=HelpFormatter)
    parser.add_argument("--model_name", default="ViT-L-14-336", help="architecture")
    parser.add_argument("--img_size", type=int, help="default 128 for the tiny CLIP, 518 otherwise")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[2, 16, 64], help="images per step")
    precisions = ("fp32", "tf32", "bf16")
    parser.add_argument(
        "--precisions", nargs="+", default=list(precisions), choices=precisions, help="of products"
    )
    parser.add_argument("--repeats", type=int, default=10, help="timed turns")
    parser.add_argument(
        "--quick", action="store_true", help="the tiny CLIP, batch 2: to see that all of it runs"
    )
    parser.add_argument("--dry_run", action="store_true", help="print the commands and run none")
    parser.add_argument("--out", default="results/performance/gpu", help="folder for tables and logs")
    args = parser.parse_args(argv)
    if args.quick:
        args.model_name, args.batch_sizes, args.repeats = TINY, [2], 2
    if args.dry_run:
        for name, flags in commands(args).items():
            print(f"python -m benchmarks.{name} {shlex.join(flags)}")
        return
    check_device()
    failed = [name for name, flags in commands(args).items() if run(name, flags, Path(args.out))]
    if failed:
        raise Refusal(f"{', '.join(failed)} failed; {args.out} has what they printed, as NAME.log")


if __name__ == "__main__":
    run_main(main)
