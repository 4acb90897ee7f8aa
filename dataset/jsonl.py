"""Metadata files: one JSON object a line, read and checked before anything is trained on it.

Keys: `image_path`, `class_name`, `label` (0 normal, 1 anomalous; int or float) and, where the label is 1, `mask_path`.
An anomalous image without `mask_path` has its defect in an unknown place; an image without `label` is only scored.
"""

import json
import logging
import os
from pathlib import Path
from typing import NamedTuple

from dataset.paths import DataFolder, PathOutsideDataRoot
from files.atomic import write_text

PROBLEMS_SHOWN = 5


class Sample(NamedTuple):
    """One checked row. Paths are absolute or relative to the working folder, as the data root is."""

    image_path: str
    mask_path: str | None  # the first mask; None for normal images, and where the defect's place is unknown
    label: int | None  # 0 or 1; None: nobody knows
    class_name: str
    file_name: str  # relative to the data root
    source: str  # metadata file:line, for errors at reading time
    more_masks: tuple[str, ...] = ()  # united with the first

    @property
    def mask_paths(self) -> tuple[str, ...]:
        """All masks of the picture, whose union is anomalous."""
        return () if self.mask_path is None else (self.mask_path, *self.more_masks)

    @property
    def mask_known(self) -> bool:
        """Whether it is known for every pixel if it is normal: a normal image, or an anomalous one with a mask."""
        return self.label == 0 or self.mask_path is not None


class _Problem(Exception):
    """What is wrong with one row; collected, never seen by callers."""

    def __init__(self, text: str, missing_file: bool = False):
        super().__init__(text)
        self.missing_file = missing_file


def read_rows(path: str | os.PathLike) -> list[tuple[str, dict]]:
    """(file:line, row) for each line that is not blank. Raises FileNotFoundError; ValueError if a line is no object."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no metadata file {str(path)!r}: expected one JSON object a line (.jsonl)")
    rows, problems = [], []
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
        if line.strip():
            source = f"{path}:{number}"
            try:
                rows.append((source, _parse(line)))
            except _Problem as problem:
                problems.append((source, problem))
    _raise_collected(problems)
    return rows


def check_rows(
    rows: list[tuple[str, dict]], classes: list[str], data: DataFolder, source: str, logger: logging.Logger
) -> list[Sample]:
    """Rows as samples, in their order.

    Raises ValueError (FileNotFoundError if nothing but files is missing) naming up to five problems with file, line,
    field, value, expectation and remedy; ValueError if `source` holds no row. Images listed twice are warned about.
    """
    if not rows:
        raise ValueError(
            f"{source}: no rows: expected one JSON object a line with image_path, label, class_name"
        )
    samples, problems = [], []
    for line, row in rows:
        try:
            samples.append(_check_row(row, line, classes, data))
        except _Problem as problem:
            problems.append((line, problem))
    _raise_collected(problems)
    _warn_of_duplicates(samples, source, logger)
    return samples


def write_rows(rows: list[dict], path: Path) -> None:
    """Write a metadata file; it appears complete or not at all."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _parse(line: bytes) -> dict:
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise _Problem(
            f"not JSON ({error}): expected one object a line, {line[:80]!r} is none; correct it"
        ) from error
    if not isinstance(row, dict):
        raise _Problem(f'expected a JSON object, got {_shown(row)}: write {{"image_path": …, "label": …, …}}')
    return row


def _check_row(row: dict, source: str, classes: list[str], data: DataFolder) -> Sample:
    missing = [key for key in ("image_path", "class_name") if key not in row]
    if missing:
        raise _Problem(
            f"key {missing[0]!r} is missing: every row needs image_path and class_name, and label where it is known; "
            "add it"
        )
    label, class_name = row.get("label"), row["class_name"]
    if isinstance(label, bool) or not isinstance(label, int | float | None) or label not in (0, 1, None):
        raise _Problem(
            f"label is {_shown(label)}: expected the number 0 (normal) or 1 (anomalous), or no label; correct it"
        )
    if class_name not in classes:
        raise _Problem(
            f"class_name is {_shown(class_name)}: the dataset's classes are {', '.join(classes)}; "
            "correct it, or declare your own dataset with --dataset_config FILE"
        )
    image_path = _find(row, "image_path", data)
    mask_path = None  # a mask named for a normal image is not read: normal images have zero masks
    if row.get("mask_path") and label != 0:
        if label is None:
            raise _Problem("mask_path is given but label is missing: add label 1, or take mask_path out")
        mask_path = _find(row, "mask_path", data)
    label = None if label is None else int(label)
    return Sample(image_path, mask_path, label, class_name, data.relative(image_path), source)


def _find(row: dict, field: str, data: DataFolder) -> str:
    value = row[field]
    if not isinstance(value, str) or not _can_name_a_file(value):
        raise _Problem(f"{field} is {_shown(value)}: expected a path; correct it")
    try:
        return data.find(value)
    except PathOutsideDataRoot as error:
        remedy = "keep the files under the data root, or pass the folder that holds them as --data_root"
        raise _Problem(f"{field} {_shown(value)} {error}; {remedy}") from error
    except FileNotFoundError as error:
        remedy = "copy the file there, correct the path, or pass another --data_root"
        raise _Problem(f"{field} {_shown(value)} {error}; {remedy}", missing_file=True) from error


def _can_name_a_file(value: str) -> bool:
    try:
        return bool(value) and b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:  # JSON can spell half of a surrogate pair
        return False


def _raise_collected(problems: list[tuple[str, _Problem]]) -> None:
    if not problems:
        return
    lines = [f"{source}: {problem}" for source, problem in problems[:PROBLEMS_SHOWN]]
    if len(problems) > PROBLEMS_SHOWN:
        lines.append(f"… and {len(problems) - PROBLEMS_SHOWN} more problems")
    only_files = all(problem.missing_file for _, problem in problems)
    raise (FileNotFoundError if only_files else ValueError)("\n".join(lines))


def _warn_of_duplicates(samples: list[Sample], source: str, logger: logging.Logger) -> None:
    first_source, duplicates = {}, []
    for sample in samples:
        first = first_source.setdefault(os.path.realpath(sample.image_path), sample.source)
        if first != sample.source:
            duplicates.append(f"{sample.file_name} ({first} and {sample.source})")
    if duplicates:
        logger.warning(
            "%s: %d images are listed twice, the first is %s", source, len(duplicates), duplicates[0]
        )


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "…"
