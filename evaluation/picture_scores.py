"""One line per picture of every evaluation, labelled or not: scores/<dataset>/<checkpoint>.csv of a run's folder.

All of them together are scores.csv, beside its metrics.json.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock

from evaluation.scores import image_extremes, image_scores, scores_file
from files.atomic import replacing, write_text
from files.cells import CellWriter
from files.text import read_json


class PictureScore(NamedTuple):
    """What an evaluation says of one picture."""

    file: str  # relative to the data root
    class_name: str
    label: int | None  # None: unlabelled
    score: float  # upstream's image score, which depends on the class's other test images
    own_score: float  # the image score that this picture alone determines
    map_maximum: float  # the highest score of its map


COLUMNS = ("file", "class", "label", "score", "own_score", "map_maximum")
EVALUATION = ("dataset", "checkpoint")  # columns of scores.csv before them, as in metrics.csv


def picture_scores(
    predictions: dict[str, Any], class_name: str, domain: str, levels: int
) -> list[PictureScore]:
    """The scores of one class's pictures, in their order; `predictions` of evaluation.predictions.predict_class."""
    labels = np.asarray(predictions["labels"])
    fused, own = image_scores(predictions, domain, levels)
    highest = image_extremes(predictions)[:, 1]
    return [
        PictureScore(
            file, class_name, int(label) if label >= 0 else None, float(score), float(alone), float(top)
        )
        for file, label, score, alone, top in zip(
            predictions["files"], labels, fused, own, highest, strict=True
        )
    ]


def write_picture_scores(
    save_path: Path | str, dataset: str, checkpoint: str, rows: Sequence[PictureScore]
) -> Path:
    """Write the file of one evaluation, in full precision, an unknown label empty; returns its path."""
    text = io.StringIO()
    writer = CellWriter(text, lineterminator="\n")
    writer.writerows([COLUMNS, *rows])
    path = scores_file(save_path, dataset, checkpoint).with_suffix(".csv")
    write_text(path, text.getvalue())
    return path


def gather_picture_scores(save_path: Path | str) -> Path:
    """Write scores.csv of a run's folder: the pictures of every evaluation in its metrics.json, in its order.

    An evaluation of an older version, whose file lacks a column, has an empty cell there.
    """
    path = Path(save_path) / "scores.csv"
    with FileLock(Path(save_path) / ".metrics.lock"), replacing(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        writer = CellWriter(text, lineterminator="\n")
        writer.writerow([*EVALUATION, *COLUMNS])
        for dataset, evaluations in read_json(Path(save_path) / "metrics.json").items():
            for checkpoint in evaluations:
                stored = scores_file(save_path, dataset, checkpoint).with_suffix(".csv")
                if not stored.is_file():
                    continue
                with stored.open(encoding="utf-8", newline="") as lines:
                    for row in csv.DictReader(lines):
                        writer.writerow([dataset, checkpoint, *(row.get(column, "") for column in COLUMNS)])
        text.detach()
    return path
