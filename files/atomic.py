"""Files that appear whole or not at all, whenever the process is killed; and fingerprints of files."""

import errno
import fcntl
import hashlib
import io
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

BLOCK = 1 << 20  # bytes read at once for a fingerprint
# What `replacing` calls a file that is not finished: .<final name>.<8 random letters>.tmp
TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp")
FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is used up", errno.EFBIG: "a size limit"}


class CannotWrite(OSError):
    """A file that cannot be written, in words for the user."""


class Unfinished(io.FileIO):
    """A temporary file; `failure` is the first error of writing, which libraries in between may hide."""

    failure: OSError | None = None

    def write(self, data) -> int | None:
        try:
            return super().write(data)
        except OSError as error:
            self.failure = self.failure or error
            raise


_written = True  # whether this process writes files at all


@contextmanager
def writing_nothing() -> Iterator[None]:
    """Within, nothing that this module writes, copies or deletes reaches the disk: another process does it."""
    global _written
    before, _written = _written, False
    try:
        yield
    finally:
        _written = before


@contextmanager
def replacing(path: Path | str, needed: int | None = None, durable: bool = True) -> Iterator[IO[bytes]]:
    """A binary file to write into that takes the place of `path` in one step when the block ends without an error.

    Temporary file in the same folder (made if missing), flush, fsync, rename, fsync of the folder.

    Args:
        needed: bytes the content will have, for the message when the disk is full.
        durable: False for what can be made again: no fsync, after a power cut the file may be damaged.

    Raises:
        CannotWrite: the message says what is intact and how to go on.
    """
    path = Path(path)
    if not _written:
        with open(os.devnull, "wb") as nowhere:
            yield nowhere
        return
    with failures_explained(path, needed):
        path.parent.mkdir(parents=True, exist_ok=True)
        raw, temporary = unfinished(path)
    try:
        file = io.BufferedWriter(raw)
        try:
            yield file
        except Exception as error:
            if raw.failure is None:
                raise
            raise cannot_write(path, raw.failure, needed) from error
        with failures_explained(path, needed):
            file.flush()
            if durable:
                os.fsync(raw.fileno())
            os.chmod(temporary, 0o644)  # temporary files are private, results are not
            os.replace(temporary, path)
    finally:
        raw.close()  # not the buffer, which would try once more to write
        Path(temporary).unlink(missing_ok=True)
    if not durable:
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def unfinished(path: Path) -> tuple[Unfinished, str]:
    """A temporary file beside `path`, locked as long as it is open, so that `sweep` leaves it alone."""
    while True:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:  # a sweep may have come between the two lines
            return Unfinished(handle, "wb"), temporary
        os.close(handle)


@contextmanager
def failures_explained(path: Path, needed: int | None = None) -> Iterator[None]:
    """Turns an OSError of writing `path` into one that says what to do."""
    try:
        yield
    except CannotWrite:
        raise
    except OSError as error:
        raise cannot_write(path, error, needed) from error


def cannot_write(path: Path, error: OSError, needed: int | None = None) -> CannotWrite:
    """The error for a user whose file cannot be written: why, bytes needed and free, what is intact, how to go on."""
    reason = error.strerror or str(error)
    if error.errno in FULL:
        reason = f"{FULL[error.errno]} ({reason})"
    folder = next(one for one in (path.parent, *path.parent.parents) if one.is_dir())
    space = f"{shutil.disk_usage(folder).free} bytes are free there"
    if needed is not None:
        space = f"{needed} bytes are needed, {space}"
    intact = f"the {path.name} of before is intact" if path.exists() else "no half file is left"
    explained = CannotWrite(
        f"cannot write {path}: {reason}; {space}; {intact}. Make room or make the folder writable, then give the same "
        "command again: it goes on from the last whole file"
    )
    explained.errno = error.errno
    return explained


def keep(path: Path | str, as_path: Path | str) -> None:
    """Give a file a second name in one step, before another takes its first; a copy where links are unknown."""
    if not _written:
        return
    path, as_path = Path(path), Path(as_path)
    temporary = as_path.with_name(f".{as_path.name}.{secrets.token_hex(4)}.tmp")
    try:
        os.link(path, temporary)
        os.replace(temporary, as_path)
    except OSError:
        copy_file(path, as_path)
    finally:
        temporary.unlink(missing_ok=True)


def remove(path: Path | str) -> None:
    """Delete a file, if there is one."""
    if _written:
        Path(path).unlink(missing_ok=True)


def copy_file(path: Path | str, to: Path | str) -> None:
    """Copy a file's bytes; `to` holds all of them or what it held before."""
    with open(path, "rb") as source, replacing(to, os.fstat(source.fileno()).st_size) as file:
        shutil.copyfileobj(source, file, BLOCK)


def temporaries(folder: Path | str) -> list[Path]:
    """The files of a folder that `replacing` has not finished, by name, whoever is writing them now."""
    return [
        path
        for path in sorted(Path(folder).glob(".*.tmp"))
        if TEMPORARY.fullmatch(path.name) and not path.is_symlink() and path.is_file()
    ]


def sweep(folder: Path | str) -> list[str]:
    """Delete what killed processes left unfinished in a folder; what others write now or called so is left.

    Returns:
        the names.
    """
    swept = []
    if not _written:
        return swept
    for path in temporaries(folder):
        with open(path, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:  # somebody is writing it
                continue
            path.unlink(missing_ok=True)
            swept.append(path.name)
    return swept


def write_text(path: Path | str, text: str) -> None:
    """Replace a text file (UTF-8, line ends as given) in one step, so that a reader never sees half of it."""
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


@contextmanager
def unchanged(path: Path | str, same_name: bool = False) -> Iterator[IO[bytes]]:
    """A file opened once for fingerprint and content; nobody may write into it until the block ends.

    Another file may take its name meanwhile: what is read stays the file that was opened.

    Args:
        same_name: the name must stay too, for readers that open it once more.

    Raises:
        ValueError: it was written to, or (`same_name`) replaced.
    """
    with open(path, "rb") as file:
        before = os.fstat(file.fileno())
        yield file
        after = os.stat(path) if same_name else os.fstat(file.fileno())
    if any(getattr(before, part) != getattr(after, part) for part in ("st_ino", "st_size", "st_mtime_ns")):
        raise ValueError(
            f"{path} was {'replaced or ' * same_name}written to while it was read: wait until the copy has ended and "
            "start again"
        )


def sha256_of(file: IO[bytes]) -> str:
    """SHA-256 of an open file's bytes, in hexadecimal; the file is read in blocks and then back at its begin."""
    found = hashlib.sha256()
    file.seek(0)
    while block := file.read(BLOCK):
        found.update(block)
    file.seek(0)
    return found.hexdigest()


def sha256(path: Path | str) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return sha256_of(file)
