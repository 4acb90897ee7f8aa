"""A step of both stages and an evaluation by all processes that torchrun started, or by one alone, timed in each.

    torchrun --nproc_per_node 2 -m benchmarks.shared_work ViT-Tiny-8-demo 128 16

Its words are the architecture, the side of an image, and how many images are shared; it prints what `measured` returns.
benchmarks/scaling.py starts it and makes the table.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.measure import memory_now, peak_so_far
from benchmarks.noise import Noise
from benchmarks.workload import CLASSES, PROJECT, RATES, Workload, step
from evaluation.predictions import evaluate_dataset
from files.command import run_main
from run_folder.processes import Processes, joined
from training.acceleration import Share, StageLoss, distributed
from training.optimisation import only_training

MODULE = "benchmarks.shared_work"
EVALUATION = "evaluation, shared by images"
STEPS = {f"{stage}, one batch shared": stage for stage in RATES}
LINES = (*STEPS, EVALUATION)
TEST_BATCH = 2  # images scored together


def share_of(batch: dict, processes: Processes) -> dict:
    """What this process has of a batch, as a ShareLoader gives it; all of it where there is one process."""
    if processes.count == 1:
        return batch
    share = Share(processes, batch["class_name"])
    own = {key: value[share.held] for key, value in batch.items()}
    return own | {"share": share, "file_name": [f"{number}.png" for number in range(share.total)]}


def training(workload: Workload, stage: str, processes: Processes) -> Callable[[], Any]:
    """A function that makes one step of the workload's batch, this process with its share."""
    part = workload.part(stage, PROJECT)
    with only_training(part.model, part.modules):  # what gradients are averaged of
        loss = distributed(StageLoss(part.loss, part.modules), workload.device)
    return step(part.model, part.modules, loss, share_of(workload.batch, processes), RATES[stage])


def call_of(workload: Workload, line: str, processes: Processes) -> Callable[[], Any]:
    """A function that does what one of LINES says, as often as all of the processes call it."""
    if line in STEPS:
        return training(workload, STEPS[line], processes)
    images = Noise(len(workload.batch["label"]), workload.size)
    how = {"batch_size": TEST_BATCH, "device": workload.device}
    return partial(evaluate_dataset, workload.scorer(PROJECT), {CLASSES[0]: images}, **how)


def timed(once: Callable[[], Any], processes: Processes) -> list[dict[str, float]] | None:
    """[what every process takes]: processor "seconds", the "clock"'s, "peak MB"; None but in the main process."""
    once()  # what is made once is no part of it
    processes.wait()
    begin, clock = time.process_time(), time.perf_counter()
    once()
    seconds, clock = time.process_time() - begin, time.perf_counter() - clock
    return processes.collect({"seconds": seconds, "clock": clock, "peak MB": peak_so_far()})


def measured(name: str, size: int, images: int) -> dict[str, dict[str, Any]] | None:
    """Every one of LINES on CPUs, a thread for each process; called by all of them.

    Args:
        name, size: architecture and image side.
        images: of the batch that is trained on, and of the class that is evaluated.

    Returns:
        {line: {"value" (processes), "seconds" of the busiest one, "seconds of all", "clock", "peak MB" of the largest,
        "start MB"}}; None but in the main process.
    """
    torch.set_num_threads(1)
    start, found = round(memory_now(), 1), {}
    with joined("cpu") as processes:
        workload = Workload(name, size, images, "cpu")
        for line in LINES:
            rows = timed(call_of(workload, line, processes), processes)
            if processes.main:
                largest = {key: max(row[key] for row in rows) for key in rows[0]}
                found[line] = {
                    "value": processes.count,
                    "seconds": round(largest["seconds"], 4),
                    "seconds of all": round(sum(row["seconds"] for row in rows), 4),
                    "clock": round(largest["clock"], 4),
                    "peak MB": round(largest["peak MB"], 1),
                    "start MB": start,
                }
        return found if processes.main else None


def main(argv: Sequence[str] | None = None) -> None:
    name, size, images = sys.argv[1:] if argv is None else argv
    found = measured(name, int(size), int(images))
    if found is not None:
        print(json.dumps(found))


if __name__ == "__main__":
    run_main(main, several=True)
