"""The same seed on the same machine gives the same bits, whatever the number of loader processes."""

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from promises.kills import Victim, uninterrupted, victims
from promises.orphans import dying_at
from promises.rows import Bench, promise, run
from promises.world import assert_done, assert_same_run


@promise("same_seed", "same seed, same machine bitwise equal; workers; resume with other workers", "stays 0")
def same_seed(bench: Bench) -> Iterator[tuple[str, Callable]]:
    found, wholes = victims(bench.folder), {}
    for victim in found[: bench.size(4, 2)]:
        for workers in ("2", "0")[: bench.size(2, 1)]:
            yield (
                f"{victim.name}, {workers} workers",
                partial(repeated, victim, workers, bench.folder, wholes),
            )
        yield f"{victim.name}, resumed", partial(resumed, victim, bench.folder, wholes)


def with_workers(victim: Victim, place: Path, workers: str) -> Callable:
    """The victim's command with loader processes."""
    command = victim.command(place)
    return partial(command.func, [*command.args[0], "--workers", workers])


def repeated(victim: Victim, workers: str, folder: Path, wholes: dict[str, Any]) -> None:
    whole, _ = uninterrupted(victim, folder, wholes)
    place = folder / f"again_{victim.name}_{workers}"
    place.mkdir()
    assert_done(run(with_workers(victim, place, workers), folder))
    same_but_workers(victim.read(place), whole)
    shutil.rmtree(place)


def resumed(victim: Victim, folder: Path, wholes: dict[str, Any]) -> None:
    """Stopped with two loader processes, gone on with none."""
    whole, _ = uninterrupted(victim, folder, wholes)
    place = folder / f"resumed_{victim.name}"
    place.mkdir()
    run(dying_at(with_workers(victim, place, "2"), 4), folder)
    assert_done(run(victim.command(place), folder))
    same_but_workers(victim.read(place), whole)
    shutil.rmtree(place)


def same_but_workers(one: dict[str, Any], other: dict[str, Any]) -> None:
    """`assert_same_run`; the setting itself may differ."""
    for contents in (one, other):
        for content in contents.values():
            if isinstance(content, dict) and "settings" in content:
                content["settings"] = {
                    key: value for key, value in content["settings"].items() if key != "workers"
                }
    assert_same_run(one, other)
