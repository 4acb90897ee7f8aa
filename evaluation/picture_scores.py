"""One line per picture of every evaluation, labelled or not: scores/<dataset>/<checkpoint>.csv of a run's folder."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from evaluation.scores import image_scores, scores_file
from files.atomic import write_text


class PictureScore(NamedTuple):
    """What an evaluation says of one picture."""

    file: str  # relative to the data root
    class_name: str
    label: int | None  # None: unlabelled
    score: float  # upstream's image score, which depends on the class's other test images
    own_score: float  # the image score that this picture alone determines


COLUMNS = ("file", "class", "label", "score", "own_score")


def picture_scores(
    predictions: dict[str, Any], class_name: str, domain: str, levels: int
) -> list[PictureScore]:
    """The scores of one class's pictures, in their order; `predictions` of evaluation.predictions.predict_class."""
    labels = np.asarray(predictions["labels"])
    fused, own = image_scores(predictions, domain, levels)
    return [
        PictureScore(file, class_name, int(label) if label >= 0 else None, float(score), float(alone))
        for file, label, score, alone in zip(predictions["files"], labels, fused, own, strict=True)
    ]


def write_picture_scores(
    save_path: Path | str, dataset: str, checkpoint: str, rows: Sequence[PictureScore]
) -> Path:
    """Write the file of one evaluation, in full precision, an unknown label empty; returns its path."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([COLUMNS, *rows])
    path = scores_file(save_path, dataset, checkpoint).with_suffix(".csv")
    write_text(path, text.getvalue())
    return path
