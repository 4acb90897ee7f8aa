"""What a study costs before it is begun: every arm's steps and tests timed, hours and GB, and what fits into the time.

A stage is timed over the second of two passes of a few steps (the first warms up; how many: the protocol's
`timed_steps`), a test as the difference between few and more pictures, so that starting does not count with every
picture. Pictures are the training set's.
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dataset.constants import DATA_PATH, DOMAINS, REAL_NAMES
from dataset.jsonl import Sample, write_rows
from files.atomic import write_text
from files.command import Refusal
from run_folder.flags import parse
from run_folder.settings import BASELINE_GROUPS
from studies.arm_runs import ROOT
from studies.real_study.protocol import (
    ARMS,
    DROPPED_FIRST,
    TIMED_IMAGE,
    TIMED_TEXT,
    Schedule,
    groups_of,
    is_trained,
    trained_arm,
    training_flags,
)
from studies.real_study.runs import Study, epochs_tested

FEW, MORE = 4, 24  # pictures of the timed tests
HOUR = 3600


class Cost(NamedTuple):
    """What an arm takes: seconds of a step of each stage, of starting a test and of a picture in it; GB."""

    text_step: float
    image_step: float
    start: float
    picture: float
    memory: float
    checkpoint: float


class Sizes(NamedTuple):
    """Pictures of the training sets and of all test sets, and pictures per step of each stage."""

    pictures: dict[str, int]
    text_batch: int
    image_batch: int


def sizes_of(study: Study, data: dict[str, dict[str, Any]]) -> Sizes:
    """Sizes from what binding.data_of found and the backbone's batch sizes."""
    training = parse("", BASELINE_GROUPS, ["--model_name", study.protocol.model_name]).training
    pictures = {name: own["normal"] + own["anomalous"] for name, own in data.items()}
    return Sizes(pictures, training.text_batch_size, training.image_batch_size)


def declare_parts(
    study: Study, train: str, samples: Sequence[Sample], data_root: Path, out: Path, sizes: Sizes
) -> Path:
    """Declare parts of a training set, as many rows as are timed, in a `--dataset_config`; returns the file.

    Rows are repeated where the set has fewer.
    """
    steps = study.protocol.timed_steps
    counts = {"TimedText": steps * sizes.text_batch, "TimedImage": steps * sizes.image_batch}
    counts |= {"TimedFew": FEW, "TimedMore": MORE}
    entries = {}
    for name, count in counts.items():
        stride = max(1, len(samples) // count)
        chosen = [samples[number * stride % len(samples)] for number in range(count)]
        write_rows([row_of(one, data_root) for one in chosen], out / f"{name}.jsonl")
        classes = {one.class_name: REAL_NAMES[train][one.class_name] for one in chosen}
        entries[name] = {
            "path": DATA_PATH[train],
            "domain": DOMAINS[train],
            "classes": classes,
            "metadata": f"{name}.jsonl",
        }
    write_text(out / "parts.json", json.dumps(entries, indent=1) + "\n")
    return out / "parts.json"


def row_of(sample: Sample, data_root: Path) -> dict[str, Any]:
    """A row of a metadata file, its paths relative to the data root."""
    row = {"image_path": sample.file_name, "class_name": sample.class_name, "label": sample.label}
    masks = [os.path.relpath(path, data_root) for path in sample.mask_paths]
    return row | ({"mask_path": masks} if masks else {})


def timed(study: Study, file: Path, commands: Sequence[tuple[str, list[str]]]) -> dict[str, Any]:
    """Seconds of commands in one process and its peak memory."""
    words = [sys.executable, "-m", "studies.real_study.timing", str(file), *map(json.dumps, commands)]
    ended = subprocess.run(words, cwd=ROOT, stdout=subprocess.DEVNULL, env=os.environ | study.environment)
    if ended.returncode:
        raise Refusal(f"timing {file.stem}: stopped with exit status {ended.returncode}, see the lines above")
    return json.loads(file.read_text(encoding="utf-8"))


def seconds_of_step(folder: Path, stage: str, steps: int) -> float:
    """Seconds of a step in the last pass of a timed run."""
    loops = json.loads((folder / "history.json").read_text(encoding="utf-8"))["loops"]
    return loops[-1][stage][-1]["seconds"] / steps


def time_arm(study: Study, arm: str, parts: Path, out: Path) -> Cost:
    """Time an arm's stages and its test; one that trains nothing by its test alone."""
    common = without_config(study.common)
    places = ["--dataset_config", str(parts), "--seed", "111"]
    steps, memory, folder = {"text": 0.0, "image": 0.0}, 0.0, out / "test" / arm
    for stage, part, schedule in (("text", "TimedText", TIMED_TEXT), ("image", "TimedImage", TIMED_IMAGE)):
        if ARMS[arm].script is None:
            break
        folder = out / stage / arm
        words = [*training_flags(arm, schedule), *study.training, *common, *places]
        words += ["--dataset", part, "--save_path", str(folder)]
        took = timed(study, out / stage / f"{arm}.json", [(ARMS[arm].script, words)])
        steps[stage] = seconds_of_step(folder, stage, study.protocol.timed_steps)
        memory = max(memory, took["peak_gb"])
    tests = [
        ["--dataset", part, "--save_path", str(folder), *common, *places, *ARMS[arm].testing]
        for part in ("TimedFew", "TimedFew", "TimedMore")  # the first one warms up
    ]
    took = timed(study, out / "test" / f"{arm}.json", [("test.py", words) for words in tests])
    _, few, more = took["seconds"]
    picture = (more - few) / (MORE - FEW) if more > few else more / MORE
    checkpoint = max((file.stat().st_size for file in folder.glob("*.pth")), default=0) / 1e9
    start = max(0.0, few - FEW * picture)
    return Cost(steps["text"], steps["image"], start, picture, max(memory, took["peak_gb"]), checkpoint)


def without_config(common: Sequence[str]) -> list[str]:
    """The common flags without a dataset config: the timed parts are declared by one of their own."""
    words = list(common)
    if "--dataset_config" in words:
        place = words.index("--dataset_config")
        del words[place : place + 2]
    return words


def passes_of(arm: str, schedule: Schedule) -> tuple[int, int]:
    """(text, image) passes over the training set that an arm takes."""
    return (schedule.text, schedule.image) if ARMS[arm].script else (0, 0)


def seconds_of_run(study: Study, arm: str, train: str, cost: Cost, sizes: Sizes) -> float:
    """Seconds of one run of an arm with all its tests."""
    text, image = passes_of(arm, study.protocol.schedule)
    pictures = sizes.pictures[train]
    seconds = text * math.ceil(pictures / sizes.text_batch) * cost.text_step
    seconds += image * math.ceil(pictures / sizes.image_batch) * cost.image_step
    tested = [sizes.pictures[name] for name in study.protocol.directions[train]]
    tests = len(epochs_tested(study, arm))
    return seconds + tests * sum(cost.start + count * cost.picture for count in tested)


def hours_of(
    study: Study, arms: Sequence[str], seeds: Sequence[int], costs: dict[str, Cost], sizes: Sizes
) -> float:
    """Hours of one device for some arms; tests of another arm's run cost what that arm's tests do."""
    total = 0.0
    for train, _, group in groups_of(study.protocol.directions, arms, seeds):
        for arm in group:
            total += seconds_of_run(study, arm, train, costs[trained_arm(arm)], sizes)
    return total / HOUR


def arms_that_fit(
    study: Study, seeds: Sequence[int], costs: dict[str, Cost], sizes: Sizes, hours: float | None
) -> tuple[str, ...]:
    """The arms that `hours` of one device suffice for, dropped in the declared order; all of them without a limit.

    Raises:
        Refusal: not even the arms that are never dropped fit.
    """
    arms = list(study.protocol.arms)
    for group in DROPPED_FIRST if hours is not None else ():
        if hours_of(study, arms, seeds, costs, sizes) <= hours:
            break
        arms = [arm for arm in arms if arm not in group]
    needed = hours_of(study, arms, seeds, costs, sizes)
    if hours is not None and needed > hours:
        raise Refusal(
            f"--hours {hours:g}: {', '.join(arms)} alone take {needed:.1f} hours; give more hours, fewer --seeds or "
            "--train, or share them out with --shard over several devices (--hours counts all of them together)"
        )
    return tuple(arms)


def plan_text(
    study: Study, seeds: Sequence[int], costs: dict[str, Cost], sizes: Sizes, kept: Sequence[str]
) -> str:
    """Markdown: what every arm costs, what is dropped, and the sum."""
    lines = ["| arm | s per step, stage 1 | stage 2 | s per picture tested | peak GB | hours | |"]
    lines.append("|--|--|--|--|--|--|--|")
    for arm in study.protocol.arms:
        cost = costs[trained_arm(arm)]
        own = sum(
            seconds_of_run(study, arm, train, cost, sizes) * (len(seeds) if is_trained(arm) else 1)
            for train in study.protocol.directions
        )
        steps = f"{cost.text_step:.3f} | {cost.image_step:.3f}" if ARMS[arm].script else "– | –"
        dropped = "" if arm in kept else "dropped"
        lines.append(
            f"| {arm} | {steps} | {cost.picture:.3f} | {cost.memory:.1f} | {own / HOUR:.2f} | {dropped} |"
        )
    runs = [arm for arm in kept if ARMS[arm].script]
    many = len(seeds) * len(study.protocol.directions)
    disk = sum(costs[arm].checkpoint * (study.protocol.schedule.image + 2) * many for arm in runs)
    hours = hours_of(study, kept, seeds, costs, sizes)
    memory = max(costs[trained_arm(arm)].memory for arm in kept)
    lines += [
        "",
        f"{hours:.1f} hours of one device, {memory:.1f} GB of its memory, {disk:.1f} GB of checkpoints",
    ]
    return "\n".join(lines) + "\n"
