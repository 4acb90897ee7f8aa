"""The weight of rarity on top of a baseline (test.py --rarity_weight), found on training classes alone.

    python -m studies.rarity_weight --train DemoA --data runs/arms/data_seed3 --out weight.json

The training classes are halved in turns; a baseline is trained on either half and evaluated on the other with every
weight of a grid. The weight with the highest mean of pixel AP and image AUROC (each image's own score) over the classes
wins: that of classes the model has not seen, as at test. No test set is read.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from filelock import FileLock

from dataset import get_dataset
from evaluation.predictions import evaluate_dataset
from evaluation.rarity import scorer_with_rarity
from evaluation.scorer import scorer_of
from files.atomic import write_text
from files.command import run_main
from files.logs import quiet_logger
from run_folder.flags import HelpFormatter
from run_folder.loaded_run import load_run
from run_folder.session import declare_datasets
from run_folder.settings import DataSettings
from scripts.commands import ONE_THREAD
from studies.arm_runs import PACE, ROOT, caches, training_command
from studies.class_halves import declare, halves_of
from studies.evidence import STEPS

GRID = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
CRITERION = ("pixel_ap", "image_auroc_unnormalised")


def criterion(folder: Path, dataset: str, data: Path) -> dict[float, list[float]]:
    """{weight of the grid: [`class_value` per class]} of a run on a dataset; 0 is the run alone.

    Raises:
        ValueError: a class has neither metric.
    """
    run = load_run(folder, device="cpu")
    test_sets = get_dataset(
        dataset, run.settings.model.img_size, "full_shot", 0, "test", quiet_logger(), data_root=str(data)
    )
    scorer, found = scorer_of(run, dataset), {}
    for weight in (0.0, *GRID):
        weighed = scorer_with_rarity(scorer, run.model.clipmodel, weight) if weight else scorer
        classes = evaluate_dataset(weighed, test_sets, batch_size=32, device="cpu")["classes"]
        found[weight] = [class_value(name, row) for name, row in classes.items()]
    return found


def class_value(name: str, row: dict[str, float | None]) -> float:
    """Mean of a class's metrics of CRITERION that are defined: without sound pictures it has no image AUROC.

    Raises:
        ValueError: neither is defined.
    """
    defined = [row[key] for key in CRITERION if row[key] is not None]
    if not defined:
        raise ValueError(
            f"class {name} has neither {' nor '.join(CRITERION)}: expected a class with a defect or with pictures of "
            "both labels; leave it out of the training set"
        )
    return sum(defined) / len(defined)


def find_weight(train_set: str, data: Path, config: Path, runs: Path, seed: int) -> dict:
    """Train on either half of `train_set`'s classes, test on the other, choose.

    Args:
        data: folder of the rendered sets.
        config: the `--dataset_config` that declares the halves.
        runs: folder of the two runs.

    Returns:
        {"train", "seed", "weight", "criterion": {weight: mean over the classes, percent}, "commands"}
    """
    declare_datasets(DataSettings(dataset_config=str(config)))
    halves, scores, commands = halves_of(train_set), {}, []
    for half, other in (halves, halves[::-1]):
        folder = runs / f"weight_{half}"
        flags = [*STEPS, *PACE, *caches(data)]
        command = training_command("train.py", flags, seed, half, data, folder, config.name)
        subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            check=True,
            stdout=subprocess.DEVNULL,
            env=dict(os.environ) | ONE_THREAD,
        )
        commands.append(" ".join(["python", *command]).replace(str(data), "DATA").replace(str(folder), "RUN"))
        for weight, values in criterion(folder, other, data).items():
            scores.setdefault(weight, []).extend(values)
    means = {weight: 100 * sum(values) / len(values) for weight, values in scores.items()}
    best = max(GRID, key=means.get)
    return {"train": train_set, "seed": seed, "weight": best, "criterion": means, "commands": commands}


def weight_of(file: Path, train_set: str, data: Path, config: Path, runs: Path, seed: int) -> float:
    """The weight kept in `file`, which is made if it is missing; several processes share it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    runs.mkdir(parents=True, exist_ok=True)
    with FileLock(runs / f".weight_{train_set}.lock"):
        if not file.is_file():
            found = find_weight(train_set, data, config, runs, seed)
            write_text(file, json.dumps(found, indent=1) + "\n")
        return json.loads(file.read_text(encoding="utf-8"))["weight"]


def main(argv: Sequence[str] | None = None) -> None:

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--train", default="DemoA", help="the training set, rendered in --data")
    parser.add_argument("--data", required=True, help="folder of the rendered sets")
    parser.add_argument("--runs", default="runs/rarity_weight", help="folder of the run folders")
    parser.add_argument("--seed", type=int, default=411, help="training seed")
    parser.add_argument("--out", required=True, help="JSON file of the weight")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    data = Path(args.data).resolve()
    config = declare(data, args.train)
    weight = weight_of(Path(args.out), args.train, data, config, Path(args.runs).resolve(), args.seed)
    print(f"--rarity_weight {weight:g}")


if __name__ == "__main__":
    run_main(main)
