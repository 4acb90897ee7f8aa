"""Metadata files: one JSON object a line, read and checked before anything is trained on it.

Keys: `image_path`, `class_name`, `label` (0 normal, 1 anomalous; int or float) and, where the label is 1, `mask_path`:
a path, or a list of paths of masks that are united. An anomalous image without `mask_path` has its defect in an unknown
place; an image without `label` is only scored.
"""

import json
import logging
import os
from pathlib import Path
from typing import NamedTuple

from dataset.paths import DataFolder, PathOutsideDataRoot
from files.atomic import write_text
from files.foreign_paths import composed
from files.given import can_name_a_file
from files.text import parse_json, read_text, shown

PROBLEMS_SHOWN = 50


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


class Problem(NamedTuple):
    """What is wrong with one row."""

    text: str
    missing_file: bool = False

    def __str__(self) -> str:
        return self.text


def read_rows(path: str | os.PathLike) -> list[tuple[str, dict]]:
    """(file:line, row) for each line that is not blank. Raises FileNotFoundError; ValueError if a line is no object."""
    rows = parse_rows(path)
    raise_collected([(source, row) for source, row in rows if isinstance(row, Problem)])
    return rows


def parse_rows(path: str | os.PathLike) -> list[tuple[str, dict | Problem]]:
    """As `read_rows`, with a Problem for a line that is no object; `check_rows` reports it with all others."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no metadata file {str(path)!r}: expected one JSON object a line (.jsonl)")
    return [
        (f"{path}:{number}", _parse(line))
        for number, line in enumerate(read_text(path).split("\n"), start=1)
        if line.strip()
    ]


def check_rows(
    rows: list[tuple[str, dict | Problem]],
    classes: list[str],
    data: DataFolder,
    source: str,
    logger: logging.Logger,
) -> list[Sample]:
    """Rows as samples, in their order.

    Raises ValueError (FileNotFoundError if nothing but files is missing) naming all problems, at most PROBLEMS_SHOWN of
    them in full, with file, line, field, value, expectation and remedy; ValueError if `source` holds no row. An image
    listed twice is a problem where its rows contradict each other, and warned about where they agree.
    """
    if not rows:
        raise ValueError(
            f"{source}: no rows: expected one JSON object a line with image_path, label, class_name"
        )
    samples, problems, first_rows, duplicates = [], [], {}, []
    by_form = {composed(name): name for name in classes}
    for line, row in rows:
        sample, found = (None, [row]) if isinstance(row, Problem) else _check_row(row, line, by_form, data)
        if sample is not None:
            first = first_rows.setdefault(os.path.realpath(sample.image_path), sample)
            found = _contradictions(sample, first)
            if first is not sample and not found:
                duplicates.append(f"{sample.file_name} ({first.source} and {sample.source})")
            samples.append(sample)
        problems += [(line, problem) for problem in found]
    raise_collected(problems)
    if duplicates:
        logger.warning(
            "%s: %d images are listed twice, the first is %s", source, len(duplicates), duplicates[0]
        )
    return samples


def write_rows(rows: list[dict], path: Path) -> None:
    """Write a metadata file; it appears complete or not at all."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _parse(line: str) -> dict | Problem:
    try:
        row = parse_json(line)
    except ValueError as error:
        return Problem(f"not JSON ({error}): expected one object a line, {line[:80]!r} is none; correct it")
    if not isinstance(row, dict):
        return Problem(f'expected a JSON object, got {shown(row)}: write {{"image_path": …, "label": …, …}}')
    return row


def _check_row(
    row: dict, source: str, by_form: dict[str, str], data: DataFolder
) -> tuple[Sample | None, list[Problem]]:
    """(sample, []), or (None, everything that is wrong with the row); `by_form` is {composed class name: class}."""
    problems = [
        Problem(
            f"key {key!r} is missing: every row needs image_path and class_name, and label where it is known; add it"
        )
        for key in ("image_path", "class_name")
        if key not in row
    ]
    label, class_name = row.get("label"), row.get("class_name")
    if isinstance(label, bool) or not isinstance(label, int | float | None) or label not in (0, 1, None):
        problems.append(
            Problem(
                f"label is {shown(label)}: expected the number 0 (normal) or 1 (anomalous), or no label; correct it"
            )
        )
    known = by_form.get(composed(class_name)) if isinstance(class_name, str) else None
    if known is None and "class_name" in row:
        problems.append(
            Problem(
                f"class_name is {shown(class_name)}: the dataset's classes are {', '.join(by_form.values())}; "
                "correct it, or declare your own dataset with --dataset_config FILE"
            )
        )
    images, found = _find(row, "image_path", data) if "image_path" in row else ([], [])
    problems += found
    masks = []
    if row.get("mask_path") and label != 0:  # a mask named for a normal image is not read: its mask is zero
        if label is None:
            problems.append(
                Problem("mask_path is given but label is missing: add label 1, or take mask_path out")
            )
        masks, found = _find(row, "mask_path", data)
        problems += found
        if images and any(os.path.realpath(mask) == os.path.realpath(images[0]) for mask in masks):
            problems.append(
                Problem(
                    f"mask_path {shown(row['mask_path'])} is the image itself: name its mask, or take it out"
                )
            )
    if problems:
        return None, problems
    first, *more = masks or [None]
    label = None if label is None else int(label)
    file_name = data.relative(images[0])
    return Sample(images[0], first, label, known, file_name, source, tuple(more)), []


def _find(row: dict, field: str, data: DataFolder) -> tuple[list[str], list[Problem]]:
    """The files a field names (`mask_path` may be a list of them), and what is wrong with it."""
    values = row[field] if isinstance(row[field], list) and field == "mask_path" else [row[field]]
    files, problems = [], []
    find = data.find_mask if field == "mask_path" else data.find
    for value in values:
        if not can_name_a_file(value):
            problems.append(
                Problem(
                    f"{field} is {shown(value)}: expected a path in UTF-8 without control characters; correct it"
                )
            )
            continue
        try:
            files.append(find(value))
        except PathOutsideDataRoot as error:
            remedy = "keep the files under the data root, or pass the folder that holds them as --data_root"
            problems.append(Problem(f"{field} {shown(value)} {error}; {remedy}"))
        except FileNotFoundError as error:
            remedy = "copy the file there, correct the path, or pass another --data_root"
            problems.append(Problem(f"{field} {shown(value)} {error}; {remedy}", missing_file=True))
    return files, problems


def _contradictions(sample: Sample, first: Sample) -> list[Problem]:
    """What a row says otherwise than the first row of the same image."""
    found = []
    for field in ("label", "class_name"):
        now, before = getattr(sample, field), getattr(first, field)
        if now != before:
            found.append(
                Problem(f"{field} is {now!r}, {first.source} says {before!r} of the same image: keep one row")
            )
    return found


def raise_collected(problems: list[tuple[str, Problem]]) -> None:
    """Raise one error that lists problems, each behind its place, and has all as `problems`; nothing without any."""
    if not problems:
        return
    lines = [f"{source}: {problem}" for source, problem in problems[:PROBLEMS_SHOWN]]
    if len(problems) > PROBLEMS_SHOWN:
        lines.append(f"… and {len(problems) - PROBLEMS_SHOWN} more problems")
    if len(problems) > 1:
        lines.append(f"{len(problems)} problems in all")
    only_files = all(problem.missing_file for _, problem in problems)
    error = (FileNotFoundError if only_files else ValueError)("\n".join(lines))
    error.problems = [(source, str(problem)) for source, problem in problems]
    raise error
