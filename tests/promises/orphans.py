"""Killed in the middle of a save: what lies there unfinished is gone after the next start."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from promises.kills import Victim, victims
from promises.rows import Bench, promise, run
from promises.world import assert_done, check_files, make_world

EVENTS = ("fsync", "replace")  # of os: what a save does with a file that is written but not there yet


@promise("orphans", "orphans of interrupted saves cleaned at the next start", "0 left")
def orphans(bench: Bench) -> Iterator[tuple[str, Callable]]:
    found = [*victims(bench.folder), tester(bench.folder)]
    for number in range(bench.size(16, 1)):
        for victim in found:
            yield f"{victim.name}, event {number + 1}", partial(swept, victim, number + 1, bench.folder)


def tester(folder: Path) -> Victim:
    """test.py of a run, which writes metrics, scores and pictures."""
    world = make_world(folder / "tested")
    whole = folder / "whole_run"
    assert_done(run(world.training("train.py", whole), folder))

    def command(place: Path) -> Callable:
        if not (place / "image_adapter.pth").exists():
            shutil.copytree(whole, place, dirs_exist_ok=True)
        return world.testing(place, "--visualize")

    return Victim("test.py", command, check_files, check_files)


def dying_at(command: Callable, event: int) -> Callable:
    """A command that is killed just before its n-th EVENT."""

    def dies():
        count = 0

        def counted(function, *arguments, **named):
            nonlocal count
            count += 1
            if count == event:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **named)

        for name in EVENTS:
            setattr(os, name, partial(counted, getattr(os, name)))
        command()

    return dies


def unfinished(folder: Path) -> list[str]:
    """What a save has begun and not ended."""
    found = [path for path in folder.rglob(".*") if path.name.endswith(".tmp")]
    found += folder.rglob(".checkpoint-*")
    return sorted(str(path.relative_to(folder)) for path in found)


def swept(victim: Victim, event: int, folder: Path) -> str:
    """Kill at an event, look, start again, look."""
    place = folder / f"orphan_{victim.name}_{event}"
    place.mkdir()
    ended = run(dying_at(victim.command(place), event), folder)
    if ended.code == 0:
        shutil.rmtree(place)
        return "ended before the event"
    assert ended.code == -signal.SIGKILL, ended.text[-500:]
    left = unfinished(place)
    assert_done(run(victim.command(place), folder))
    assert not unfinished(place), f"left: {unfinished(place)}"
    victim.check(place)
    shutil.rmtree(place)
    return "swept" if left else "killed, nothing left"
