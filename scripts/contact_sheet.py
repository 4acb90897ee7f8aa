"""The heatmaps of several runs side by side as one picture: titles above, class, file and scores below every row."""

import csv
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from evaluation.photographs.drawing import font_of
from files.names import picture_names, safe_name
from files.pictures import sheet

LINE = 18  # pixels of a line of text
PICTURED = 2  # defective images per class


def contact_sheet(runs: dict[str, Path], dataset_name: str) -> np.ndarray:
    """Original, truth and each run's heatmap for some defective images of every class, under titles, each row above its
    class and file, each heatmap with its picture's score."""
    first, *others = runs.values()
    folder = Path("visualization") / safe_name(dataset_name)
    scores = [own_scores(run, dataset_name) for run in runs.values()]
    rows = []
    for class_folder in sorted((first / folder).iterdir()):
        defective = [path.name for path in sorted(class_folder.glob("*.png")) if "__good__" not in path.name]
        for name in defective[:: max(1, len(defective) // PICTURED)][:PICTURED]:
            strips = [
                cv2.imread(str(run / folder / class_folder.name / name))[..., ::-1]
                for run in (first, *others)
            ]
            side = strips[0].shape[1] // 3
            cells = [strips[0][:, : 3 * side], *(strip[:, 2 * side : 3 * side] for strip in strips[1:])]
            row = sheet([cells])
            shown = [score.get(name, "") for score in scores]
            rows.append(np.concatenate([row, caption_line([told_of(name, dataset_name), None, *shown], row)]))
    head = caption_line(["original", "truth", *runs], rows[0])
    half = (len(rows) + 1) // 2
    return sheet([[head, head], *zip(rows[:half], rows[half:] + rows[-1:], strict=False)])


def own_scores(run: Path, dataset_name: str) -> dict[str, str]:
    """{name of a picture's PNG: its own score in words} of a run's evaluation of a data set; {} where there is none."""
    table = run / "scores.csv"
    if not table.is_file():
        return {}
    with table.open(encoding="utf-8", newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row["dataset"] == dataset_name]
    names = picture_names(row["file"] for row in rows)
    return {name: f"{float(row['own_score']):.4f}" for name, row in zip(names, rows, strict=True)}


def told_of(name: str, dataset_name: str) -> str:
    """Class and file of a picture, from its PNG's name."""
    return name.removesuffix(".png").removeprefix(f"{safe_name(dataset_name)}__").replace("__", "/")


def caption_line(texts: Sequence[str | None], row: np.ndarray) -> np.ndarray:
    """A white line [LINE, width, 3] as wide as a row of pictures, with a text at the begin of every column; None leaves
    a column to the text before it. What does not fit ends in an ellipsis."""
    line, font = Image.new("RGB", (row.shape[1], LINE), "white"), font_of(LINE - 6)
    draw, column = ImageDraw.Draw(line), row.shape[1] / len(texts)
    for place, text in enumerate(texts):
        if text is None:
            continue
        columns = 1 + (texts[place + 1 : place + 2] == [None])
        draw.text((place * column + 2, 2), fitting(text, font, columns * column - 6), "black", font)
    return np.asarray(line)


def fitting(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The text, or its begin and an ellipsis where it is wider than so many pixels."""
    kept = text
    while kept and font.getlength(text) > width:
        kept = kept[:-1]
        text = f"{kept}…"
    return text
