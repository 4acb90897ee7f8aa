"""Datasets made of some classes of a rendered one, so that training and test share images of no class.

The halves of a set are its classes in turns; the quarters are the halves of those.
"""

import json
from pathlib import Path

from dataset.constants import DATA_PATH, DOMAINS, REAL_NAMES
from dataset.jsonl import read_rows, write_rows
from files.atomic import write_text

CONFIG = "halves_of_{}.json"
ENDINGS = ("even", "odd")


def halves_of(dataset: str) -> tuple[str, str]:
    """Names of a set's, or of a half's, two halves."""
    return tuple(f"{dataset}_{ending}" for ending in ENDINGS)


def other_half(half: str) -> str:
    """The half that a half is tested on."""
    whole, _, ending = half.rpartition("_")
    return f"{whole}_{ENDINGS[1 - ENDINGS.index(ending)]}"


def declare(data: Path, dataset: str) -> Path:
    """Declare halves and quarters of a rendered set in a file beside it, a `--dataset_config`; returns the file."""
    rows = [row for _, row in read_rows(data / dataset / "full-shot.jsonl")]
    entries, todo = {}, {dataset: dict(REAL_NAMES[dataset])}
    for _ in range(2):
        parts = {
            half: dict(list(classes.items())[number::2])
            for whole, classes in todo.items()
            for number, half in enumerate(halves_of(whole))
        }
        for part, classes in parts.items():
            write_rows([row for row in rows if row["class_name"] in classes], data / f"{part}.jsonl")
            entries[part] = {
                "path": DATA_PATH[dataset],
                "domain": DOMAINS[dataset],
                "classes": classes,
                "metadata": f"{part}.jsonl",
            }
        todo = parts
    file = data / CONFIG.format(dataset)
    write_text(file, json.dumps(entries, indent=1) + "\n")
    return file
