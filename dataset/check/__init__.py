"""Everything odd about a data set, found by reading all of it once: `python -m dataset.check --dataset NAME`."""

import json
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from tqdm import tqdm

from dataset.check.pixels import Look, look_at_pixels
from dataset.findings import KINDS, Finding, by_kind
from dataset.image_files import Header, Reading
from dataset.jsonl import Sample, read_rows
from dataset.paths import DataFolder
from dataset.survey import are_drawn_as_stored, header_findings, headers_of, row_findings
from files.cells import plain
from files.given import can_name_a_file

LARGE = 64_000_000  # pictures of more pixels are decoded one at a time
SPLITS = ("train", "training", "test", "testing", "val", "valid", "validation")  # folders that name one
SHOWN = 20  # findings of a kind in the table


class Checked(NamedTuple):
    """What was found in one data set, and what its pictures look like."""

    name: str
    reading: Reading
    samples: list[Sample]
    looks: list[Look]  # one per sample
    findings: list[Finding]


def check_dataset(
    name: str, samples: Sequence[Sample], reading: Reading, img_size: int, data: DataFolder, workers: int
) -> Checked:
    """Read all files of a data set once. Memory holds `workers` pictures (one, where they are large) and a line each.

    Args:
        img_size: the side that masks are resized to.
        data: where masks that rows name for normal pictures are found.
    """
    samples = list(samples)
    headers = headers_of(samples)
    reading = reading._replace(as_stored=are_drawn_as_stored(samples, headers))
    unused = masks_of_normal_pictures(samples, data)
    large = threading.Lock()

    def look(sample: Sample) -> Look:
        header = headers["image", sample.image_path]
        if not isinstance(header, Header):
            return Look()  # the header's finding says why
        if header.size[0] * header.size[1] > LARGE:
            with large:
                return look_at_pixels(sample, reading, img_size, unused.get(sample.source, ()))
        return look_at_pixels(sample, reading, img_size, unused.get(sample.source, ()))

    with ThreadPoolExecutor(workers) as pool:
        looks = list(tqdm(pool.map(look, samples), name, len(samples), disable=None))
    findings = [*header_findings(samples, headers, reading), *row_findings(samples)]
    findings += [one for each in looks for one in each.findings]
    return Checked(name, reading, samples, looks, findings + repeated_masks(samples, looks))


def masks_of_normal_pictures(samples: Sequence[Sample], data: DataFolder) -> dict[str, list[str]]:
    """{source of a row with label 0: the masks it names}, which training and testing never read."""
    normal = {sample.source for sample in samples if sample.label == 0}
    files = {source.rpartition(":")[0] for source in normal}
    found = {}
    for file in sorted(name for name in files if Path(name).is_file()):
        for source, row in read_rows(file):
            named = row.get("mask_path") or []
            for path in named if isinstance(named, list) else [named]:
                if source in normal and can_name_a_file(path):
                    with suppress(FileNotFoundError, ValueError):  # never read: not missed either
                        found.setdefault(source, []).append(data.find(path))
    return found


def duplicates(checked: Sequence[Checked]) -> list[Finding]:
    """Pictures of the same content, in one data set or several: problems where label, class, split or set differ."""
    first_of, findings = {}, []
    for one in checked:
        for sample, look in zip(one.samples, one.looks, strict=True):
            if look.picture is None:
                continue
            place = {
                "data set": one.name,
                "label": sample.label,
                "class": sample.class_name,
                "split": split_of(sample.file_name),
            }
            first, before = first_of.setdefault(look.picture, (sample, place))
            if first is sample:
                continue
            differing = [
                f"{key} {before[key]} and {place[key]}" for key in place if before[key] != place[key]
            ]
            text = (
                f"same pixels as {first.file_name} ({first.source}): {', '.join(differing) or 'same label'}"
            )
            kind = "duplicate" if differing else "repeated picture"
            findings.append(Finding(kind, sample.file_name, sample.source, text))
    return findings


def split_of(file_name: str) -> str | None:
    """The split that a file's folders name, None without one."""
    return next(
        (part.lower() for part in PurePosixPath(file_name).parts[:-1] if part.lower() in SPLITS), None
    )


def repeated_masks(samples: Sequence[Sample], looks: Sequence[Look]) -> list[Finding]:
    """Different mask files with the same defect."""
    first_of, findings = {}, []
    for sample, look in zip(samples, looks, strict=True):
        if look.mask is None:
            continue
        first = first_of.setdefault(look.mask, sample)
        if os.path.realpath(first.mask_path) != os.path.realpath(sample.mask_path):
            text = f"{sample.mask_path} shows the same defect as {first.mask_path}"
            findings.append(Finding("repeated mask", sample.file_name, sample.source, text))
    return findings


def summary(checked: Sequence[Checked], findings: Sequence[Finding], img_size: int) -> dict:
    """Everything that was found, for a JSON file."""
    return {
        "datasets": [
            {
                "name": one.name,
                "mask_reading": one.reading.masks,
                "images": len(one.samples),
                "masks": sum(sample.mask_path is not None for sample in one.samples),
            }
            for one in checked
        ],
        "img_size": img_size,
        "problems": sum(one.is_problem for one in findings),
        "notes": sum(not one.is_problem for one in findings),
        "kinds": {
            kind: {"level": KINDS[kind][0], "meaning": KINDS[kind][1], "count": len(own)}
            for kind, own in by_kind(findings).items()
        },
        "findings": [{"level": KINDS[one.kind][0]} | one._asdict() for one in findings],
    }


def table(findings: Sequence[Finding]) -> str:
    """The findings by kind, problems first, up to SHOWN of a kind with their texts."""
    kinds = by_kind(findings)
    lines = [f"{'':8}{'count':>6}  kind: what it means"]
    lines += [f"{KINDS[kind][0]:8}{len(own):6}  {kind}: {KINDS[kind][1]}" for kind, own in kinds.items()]
    for kind, own in kinds.items():
        lines += ["", f"{kind} ({len(own)})"]
        lines += [f"  {plain(one.file)}  {plain(one.text)}" for one in own[:SHOWN]]
        if len(own) > SHOWN:
            lines.append(f"  … and {len(own) - SHOWN} more: --json FILE has them all")
    return "\n".join(lines)


def as_json(content: dict) -> str:
    """`summary`'s content as text."""
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
