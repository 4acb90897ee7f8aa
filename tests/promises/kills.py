"""SIGKILL at random moments of training: every file stays readable, and the run ends as if it had never stopped."""

import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file
from semantic_fill_world import flags as fill_flags
from semantic_fill_world import triptychs, write_folders

from files.tensors import load_tensors
from promises.rows import Bench, Ended, killed_after, promise, run
from promises.world import SCRIPTS, assert_done, assert_same_run, check_files, checkpoints, make_world
from synthesis import train_semantic_fill
from synthesis.weights import OPTIMISER_FILE, checkpoints_of, find_checkpoint, read_config, read_tensors

KILLS = 200
IN_ONE_RUN = 6  # kills of a run before it is let go to its end


class Victim(NamedTuple):
    """A training command: `command(folder)` gives what a child calls."""

    name: str
    command: Callable[[Path], Callable[[], Any]]
    read: Callable[[Path], Any]  # what it leaves, as contents to compare
    check: Callable[[Path], Any]  # raises where a file is not whole


def victims(folder: Path, epochs: int = 2) -> list[Victim]:
    """The three scripts and semantic fill, at their smallest size.

    Args:
        epochs: of the image stage; semantic fill trains three steps for each.
    """
    world = make_world(folder / "world")
    pictures = write_folders(folder / "triptychs", triptychs(3))
    long = ("--image_epoch", str(epochs))
    scripts = [
        Victim(
            script,
            lambda place, script=script: world.training(script, place, *long),
            checkpoints,
            check_files,
        )
        for script in SCRIPTS
    ]
    fill = partial(fill_command, pictures, 3 * epochs)
    return [*scripts, Victim("train_semantic_fill.py", fill, fill_files, check_fill)]


def fill_command(pictures: Path, steps: int, save_path: Path) -> Callable[[], None]:
    return partial(train_semantic_fill.main, fill_flags(pictures, save_path, steps, "--save_every", "2"))


def fill_files(folder: Path) -> dict[str, Any]:
    """Contents of the last checkpoint's files."""
    last = find_checkpoint(folder)
    tensors = {path.name: load_file(path) for path in sorted(last.glob("*.safetensors"))}
    return tensors | {OPTIMISER_FILE: dict(load_tensors(last / OPTIMISER_FILE))}


def check_fill(folder: Path) -> int:
    """Raises where a file of one of a run's checkpoints is not whole."""
    for _, checkpoint in checkpoints_of(folder):
        read_config(checkpoint)
        load_tensors(checkpoint / OPTIMISER_FILE)
        for path in checkpoint.glob("*.safetensors"):
            read_tensors(path)
    return len(checkpoints_of(folder))


@promise("kills", "no unreadable file after SIGKILL; resume bitwise equal", "≥ 200 random kills")
def kills(bench: Bench) -> Iterator[tuple[str, Callable]]:
    wanted = bench.size(KILLS, 4)
    found, wholes = victims(bench.folder), {}
    number = 0
    while bench.counts["killed"] < wanted:
        victim = found[number % len(found)]
        yield (
            f"{victim.name}, seed {number}",
            partial(killed_and_resumed, victim, number, bench.folder, wholes),
        )
        number += 1


def killed_and_resumed(victim: Victim, seed: int, folder: Path, wholes: dict[str, Any]) -> Counter:
    """Kill one run up to IN_ONE_RUN times, look at its files after each, let it end, compare."""
    whole, seconds = uninterrupted(victim, folder, wholes)
    draw, run_folder = random.Random(seed), folder / f"run_{seed}"
    run_folder.mkdir()
    outcomes = Counter()
    for _ in range(IN_ONE_RUN):
        ended = killed_after(victim.command(run_folder), draw.uniform(0.02, 0.9) * seconds, run_folder)
        if ended.code == 0:
            break
        assert ended.code == -9, f"it failed by itself: {ended.text[-500:]}"
        victim.check(run_folder)
        outcomes["killed"] += 1
    if ended.code != 0:
        assert_done(run(victim.command(run_folder), run_folder))
    victim.check(run_folder)
    assert_same_run(victim.read(run_folder), whole)
    shutil.rmtree(run_folder)
    return outcomes


def uninterrupted(victim: Victim, folder: Path, wholes: dict[str, Any]) -> tuple[Any, float]:
    """(contents of the run that nobody stopped, its seconds), made once."""
    if victim.name not in wholes:
        whole = folder / f"whole_{victim.name}"
        whole.mkdir()
        ended: Ended = run(victim.command(whole), whole)
        assert_done(ended)
        wholes[victim.name] = victim.read(whole), ended.seconds
    return wholes[victim.name]
