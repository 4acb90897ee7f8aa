"""What a cluster sends before it kills: the step is finished, everything saved, exit 75, and the run goes on later."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from promises.kills import Victim, uninterrupted, victims
from promises.rows import Bench, Ended, promise, run, start, wait
from promises.world import assert_done, assert_same_run

SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1")
EPOCHS = 12
SOON = 30.0  # seconds until a run must have ended
TRY_AGAIN = 75  # EX_TEMPFAIL


@promise(
    "signals", "SIGTERM, SIGINT, USR1: step finished, saved, exit 75; a second one exits at once", "< 30 s"
)
def signals(bench: Bench) -> Iterator[tuple[str, Callable]]:
    found, wholes = victims(bench.folder, EPOCHS), {}
    for number in range(bench.size(4, 1)):
        for victim in found:
            for name in SIGNALS[: bench.size(3, 1)]:
                arguments = (victim, name, number, bench.folder, wholes)
                yield f"{victim.name}, {name}, seed {number}", partial(stopped_and_resumed, *arguments)
    for victim in found[: bench.size(4, 1)]:
        yield f"{victim.name}, twice", partial(stopped_twice, victim, bench.folder, wholes)


def signalled(command: Callable, numbers: list[int], after: float, folder: Path) -> Ended:
    """A command in a child that gets signals after a time."""
    log = folder / ".output"
    child = start(command, log)
    try:
        time.sleep(after)
        for number in numbers:
            os.kill(child, number)
        return wait(child, log, SOON)
    finally:
        log.unlink(missing_ok=True)


def stopped_and_resumed(victim: Victim, name: str, seed: int, folder: Path, wholes: dict[str, Any]) -> str:
    """A run that is told to stop says so, exits with 75, and ends with the same bits when it is started again."""
    whole, seconds = uninterrupted(victim, folder, wholes)
    place = folder / f"signal_{victim.name}_{name}_{seed}"
    place.mkdir()
    after = random.Random(f"{victim.name} {name} {seed}").uniform(0.4, 0.8) * seconds
    ended = signalled(victim.command(place), [getattr(signal, name)], after, place)
    if ended.code != 0:  # it was still training
        assert ended.code == TRY_AGAIN, f"exit {ended.code}: {ended.text[-300:]}"
        assert name in (place / "train.log").read_text(encoding="utf-8"), "the log does not name the signal"
        victim.check(place)
        assert_done(run(victim.command(place), place))
    assert_same_run(victim.read(place), whole)
    shutil.rmtree(place)
    return "resumed" if ended.code else "had ended"


def stopped_twice(victim: Victim, folder: Path, wholes: dict[str, Any]) -> str:
    """The second signal ends it at once; every file is whole."""
    _, seconds = uninterrupted(victim, folder, wholes)
    place = folder / f"twice_{victim.name}"
    place.mkdir()
    both = [signal.SIGTERM, signal.SIGUSR1]  # the same one twice within 0.1 s counts once
    ended = signalled(victim.command(place), both, 0.6 * seconds, place)
    victim.check(place)
    assert ended.code in (0, *(128 + one for one in both)), f"exit {ended.code}: {ended.text[-300:]}"
    shutil.rmtree(place)
    return "ended at once" if ended.code else "had ended"
