"""File names made from words that users chose."""

import re
from collections.abc import Iterable
from pathlib import Path


def safe_name(text: object) -> str:
    """A file name without separators or leading dots; distinct relative paths stay distinct."""
    ambiguous = r"[^A-Za-z0-9._/-]|_(?=[_/])|(?<=/)_"  # also underscores that would read as a separator
    escaped = re.sub(ambiguous, lambda found: f"~{ord(found[0]):x}~", str(text)).replace("/", "__")
    return re.sub(r"^\.", "~2e~", escaped)


def picture_names(file_names: Iterable[str]) -> list[str]:
    """PNG names of some images: without their endings, unless two images differ in nothing else."""
    file_names = list(file_names)
    short = [safe_name(Path(name).with_suffix("")) for name in file_names]
    whole = short if len(set(short)) == len(short) else [safe_name(name) for name in file_names]
    return [f"{name}.png" for name in whole]
