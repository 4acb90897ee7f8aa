"""What can be deleted of a run folder without losing a result: begun epochs, temporary files, numbered checkpoints."""

from pathlib import Path
from typing import NamedTuple

from files.atomic import sweep, temporaries
from run_folder.checkpoints import numbered_checkpoints
from run_folder.kinds import BASELINE, CROSS_ATTENTION, EPOCH_FILE, FINAL_MODEL
from run_folder.overview import HISTORY
from run_folder.session import places_of_run
from utils import lock_run


class Leftover(NamedTuple):
    """A file that can go, and why."""

    path: Path
    size: int
    why: str


def leftovers(folder: Path, keep_last: int | None = None, begun_epoch: bool = False) -> list[Leftover]:
    """What can be deleted of a run folder; a final file never is.

    Args:
        keep_last: how many numbered checkpoints stay, the newest; None: all of them. Where the final checkpoint is
            missing all stay, because the last one by number stands for it.
        begun_epoch: also the state inside an epoch of a run that is not finished: the epoch is trained again.

    Raises:
        ValueError: `keep_last` is below 1; a numbered checkpoint stands in where the final one is damaged.
    """
    if keep_last is not None and keep_last < 1:
        raise ValueError(
            f"--keep_last {keep_last}: expected 1 or more, the last numbered checkpoint stands in for a damaged one"
        )
    found = [
        (path, "temporary file of a killed process")
        for place in places_of_run(folder)
        for path in temporaries(place)
    ]
    begun = folder / EPOCH_FILE
    if begun.is_file() and is_finished(folder, begun):
        found.append((begun, "state inside an epoch that is finished"))
    elif begun.is_file() and begun_epoch:
        found.append((begun, "state inside an epoch: it is trained again"))
    for kind in (BASELINE, CROSS_ATTENTION) if keep_last is not None else ():
        if (folder / f"{kind.image_prefix}.pth").is_file():
            numbered = numbered_checkpoints(folder, f"{kind.image_prefix}_")
            found += [
                (path, f"numbered checkpoint, not of the last {keep_last}")
                for _, path in numbered[:-keep_last]
            ]
    return [Leftover(path, path.stat().st_size, why) for path, why in found]


def is_finished(folder: Path, begun: Path) -> bool:
    """Whether a run's end was written after the state inside an epoch."""
    ends = [folder / name for name in (HISTORY, FINAL_MODEL)]
    return any(end.is_file() and end.stat().st_mtime_ns > begun.stat().st_mtime_ns for end in ends)


def delete(folder: Path, found: list[Leftover]) -> int:
    """Delete a run's leftovers while nobody works in its folder; returns the bytes freed.

    Raises:
        RuntimeError: another process is working in it.
    """
    lock = lock_run(folder)
    try:
        freed = 0
        for one in found:
            if one.path.suffix == ".tmp":
                freed += one.size * (one.path.name in sweep(one.path.parent))
            elif one.path.is_file():
                one.path.unlink()
                freed += one.size
        return freed
    finally:
        lock.release()
