"""What annotations of all kinds share: what is asked for, outlines of defects, and the rows made of them."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dataset.folders import Scan
from dataset.image_files import Header, header_of
from dataset.prepare.polygons import write_mask
from files.text import shown

TEST = "test"


class Own(NamedTuple):
    """What is said of an own data set on the command line."""

    class_name: str  # of a set without folders of classes
    annotations: Path | None  # CSV, TSV or JSON file, or YOLO's folder of text files; None to look for them
    split: str | None  # whose pictures are taken; None for `test` where there is one, else all
    masks: Path  # folder that masks made from outlines are written to


class Outlines(NamedTuple):
    """What annotations say of a picture."""

    masks: list[np.ndarray]  # [H, W] bool, one per defect that is outlined
    without: int  # defects without an outline


def chosen_split(splits: Sequence[str], wanted: str | None) -> str | None:
    """The split that is taken, lower case: the wanted one, else `test` where there is one; None for all.

    Raises:
        ValueError: the wanted one is not there.
    """
    there = sorted({name.strip().lower() for name in splits})
    if wanted is not None and wanted.lower() not in there:
        raise ValueError(f"--split is {wanted!r}: there are {', '.join(there) or 'no splits'}")
    return wanted.lower() if wanted is not None else TEST if TEST in there else None


def names_split(path: str, split: str) -> bool:
    """Whether a path has the split's name as a word, in whatever capitals."""
    return re.search(rf"(^|[^a-z]){re.escape(split.lower())}([^a-z]|$)", path.lower()) is not None


def points_of(numbers: Sequence[float]) -> np.ndarray:
    """[x1, y1, x2, y2, …] as points [n, 2]. Raises ValueError for fewer than three, or half a point."""
    values = np.asarray(numbers, np.float64)
    if values.ndim != 1 or len(values) < 6 or len(values) % 2 or not np.isfinite(values).all():
        raise ValueError(f"{shown(numbers)} is no polygon: expected x and y of three points or more")
    return values.reshape(-1, 2)


def outlined_row(path: str, found: Outlines, own: Own) -> dict:
    """The row of a picture whose defects are outlined; its mask is written."""
    row = {"image_path": path, "label": int(bool(found.masks or found.without)), "class_name": own.class_name}
    if found.masks and not found.without:
        write_mask(own.masks / f"{path}.png", np.logical_or.reduce(found.masks))
        row["mask_path"] = f"{own.masks.name}/{path}.png"
    return row


def header_or_none(scan: Scan, path: str, source: Path) -> Header | None:
    """A picture's header; None, and counted, where it cannot be read.

    Args:
        path: relative to the data set's folder.
        source: the annotations.
    """
    try:
        return header_of("image", str(scan.folder / path), str(source))
    except ValueError:
        scan.leave_out("that cannot be read", scan.folder / path)
        return None


def note_unknown_places(scan: Scan, rows: Sequence[dict]) -> None:
    """Say how many pictures have a defect that nobody outlined; then the place of all their defects is unknown."""
    bare = sum(bool(row["label"]) and "mask_path" not in row for row in rows)
    if bare:
        have = "picture has" if bare == 1 else "pictures have"
        scan.notes.append(
            f"{bare} {have} a defect without an outline (a box, a point): anomalous, the place unknown"
        )
