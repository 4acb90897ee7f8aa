"""Files that appear whole or not at all, whenever the process is killed; and fingerprints of files."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

BLOCK = 1 << 20  # bytes read at once for a fingerprint


@contextmanager
def replacing(path: Path | str) -> Iterator[IO[bytes]]:
    """A binary file to write into that takes the place of `path` in one step when the block ends without an error.

    Temporary file in the same folder (made if missing), flush, fsync, rename, fsync of the folder.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # temporary files are private, results are not
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_text(path: Path | str, text: str) -> None:
    """Replace a text file (UTF-8, line ends as given) in one step, so that a reader never sees half of it."""
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


def sha256(path: Path | str) -> str:
    """SHA-256 of a file's bytes, in hexadecimal; the file is read in blocks."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            found.update(block)
    return found.hexdigest()
