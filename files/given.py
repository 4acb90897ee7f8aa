"""What a file of a user's folder must be before it is opened: regular, and inside the folder that was named."""

import os
import stat
from pathlib import Path

from files.foreign_paths import has_control

KINDS = {
    stat.S_IFIFO: "a named pipe, on which a reader waits for ever",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def require_regular(path: Path | str, source: str = "") -> None:
    """Look at a path without opening it; a link counts as what it leads to.

    Args:
        source: where the path comes from, for the message.

    Raises:
        FileNotFoundError: there is nothing, or a link that leads to nothing.
        ValueError: it is no regular file.
    """
    begin = f"{source}: " if source else ""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        what = "a link that leads to no file" if os.path.islink(path) else "no file"
        raise FileNotFoundError(
            f"{begin}{str(path)!r} is {what} ({error.strerror}): correct or delete it"
        ) from error
    if not stat.S_ISREG(mode):
        what = KINDS.get(stat.S_IFMT(mode), "no regular file")
        raise ValueError(f"{begin}{str(path)!r} is {what}: put a regular file there, or delete it")


def can_name_a_file(value: object) -> bool:
    """Whether a value from somebody's JSON is a path in UTF-8 without control characters."""
    try:
        return isinstance(value, str) and bool(value.encode()) and not has_control(value)
    except (
        UnicodeEncodeError
    ):  # JSON can spell half of a surrogate pair, and disks hold names that are not UTF-8
        return False


def require_inside(path: Path | str, folder: Path | str) -> None:
    """Raises ValueError where a path leads out of a folder, itself or through a link; the folder may be a link."""
    real = os.path.realpath(path)
    if not real.startswith(os.path.join(os.path.realpath(folder), "")):
        raise ValueError(
            f"{str(path)!r} leads to {real!r}, outside {str(folder)!r}: copy the file into that folder, or name the "
            "folder that holds both"
        )
