"""What it costs that no broken step is taken and no epoch lost: the guard's share of a step, seconds per save.

    python benchmarks/interruption_cost.py --quick
    python benchmarks/interruption_cost.py --model_name ViT-L-14-336 --random_weights

Steps of stage 2 with and without the guard alternate in one process; medians are compared. Prints one JSON object, and
writes it and a table into --out, if given.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.cross_attention_cost import alternate  # noqa: E402
from benchmarks.report import command_line, finish_flat, machine  # noqa: E402
from benchmarks.workload import DATASET, IMAGE_LR, TINY, Step, default_size, random_batch  # noqa: E402
from files.command import run_main
from forward_utils import fixed_anchors  # noqa: E402
from model.adapter import AdaptedCLIP  # noqa: E402
from model.clip import create_model  # noqa: E402
from run_folder.progress import EPOCH_FILE, EpochFile  # noqa: E402
from run_folder.state import Record, TrainState  # noqa: E402
from training.engine import StagePlan, train_step  # noqa: E402
from training.epoch import EpochSums  # noqa: E402
from training.finite_steps import FiniteSteps  # noqa: E402
from training.optimisation import adam, only_training  # noqa: E402
from training.stages import image_stage_loss  # noqa: E402
from utils import choose_device, setup_seed  # noqa: E402

NEVER = 10**9  # steps between two looks


def step(model: AdaptedCLIP, batch: dict, every: int | None) -> Step:
    """A function that makes one step of stage 2, looked at after `every` steps; None: not guarded at all."""
    loss = partial(
        image_stage_loss,
        compare=lambda batch, anchors: model.compare(batch["image"], anchors),
        anchors_of=fixed_anchors(model, DATASET),
    )
    state = TrainState("image", model.image_modules, adam(model.image_modules, IMAGE_LR))
    steps, plan = FiniteSteps(state, every or NEVER), StagePlan(epochs=1)

    def plain():
        state.optimizer.zero_grad(set_to_none=True)
        sum(loss(batch).values()).backward()
        state.optimizer.step()

    def guarded():
        train_step(steps, loss, batch, plan)
        steps.taken.clear()

    def once():
        with only_training(model, model.image_modules):
            (plain if every is None else guarded)()

    once.state = state
    return once


def seconds_per_save(state: TrainState, sums: EpochSums, repeats: int) -> tuple[float, int]:
    """(median seconds, bytes) of a save inside an epoch."""
    times = []
    with tempfile.TemporaryDirectory() as folder:
        file = EpochFile(Path(folder) / "image_adapter.pth", Record({}, {}, {}))
        for _ in range(repeats):
            begin = time.perf_counter()
            file.save(state, sums.content())
            times.append(time.perf_counter() - begin)
        return statistics.median(times), (Path(folder) / EPOCH_FILE).stat().st_size


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model_name", default=TINY, help="architecture; ViT-L-14-336 is AA-CLIP's")
    parser.add_argument("--img_size", type=int, help="default 128 for the tiny CLIP, 518 otherwise")
    parser.add_argument("--random_weights", action="store_true", help="time does not depend on the weights")
    parser.add_argument("--batch_size", type=int, default=2, help="images per step")
    parser.add_argument("--repeats", type=int, default=30, help="timed steps of each kind")
    parser.add_argument("--quick", action="store_true", help="5 steps of each kind: to see that it runs")
    parser.add_argument("--device", help="torch device; default CUDA if there, else CPU")
    parser.add_argument("--out", help="folder for interruption_cost.json and .md")
    args = parser.parse_args(argv)
    setup_seed(0)
    device, repeats = choose_device(args.device), 5 if args.quick else args.repeats
    size = args.img_size or default_size(args.model_name)
    clip = create_model(args.model_name, size, None if args.random_weights else "openai", device=device)
    model, batch = AdaptedCLIP(clip).to(device), random_batch(args.batch_size, size, device)
    batch["file_name"] = ["a.png"] * args.batch_size
    # A CPU's steps are looked at one by one, a GPU's once per --log_every: the device decides by itself meanwhile.
    plain, looked_at, guarded = (step(model, batch, every) for every in (None, 1, NEVER))
    unguarded_seconds, looked_at_seconds, guarded_seconds = alternate(
        (plain, looked_at, guarded), repeats, device
    )
    sums = EpochSums()
    for _ in range(1850):  # an epoch of 3,700 images
        sums.add({"segmentation": torch.zeros((), device=device)}, {})
    seconds, size_of_file = seconds_per_save(guarded.state, sums, repeats)
    result = {
        "command": command_line("benchmarks.interruption_cost", argv),
        "model_name": args.model_name,
        "img_size": size,
        "batch_size": args.batch_size,
        **machine(device),
        "step s": round(unguarded_seconds, 5),
        "guarded step s, looked at one by one": round(looked_at_seconds, 5),
        "its share of a step": round(looked_at_seconds / unguarded_seconds - 1, 4),
        "guarded step s, as on a GPU": round(guarded_seconds, 5),
        "guard's share of a step": round(guarded_seconds / unguarded_seconds - 1, 4),
        "save s": round(seconds, 4),
        "save MB": round(size_of_file / 1e6, 1),
        "share of 10 minutes": round(seconds / 600, 6),
    }
    finish_flat("interruption_cost", "What guard and saves cost", result, args.out)


if __name__ == "__main__":
    run_main(main)
