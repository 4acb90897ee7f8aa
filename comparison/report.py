"""The comparison as one self-contained HTML page."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader

from comparison.arms import Arm
from comparison.comparable import differing_settings
from comparison.figures import class_bars, forest, learning_curves
from comparison.overview import headline, matrix
from comparison.score_figures import histograms, image_scores_of, roc
from comparison.tables import HEADER, TITLES, cells, interval, percent, seeds_text, verdict_lines

TEMPLATES = Path(__file__).parent / "templates"


def environment() -> Environment:
    """Templates whose every value is escaped."""
    return Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )


def render(
    results: dict[str, dict],
    baseline: Arm,
    arms: Sequence[Arm],
    report_info: dict,
    galleries: dict[str, dict[str, list[dict]]],
    references: dict[str, dict[str, list[dict]]] | None = None,
) -> str:
    """The page as text.

    Args:
        results: from paired.compare_arms.
        baseline, arms: comparison.arms.Arm.
        report_info: {"command": [argv], "verdict_metrics", "hypotheses", "margin",
            "notes": [sentences], "replicates", "versions"}.
        galleries: {dataset: grids from gallery.gallery}.
        references: of overview.read_references; None for none.
    """
    evaluation_infos = {}
    for result in results.values():
        for arm, infos in result["abouts"].items():
            evaluation_infos.setdefault(arm, []).extend(infos)
    return (
        environment()
        .get_template("report.html")
        .render(
            header=HEADER,
            titles=TITLES,
            headline=headline(results),
            matrix=matrix(results, baseline, references or {}, report_info["verdict_metrics"]),
            command=shlex.join(report_info["command"]),
            report_info=report_info,
            verdicts=verdict_lines(results),
            sections=[
                section(dataset, result, [baseline, *arms], report_info["verdict_metrics"], galleries)
                for dataset, result in results.items()
            ],
            curves=learning_curves([baseline, *arms]),
            arm_names=list(evaluation_infos),
            settings=differing_settings(evaluation_infos),
            runs=run_rows(evaluation_infos, [baseline, *arms]),
        )
    )


def section(
    dataset: str,
    result: dict,
    arms: Sequence[Arm],
    verdict_metrics: Sequence[str],
    galleries: dict[str, dict[str, list[dict]]],
) -> dict:
    """What the page says about one dataset; the baseline is the first arm."""
    tables = []
    for arm, compared in result["arms"].items():
        lines = [(metric, cells(metric, row)) for metric, row in compared["metrics"].items()]
        by_class = [
            (TITLES[metric], [class_cells(name, class_row) for name, class_row in row["classes"].items()])
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
        (f"{TITLES[metric]} on {dataset}, by class", class_bars(result, metric, arms[0].name))
        for metric in defined
    ]
    scores = image_scores_of(arms, dataset)
    return {
        "dataset": dataset,
        "img_size": result["img_size"],
        "rows_sha256": result["rows_sha256"],
        "tables": tables,
        "figures": figures,
        "score_figures": [
            (f"Image ROC curves on {dataset}", roc(scores)),
            (f"Image scores of normal and abnormal pictures of {dataset}", histograms(scores)),
        ],
        "gallery": galleries.get(dataset, {}),
        "histogram_error": result["histogram_error"],
    }


def class_cells(name: str, row: dict) -> list[str]:
    """One class's line: name, baseline, arm, difference, interval."""
    return [name, percent(row["baseline"]), percent(row["arm"]), percent(row["value"], True), interval(row)]


def run_rows(
    evaluation_infos: dict[str, list[dict]], arms: Sequence[Arm]
) -> list[tuple[str, int | None, str, str, str]]:
    """Lines of the table of hashes: [(arm, seed, folder, checkpoint file, SHA-256)]."""
    rows = []
    for arm in arms:
        for run, info in zip(
            arm.runs, evaluation_infos[arm.name], strict=False
        ):  # the first dataset's come first
            for file, content in info["checkpoints"].items() or [(run.checkpoint, "no file")]:
                rows.append((arm.name, run.seed, str(run.folder), file, content))
    return rows
