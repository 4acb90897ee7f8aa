"""What a comparison's page opens with: one headline, and a matrix of arms and references by data sets and metrics."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from comparison.arms import Arm
from comparison.comparable import reasons
from comparison.tables import TITLES, percent, verdict_lines
from evaluation.results import UNDEFINED
from evaluation.scores import read_about, read_image_scores, scores_file

NAMED = 3  # verdicts that a headline spells out
DECIDED = ("helps", "hurts")


class Cell(NamedTuple):
    """One value of the matrix: percent, points above the baseline ("" for itself), and its verdict ("" for none)."""

    value: str
    difference: str = ""
    verdict: str = ""


def headline(results: dict[str, dict]) -> str:
    """What the declared hypotheses came to, as one sentence.

    Args:
        results: from paired.compare_arms.
    """
    verdicts = [
        (dataset, arm, metric, word)
        for dataset, arm, words in verdict_lines(results)
        for metric, word, _ in words
        if word != "undefined"
    ]
    if not verdicts:
        return "Nothing was decided: no declared hypothesis has a value"
    decided = [one for one in verdicts if one[3] in DECIDED]
    count = f"{len(verdicts)} declared comparison{'' if len(verdicts) == 1 else 's'}"
    equal = sum(word == "equivalent" for *_, word in verdicts)
    beside = f"; {equal} lie within the margin" if equal else ""
    few = sum(word == "undecidable" for *_, word in verdicts)
    beside += f"; {few} could not be decided with so few classes" if few else ""
    if not decided:
        return f"No difference was shown in {count}{beside}"
    spelled = [
        f"{arm} {word} in {TITLES[metric]} on {dataset} "
        f"({percent(results[dataset]['arms'][arm]['metrics'][metric]['value'], True)} points)"
        for dataset, arm, metric, word in decided[:NAMED]
    ]
    more = f", and {len(decided) - NAMED} more" if len(decided) > NAMED else ""
    return f"{'; '.join(spelled)}{more}: {len(decided)} of {count} decided{beside}"


def matrix(
    results: dict[str, dict],
    baseline: Arm,
    references: dict[str, dict[str, list[dict]]],
    metrics: Sequence[str],
) -> dict[str, Any]:
    """The arms and the references by data sets and metrics.

    Args:
        results: from paired.compare_arms.
        references: of `read_references`.
        metrics: one column each per data set.

    Returns:
        {"columns": [(dataset, title of a metric)], "rows": [(name, what it is, [Cell])]}, the references first.
    """
    columns = [(dataset, metric) for dataset in results for metric in metrics]
    own = {column: mean_of(results[column[0]]["abouts"][baseline.name], column[1]) for column in columns}
    rows = []
    for name, infos in references.items():
        values = [(mean_of(infos[dataset], metric), own[dataset, metric]) for dataset, metric in columns]
        rows.append((name, "reference", [Cell(percent(value), apart(value, base)) for value, base in values]))
    rows.append((baseline.name, "baseline", [Cell(percent(own[column])) for column in columns]))
    for name in next(iter(results.values()))["arms"]:
        found = [results[dataset]["arms"][name]["metrics"][metric] for dataset, metric in columns]
        cells = [
            Cell(percent(row["arm"]), percent(row["value"], True), row.get("verdict", "")) for row in found
        ]
        rows.append((name, "arm", cells))
    return {"columns": [(dataset, TITLES[metric]) for dataset, metric in columns], "rows": rows}


def mean_of(infos: Sequence[dict], metric: str) -> float | None:
    """Mean of a metric over classes and runs; None where no class has it.

    Args:
        infos: what the runs' scores files say of their evaluations.
    """
    values = [row[metric] for info in infos for row in info["classes"].values() if row[metric] is not None]
    return float(np.mean(values)) if values else None


def apart(value: float | None, base: float | None) -> str:
    """Points between two values; a dash where one is undefined."""
    return UNDEFINED if value is None or base is None else percent(value - base, True)


def read_references(
    baseline: Arm, references: Sequence[Arm], datasets: Sequence[str]
) -> dict[str, dict[str, list[dict]]]:
    """What the evaluations of some references say of themselves: {name: {dataset: [of every run]}}.

    Args:
        references: arms that are shown beside the others and not tested, such as raw CLIP.

    Raises:
        ValueError: one is not comparable with the baseline, with every reason.
    """
    refused, found = [], {}
    for dataset in datasets:
        first = baseline.runs[0]
        known = contents_of(scores_file(first.folder, dataset, first.checkpoint))
        for arm in references:
            for run in arm.runs:
                file = scores_file(run.folder, dataset, run.checkpoint)
                refused += [
                    f"{run.folder} cannot stand beside {first.folder} on {dataset}: {text}"
                    for text in reasons(*known, *contents_of(file))
                ]
                found.setdefault(arm.name, {}).setdefault(dataset, []).append(read_about(file))
    if refused:
        raise ValueError("\n".join(refused))
    return found


def contents_of(file: Path) -> tuple[dict[str, tuple[list[str], list[str]]], dict]:
    """({class: (files, digests)}, what it says of itself) of a scores file, as `comparable.reasons` takes them."""
    classes = {
        name: (one.files.tolist(), one.digests.tolist()) for name, one in read_image_scores(file).items()
    }
    return classes, read_about(file)
