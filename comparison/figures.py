"""Figures of a comparison as SVG images in data URIs, which a browser never runs as code."""

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from comparison.arms import Arm
from comparison.tables import TITLES, seeds_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 5.2  # inches; narrow, so that the text stays readable on a phone
COLOURS = (
    "#4c72b0",
    "#dd8452",
    "#55a868",
    "#c44e52",
    "#8172b3",
    "#937860",
    "#da8bc3",
    "#8c8c8c",
    "#ccb974",
    "#64b5cd",
)


def new_figure(height: float, columns: int = 1, rows: int = 1) -> "tuple[Figure, Axes | np.ndarray]":
    """(figure, axes, or [columns] or [rows] of them) of a height in inches, without a window system."""
    from matplotlib.figure import Figure  # here, because importing it takes a second

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, columns)


def plain(text: object) -> str:
    """A name as matplotlib writes it literally: a dollar sign would begin a formula."""
    return str(text).replace("$", r"\$")


def data_uri(figure: "Figure") -> str:
    """The figure as an `<img>` source."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def forest(result: dict, metric: str) -> str:
    """Difference to the baseline of every arm: mean with its 95 % interval, and every (class x seed) pair as a dot."""
    arms = [(arm, compared["metrics"][metric]) for arm, compared in result["arms"].items()]
    arms = [(arm, row) for arm, row in arms if row["value"] is not None]
    figure, axes = new_figure(1.1 + 0.45 * len(arms))
    axes.axvline(0, color="black", linewidth=0.8)
    for place, (_, row) in enumerate(arms):
        dots = [100 * pair["difference"] for pair in row["pairs"]]
        axes.plot(dots, [place + 0.22] * len(dots), ".", color="#aaaaaa", markersize=4)
        low, value, high = (100 * row[key] for key in ("low", "value", "high"))
        axes.plot([low, high], [place, place], color=COLOURS[place % len(COLOURS)], linewidth=2.5)
        axes.plot([value], [place], "D", color=COLOURS[place % len(COLOURS)], markersize=6)
    axes.set_yticks(range(len(arms)), [plain(arm) for arm, _ in arms])
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.set_xlabel(f"{TITLES[metric]}: points above the baseline")
    return data_uri(figure)


def class_bars(result: dict, metric: str, baseline_name: str) -> str:
    """Value of the baseline and every arm in each class, in percent."""
    arms = list(result["arms"].items())
    classes = list(arms[0][1]["metrics"][metric]["classes"])
    figure, axes = new_figure(1.0 + len(classes) * (0.18 + 0.13 * (len(arms) + 1)))
    thickness = 0.8 / (len(arms) + 1)
    first = arms[0][1]  # arms may be paired with other seeds; the baseline's bar names its own
    series = [(f"{baseline_name}, {seeds_text(first['seeds'])}", "baseline", first, "#555555")]
    series += [(arm, "arm", compared, COLOURS[i % len(COLOURS)]) for i, (arm, compared) in enumerate(arms)]
    for i, (title, side, compared, colour) in enumerate(series):
        rows = compared["metrics"][metric]["classes"]
        known = [
            (place, rows[name][side]) for place, name in enumerate(classes) if rows[name][side] is not None
        ]
        axes.barh(
            [place + (i - len(arms) / 2) * thickness for place, _ in known],
            [100 * value for _, value in known],
            height=thickness,
            color=colour,
            label=plain(title),
        )
    axes.set_yticks(range(len(classes)), [plain(name) for name in classes])
    axes.set_ylim(len(classes) - 0.5, -0.5)
    axes.set_xlabel(f"{TITLES[metric]}, percent")
    figure.legend(loc="outside upper center", ncols=2, fontsize="small")
    return data_uri(figure)


def learning_curves(arms: Sequence[Arm]) -> str | None:
    """Mean loss of every epoch of both stages, one line per run in its arm's colour.

    Returns:
        an `<img>` source, or None where no run has a history.json.
    """
    losses = [(arm.name, read_losses(run.folder)) for arm in arms for run in arm.runs]
    if not any(stages["text"] or stages["image"] for _, stages in losses):
        return None
    names = [arm.name for arm in arms]
    figure, panels = new_figure(3.4, 2)
    handles = {}
    for axes, stage in zip(panels, ("text", "image"), strict=True):
        for name, stages in losses:
            colour = "#555555" if name == names[0] else COLOURS[(names.index(name) - 1) % len(COLOURS)]
            values = stages[stage]
            if values:
                (handles[name],) = axes.plot(range(1, len(values) + 1), values, color=colour, linewidth=1.2)
        axes.set_title(f"{stage} stage: loss", fontsize="medium")
        axes.set_xlabel("epoch (all loops)")
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(
        handles.values(),
        [plain(name) for name in handles],
        loc="outside upper center",
        ncols=2,
        fontsize="small",
    )
    return data_uri(figure)


def read_losses(folder: Path | str) -> dict[str, list[float]]:
    """Mean loss per epoch from a run's history.json: {"text": [...], "image": [...]}, empty where there is none."""
    history = Path(folder) / "history.json"
    loops = json.loads(history.read_text(encoding="utf-8"))["loops"] if history.is_file() else []
    return {stage: [entry["loss"] for loop in loops for entry in loop[stage]] for stage in ("text", "image")}
