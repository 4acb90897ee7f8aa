"""No room and no right to write: the error says path, need and way on; what was there is intact; the run goes on."""

import errno
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from promises.kills import Victim, uninterrupted, victims
from promises.orphans import unfinished
from promises.rows import Bench, promise, run
from promises.world import assert_done, assert_refused, assert_same_run

NOBODY = 65534
LIMITS = (0, 100, 3000, 20000)  # bytes a file may have


@promise("full_disk", "disk full, read-only: path, bytes, what is intact, how to go on", "0 without")
def full_disk(bench: Bench) -> Iterator[tuple[str, Callable]]:
    found, wholes = victims(bench.folder), {}
    for victim in found[: bench.size(4, 2)]:
        for limit in LIMITS[: bench.size(4, 2)]:
            yield (
                f"{victim.name}, files of {limit} bytes",
                partial(limited, victim, limit, bench.folder, wholes),
            )
        for number in (errno.ENOSPC, errno.EDQUOT, errno.EIO)[: bench.size(3, 1)]:
            for event in range(bench.size(3, 1)):
                yield (
                    f"{victim.name}, {errno.errorcode[number]} at file {event + 1}",
                    partial(failing, victim, number, event, bench.folder, wholes),
                )
        yield f"{victim.name}, read-only folder", partial(read_only, victim, bench.folder, wholes)


def go_on(victim: Victim, place: Path, folder: Path, wholes: dict[str, Any]) -> None:
    """After the fault everything is whole, and the same command ends the run as if nothing had happened."""
    victim.check(place)
    whole, _ = uninterrupted(victim, folder, wholes)
    assert_done(run(victim.command(place), folder))
    assert not unfinished(place), f"left: {unfinished(place)}"
    assert_same_run(victim.read(place), whole)
    shutil.rmtree(place)


def new_place(folder: Path, name: str) -> Path:
    place = folder / name
    place.mkdir()
    return place


def limited(victim: Victim, limit: int, folder: Path, wholes: dict[str, Any]) -> str:
    """Files cannot grow beyond a size, as on a full disk."""
    place = new_place(folder, f"limit_{victim.name}_{limit}")

    def small():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        # The output of the command is a file too: only the run's own folder is small.
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        victim.command(place)()

    ended = run(small, folder)
    assert ended.code > 0, f"exit {ended.code}"
    assert not any(part.endswith(".tmp") for part in unfinished(place)), unfinished(place)
    go_on(victim, place, folder, wholes)
    return "refused and gone on"


def failing(victim: Victim, number: int, event: int, folder: Path, wholes: dict[str, Any]) -> str:
    """The n-th file of a run cannot be written to the disk."""
    place = new_place(folder, f"error_{victim.name}_{number}_{event}")

    def fails():
        fsync, count = os.fsync, 0

        def counted(handle):
            nonlocal count
            count += 1
            if count == 2 * event + 1:  # a file, then its folder
                raise OSError(number, os.strerror(number))
            return fsync(handle)

        os.fsync = counted
        victim.command(place)()

    ended = run(fails, folder)
    assert_refused(ended, "cannot write", str(place), os.strerror(number), "bytes are free", "same command")
    go_on(victim, place, folder, wholes)
    return "refused and gone on"


def read_only(victim: Victim, folder: Path, wholes: dict[str, Any]) -> str:
    """A folder that may not be written to."""
    place = new_place(folder, f"read_only_{victim.name}")
    place.chmod(0o555)

    def without_rights():
        if os.getuid() == 0:  # who may write everywhere
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        victim.command(place)()

    for path in (folder, *folder.rglob("*")):
        if path.is_dir() and path != place:
            path.chmod(0o755)
    ended = run(without_rights, folder)
    place.chmod(0o755)
    assert_refused(ended, "cannot write", str(place), "same command")
    go_on(victim, place, folder, wholes)
    return "refused and gone on"
