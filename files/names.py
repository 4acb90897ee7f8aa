"""File names made from words that users chose."""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

LONGEST = (
    120  # bytes; with an ending or a temporary file's letters it fits 143, what encrypted home folders take
)


def safe_name(text: object) -> str:
    """A file name without separators or leading dots, of at most LONGEST bytes; distinct relative paths stay distinct.

    A longer one keeps its begin and ends in a digest of the whole.
    """
    ambiguous = r"[^A-Za-z0-9._/-]|_(?=[_/])|(?<=/)_"  # also underscores that would read as a separator
    escaped = re.sub(ambiguous, lambda found: f"~{ord(found[0]):x}~", str(text)).replace("/", "__")
    name = re.sub(r"^\.", "~2e~", escaped)
    if len(name) <= LONGEST:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    return f"{name[: LONGEST - len(digest) - 2]}~~{digest}"


def picture_names(file_names: Iterable[str]) -> list[str]:
    """PNG names of some images: without their endings, unless two images differ in nothing else."""
    file_names = list(file_names)
    short = [safe_name(Path(name).with_suffix("")) for name in file_names]
    whole = short if len(set(short)) == len(short) else [safe_name(name) for name in file_names]
    return [f"{name}.png" for name in whole]
