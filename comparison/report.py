"""The comparison as one self-contained HTML page."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader

from comparison.arms import Arm
from comparison.comparable import differing_settings
from comparison.figures import class_bars, forest, learning_curves
from comparison.tables import HEADER, TITLES, cells, interval, percent, seeds_text, verdict_lines

TEMPLATES = Path(__file__).parent / "templates"


def environment() -> Environment:
    """Templates whose every value is escaped."""
    return Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )


def render(
    found: dict[str, dict], baseline: Arm, arms: Sequence[Arm], about: dict, galleries: dict[str, list[dict]]
) -> str:
    """The page as text.

    Args:
        found: from paired.compare_arms.
        baseline, arms: comparison.arms.Arm.
        about: {"command": [argv], "verdict_metrics", "notes": [sentences], "replicates", "versions"}.
        galleries: {dataset: rows from gallery.gallery}.
    """
    abouts = {}
    for result in found.values():
        for arm, own in result["abouts"].items():
            abouts.setdefault(arm, []).extend(own)
    return (
        environment()
        .get_template("report.html")
        .render(
            header=HEADER,
            titles=TITLES,
            command=shlex.join(about["command"]),
            about=about,
            verdicts=verdict_lines(found, about["verdict_metrics"]),
            sections=[
                section(dataset, result, baseline, about["verdict_metrics"], galleries.get(dataset, []))
                for dataset, result in found.items()
            ],
            curves=learning_curves([baseline, *arms]),
            arm_names=list(abouts),
            settings=differing_settings(abouts),
            runs=run_rows(abouts, [baseline, *arms]),
        )
    )


def section(
    dataset: str, result: dict, baseline: Arm, verdict_metrics: Sequence[str], rows: list[dict]
) -> dict:
    """What the page says about one dataset."""
    tables = []
    for arm, compared in result["arms"].items():
        lines = [(metric, cells(metric, row)) for metric, row in compared["metrics"].items()]
        by_class = [
            (TITLES[metric], [class_cells(name, own) for name, own in row["classes"].items()])
            for metric, row in compared["metrics"].items()
        ]
        tables.append(
            {"arm": arm, "seeds": seeds_text(compared["seeds"]), "lines": lines, "by_class": by_class}
        )
    defined = [
        metric
        for metric in verdict_metrics
        if any(compared["metrics"][metric]["value"] is not None for compared in result["arms"].values())
    ]
    figures = [(f"{TITLES[metric]} on {dataset}, difference", forest(result, metric)) for metric in defined]
    figures += [
        (f"{TITLES[metric]} on {dataset}, by class", class_bars(result, metric, baseline.name))
        for metric in defined
    ]
    return {
        "dataset": dataset,
        "img_size": result["img_size"],
        "rows_sha256": result["rows_sha256"],
        "tables": tables,
        "figures": figures,
        "gallery": rows,
        "histogram_error": result["histogram_error"],
    }


def class_cells(name: str, row: dict) -> list[str]:
    """One class's line: name, baseline, arm, difference, interval."""
    return [name, percent(row["baseline"]), percent(row["arm"]), percent(row["value"], True), interval(row)]


def run_rows(
    abouts: dict[str, list[dict]], arms: Sequence[Arm]
) -> list[tuple[str, int | None, str, str, str]]:
    """Lines of the table of hashes: [(arm, seed, folder, checkpoint file, SHA-256)]."""
    rows = []
    for arm in arms:
        for run, about in zip(arm.runs, abouts[arm.name], strict=False):  # the first dataset's come first
            for file, content in about["checkpoints"].items() or [(run.checkpoint, "no file")]:
                rows.append((arm.name, run.seed, str(run.folder), file, content))
    return rows
