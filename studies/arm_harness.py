"""One run of an arm: train it if it is trained, test it, keep commands, seconds, threads and metrics as JSON."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from files.atomic import write_text
from run_folder.checkpoints import versions
from scripts.commands import ONE_THREAD
from studies.arm_registry import ARMS, RARITY_WEIGHT
from studies.arm_runs import PRODUCTS, ROOT, caches, common_flags, training_command
from studies.evaluation_entry import entry_of
from studies.rarity_weight import weight_of


class Place(NamedTuple):
    """Where the runs of one training set and one data seed lie.

    `train`, `test`: names of the sets. `data`: folder of the rendered ones. `config`: the file in it that declares
    them. `runs`: folder of the run folders. `out`: folder of the JSON files.
    """

    train: str
    test: str
    data: Path
    config: Path | None
    runs: Path
    out: Path

    def file(self, arm: str, seed: int) -> Path:
        """The JSON of a run; what is not trained has no seed."""
        trained = ARMS[arm].script or ARMS[arm].retests
        return self.out / (f"{arm}_seed{seed}.json" if trained else f"{arm}.json")

    def weight(self, seed: int) -> float:
        """The weight of rarity, found on the training classes with a first seed and kept for all others."""
        return weight_of(self.out / "rarity_weight.json", self.train, self.data, self.config, self.runs, seed)


def commands_of(
    arm: str,
    seed: int,
    place: Place,
    weight: float | None = None,
    data: object = "DATA",
    folder: object = "RUN",
) -> tuple[list[str] | None, list[str]]:
    """(training command or None, test command) of a run, the words behind "python"; as a JSON has them by default.

    Args:
        weight: of rarity, for the arms that add it.
    """
    own, config = ARMS[arm], place.config.name if place.config else None
    training = None
    if own.script:
        flags = [*own.flags, *caches(data)]
        training = training_command(own.script, flags, seed, place.train, data, folder, config)
    testing = [f"{weight:g}" if word == RARITY_WEIGHT else word for word in own.testing]
    testing += [*PRODUCTS, *caches(data)]
    test = ["test.py", "--dataset", place.test, *common_flags(seed, data, folder, config), *testing]
    return training, test


def folder_of(arm: str, seed: int, place: Place) -> Path:
    """The run's folder: of what is tested again that of its training, of what is not trained one of its own."""
    name = ARMS[arm].retests or arm
    return place.runs / (f"{name}_seed{seed}" if ARMS[name].script else name)


def run_command(command: Sequence[str]) -> None:
    """Run a command of the repository in a process of one thread.

    Raises:
        CalledProcessError: it failed.
    """
    words = [sys.executable, *command]
    subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, env=dict(os.environ) | ONE_THREAD)


def processor_seconds() -> float:
    """Seconds that a processor worked for this process's finished children; other work on the machine is left out."""
    used = os.times()
    return used.children_user + used.children_system


def is_trained(folder: Path) -> bool:
    """Whether a run's folder holds a finished training."""
    return (folder / "history.json").is_file()


def last_watch(folder: Path) -> dict:
    """{stage: what --watch logged of its last epoch} of a run's last loop; {} without."""
    file = folder / "history.json"
    if not file.is_file():
        return {}
    last = json.loads(file.read_text(encoding="utf-8"))["loops"][-1]
    stages = {stage: last[stage][-1].get("watch") for stage in ("text", "image") if last[stage]}
    return {stage: watched for stage, watched in stages.items() if watched}


def make_run(arm: str, seed: int, first_seed: int, place: Place) -> dict:
    """Train what has to be trained, test, and return the run's JSON content.

    Args:
        first_seed: that of the rarity weight's baselines.
    """
    own, folder, begin, worked = (
        ARMS[arm],
        folder_of(arm, seed, place),
        time.perf_counter(),
        processor_seconds(),
    )
    if own.retests and not is_trained(folder):
        run_command(commands_of(own.retests, seed, place, None, place.data, folder)[0])
    weight = place.weight(first_seed) if RARITY_WEIGHT in own.testing else None
    training, test = commands_of(arm, seed, place, weight, place.data, folder)
    for command in (training, test):
        if command is not None:
            run_command(command)
    entry = entry_of(folder, place.test, test)
    commands = [" ".join(["python", *words]) for words in commands_of(arm, seed, place, weight) if words]
    return {
        "arm": arm,
        "seed": seed if own.script or own.retests else None,
        "train": place.train,
        "test": place.test,
        "commands": commands,
        "seconds": round(time.perf_counter() - begin, 1),
        "processor_seconds": round(processor_seconds() - worked, 1),
        "threads": int(ONE_THREAD["OMP_NUM_THREADS"]),
        "metrics": {place.test: {"mean": entry["mean"], "classes": entry["classes"]}},
        "watch": last_watch(folder) if own.script else {},
        "versions": versions(),
    }


def tasks_of(arms: Iterable[str], seeds: Sequence[int]) -> list[tuple[str, int]]:
    """[(arm, seed)] of a place, seed by seed; what is not trained once."""
    return [
        (arm, seed)
        for seed in seeds
        for arm in arms
        if ARMS[arm].script or ARMS[arm].retests or seed == seeds[0]
    ]


def run_missing(tasks: Iterable[tuple[str, int]], first_seed: int, place: Place) -> None:
    """Make and keep the runs whose JSON is not there."""
    for arm, seed in tasks:
        file = place.file(arm, seed)
        if file.is_file():
            continue
        print(f"{place.out.name}: {place.train} -> {place.test}, {arm}, seed {seed}", flush=True)
        write_text(file, json.dumps(make_run(arm, seed, first_seed, place), indent=1) + "\n")


def read_place(arms: Iterable[str], place: Place) -> dict[tuple[str, int | None], dict]:
    """{(arm, seed): JSON} of the kept runs of some arms.

    Raises:
        ValueError: a run was made by another command than its arm's is now, or with another number of threads.
    """
    found = {}
    for arm in arms:
        for file in sorted(place.out.glob(f"{arm}_seed*.json")) + sorted(place.out.glob(f"{arm}.json")):
            run = json.loads(file.read_text(encoding="utf-8"))
            if run["arm"] != arm:
                continue
            check_commands(file, run, place)
            found[arm, run["seed"]] = run
    return found


def check_commands(file: Path, run: dict, place: Place) -> None:
    """Refuse a run that cannot be compared with what would be run today."""
    typed = run["commands"][-1].split()
    weight = float(typed[typed.index("--rarity_weight") + 1]) if "--rarity_weight" in typed else None
    seed = int(typed[typed.index("--seed") + 1])
    expected = [
        " ".join(["python", *words]) for words in commands_of(run["arm"], seed, place, weight) if words
    ]
    if run["commands"] != expected:
        raise ValueError(
            f"{file} was made by\n{chr(10).join(run['commands'])}\nand not by\n{chr(10).join(expected)}\n"
            "Repeat its flags, give another --out, or delete the file"
        )
    if run["threads"] != int(ONE_THREAD["OMP_NUM_THREADS"]):
        raise ValueError(
            f"{file} was made with {run['threads']} threads, the others with one: delete the file"
        )
