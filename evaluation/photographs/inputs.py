"""Which pictures a command line names: files, folders and patterns."""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from dataset.folders import Scan
from files.names import picture_names


def given_pictures(inputs: Sequence[str], out: Path | str) -> tuple[list[Path], list[str]]:
    """The pictures of files, folders (with the folders in them) and patterns such as 'photos/*.jpg', each once.

    A folder gives its files with a picture's ending; a file that is named itself is taken whatever its ending. What
    lies in `out` is left out, so that a prediction never scores its own heatmaps.

    Returns:
        (the pictures, sentences about what folders hold beside them).

    Raises:
        FileNotFoundError: an input names nothing, or all of them no picture.
    """
    found: dict[str, Path] = {}
    notes = []
    for one in inputs:
        if os.path.isdir(one):
            pictures, note = pictures_below(Path(one), Path(out))
            notes += note
        elif os.path.lexists(one):
            pictures = [Path(one)]
        elif glob.has_magic(one):
            matches = sorted(glob.glob(one, recursive=True))
            pictures = [
                Path(path) for path in matches if not os.path.isdir(path) and not is_inside(path, out)
            ]
        else:
            raise FileNotFoundError(f"--input {one}: no such file or folder; correct the path")
        for path in pictures:
            found.setdefault(os.path.abspath(path), path)
        if not pictures:
            raise FileNotFoundError(
                f"--input {one}: there is no picture; name a file, a folder of pictures or a pattern"
            )
    return list(found.values()), notes


def pictures_below(folder: Path, out: Path) -> tuple[list[Path], list[str]]:
    """(the pictures of a folder and of all folders below it by name, a sentence where something is left out)."""
    scan = Scan(folder)
    pictures = [path for one in folders_below(scan, folder, out) for path in scan.pictures(one)]
    notes = (
        [f"{folder}: {len(pictures)} pictures; {'; '.join(scan.left_out())}"] if scan.is_remarkable else []
    )
    return pictures, notes


def folders_below(scan: Scan, folder: Path, out: Path) -> Iterator[Path]:
    """The folder and all below it; each once, however links lead."""
    seen, waiting = set(), [folder]
    while waiting:
        one = waiting.pop(0)
        real = os.path.realpath(one)
        if real in seen or (one != folder and is_inside(one, out)):
            continue
        seen.add(real)
        yield one
        waiting += scan.folders(one)


def is_inside(path: Path | str, folder: Path | str) -> bool:
    """Whether a path is a folder or lies in it."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def names_of(pictures: Sequence[Path]) -> list[str]:
    """PNG names for results, different for different pictures: their paths below the folder that holds them all."""
    paths = [os.path.abspath(path) for path in pictures]
    common = os.path.commonpath([os.path.dirname(path) for path in paths])
    return picture_names([os.path.relpath(path, common) for path in paths])
