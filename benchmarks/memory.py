"""What a step's tensors take at the most, computed on fake tensors: without a GPU, without the memory, in seconds.

    python -m benchmarks.memory --model_name ViT-L-14-336 --out results/performance/vit_l_518
    python -m benchmarks.memory --quick

Every storage that an operation makes is counted until it dies, over two steps of training in float32 or one test pass.
Not counted: what operations take for themselves, the CUDA context, what the allocator keeps in reserve; on a card add
1 GB or more. Writes memory.json and memory.md into --out, if given, and prints the table.
"""

import argparse
import weakref
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from benchmarks.fake import fake_cuda
from benchmarks.report import command_line, finish, machine, said, table
from benchmarks.workload import (
    AA_CLIP,
    CLASSES,
    DATASET,
    PROJECT,
    RATES,
    SAME_WORK,
    SHOWN,
    STEP_WAYS,
    TINY,
    Workload,
    default_size,
)
from files.command import run_main
from forward_utils import prompts_of
from run_folder.flags import HelpFormatter
from training.optimisation import only_training, parameters_of

MODULE = "benchmarks.memory"
WAYS = {stage: [way for way in ways if way not in SAME_WORK] for stage, ways in STEP_WAYS.items()}
WAYS["test"] = [AA_CLIP, PROJECT]


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of the storages that live: `now`, and `peak` since it was last set."""

    def __init__(self):
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._hold, result)
        return result

    def _hold(self, tensor):
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.sizes:
            return
        self.sizes[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._let_go, key)

    def _let_go(self, key):
        self.now -= self.sizes.pop(key, 0)


def peak_of(name: str, size: int, images: int, stage: str, way: str) -> tuple[int, int]:
    """(bytes at the most, bytes before the first step) of a stage's two steps, or of a test pass."""
    with fake_cuda(), LiveTensors() as live:
        workload = Workload(name, size, images, "cpu")
        width = workload.clip.embed_dim
        workload.anchors = {one: torch.randn(width, 2) for one in CLASSES}
        once = workload.score(way) if stage == "test" else steps_of(workload, stage, way)
        if way == AA_CLIP:  # which has weights of its own
            workload.clip = workload.model = None
        start = live.peak = live.now
        once()
        return live.peak, start


def steps_of(workload: Workload, stage: str, way: str):
    """A function that makes two steps, as training does: the second one finds the optimiser's state."""
    model, modules, loss = workload.part(stage, way)
    batch, optimizer = workload.batch, torch.optim.Adam(parameters_of(modules), lr=RATES[stage])

    def twice():
        with nullcontext() if way == AA_CLIP else only_training(model, modules):
            for _ in range(2):
                optimizer.zero_grad()
                sum(loss(batch).values()).backward()
                optimizer.step()

    return twice


def markdown(result: dict[str, Any]) -> list[str]:
    """The table people read: GB."""
    sizes = result["batch_sizes"]
    rows = [
        (
            row["stage"],
            SHOWN.get(row["way"], row["way"]),
            *(f"{peak / 2**30:.1f}" for peak in row["peak bytes"]),
        )
        for row in result["rows"]
    ]
    return [
        "# Memory of a step",
        "",
        f"{said(result)} Computed on fake tensors: GB of tensors at the most, {result['model_name']} at "
        f"{result['img_size']} px in float32, by images of a batch. On a card add the CUDA context and the allocator's "
        "reserve, 1 GB or more.",
        "",
        *table(("stage", "", *(f"batch {size}" for size in sizes)), rows),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=HelpFormatter)
    parser.add_argument("--model_name", default="ViT-L-14-336", help="architecture")
    parser.add_argument("--img_size", type=int, help="default 128 for the tiny CLIP, 518 otherwise")
    parser.add_argument(
        "--batch_sizes", type=int, nargs="+", default=[1, 2, 8, 16, 32, 64], help="images per step"
    )
    parser.add_argument("--quick", action="store_true", help="less than a minute: the tiny CLIP, batch 2")
    parser.add_argument("--out", help="folder for memory.json and memory.md")
    args = parser.parse_args(argv)
    if args.quick:
        args.model_name, args.batch_sizes = TINY, [2]
    args.img_size = args.img_size or default_size(args.model_name)
    for name in CLASSES:
        prompts_of(DATASET, name)  # made once, of real tensors
    shape, rows = (args.model_name, args.img_size), []
    for stage, ways in WAYS.items():
        for way in ways:
            peaks = [peak_of(*shape, images, stage, way) for images in args.batch_sizes]
            rows.append(
                {
                    "stage": stage,
                    "way": way,
                    "peak bytes": [peak for peak, _ in peaks],
                    "bytes before": [start for _, start in peaks],
                }
            )
    result = {
        "command": command_line(MODULE, argv),
        **{key: getattr(args, key) for key in ("model_name", "img_size", "batch_sizes")},
        **machine(),
        "rows": rows,
    }
    finish("memory", result, markdown(result), args.out)


if __name__ == "__main__":
    run_main(main)
