"""The same command on the tiny CLIP: DemoA -> DemoB with few pictures and one pass of each stage."""

import json
from collections.abc import Sequence
from pathlib import Path

from dataset.constants import DATA_PATH, DOMAINS, REAL_NAMES
from dataset.jsonl import read_rows, write_rows
from demo_world import render_sets
from files.atomic import write_text

FEW = "_few"  # ending of the declared sets' names
CLASSES, PICTURES = 3, 2  # of a set; pictures of a class and label


def few_pictures(out: Path, datasets: Sequence[str]) -> Path:
    """Render small demo sets and declare a few of their classes; returns the config.

    Args:
        datasets: names of declared sets, each a demo set's name and FEW.

    Raises:
        OSError: the folder cannot be written.
    """
    counts = ("--train_good", "0", "--test_good", str(PICTURES), "--test_defective", str(PICTURES))
    entries = {}
    for few in datasets:
        name = few.removesuffix(FEW)
        render_sets.main(["--name", name, "--out", str(out), "--seed", "0", *counts])
        classes = dict(list(REAL_NAMES[name].items())[:CLASSES])
        rows = [row for _, row in read_rows(out / name / "full-shot.jsonl") if row["class_name"] in classes]
        write_rows(rows, out / f"{few}.jsonl")
        entries[few] = {
            "path": DATA_PATH[name],
            "domain": DOMAINS[name],
            "classes": classes,
            "metadata": f"{few}.jsonl",
        }
    file = out / "few.json"
    write_text(file, json.dumps(entries, indent=1) + "\n")
    return file
