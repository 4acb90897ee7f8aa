"""The frozen analysis: gate, declared hypotheses, tables. Its hash is kept when a study begins; changed, it is refused.

The last epoch decides; the secondary epoch, that of AA-CLIP's published figures, stands beside it and decides nothing.
"""

from collections.abc import Sequence
from typing import Any

from scripts.commands import Command
from studies.real_study.anchors import COLUMNS, PUBLISHED, outside
from studies.real_study.protocol import ARMS, is_trained
from studies.real_study.runs import Study

OWN_IMAGE_SCORE = "image_auroc_unnormalised"
# Declared before any run, for the first test set of each training set: these arms differ from the reference.
DECLARED_ARMS = ("cross_attention", "anchor_late")
DECLARED_METRICS = ("pixel_ap", OWN_IMAGE_SCORE)
REFERENCES = ("baseline", "rarity_alone")  # an arm has to beat both
MARGIN = 1.0  # points; differences inside are of no interest
NO_VERDICT = "baseline not reproduced: no verdict"
Runs = dict[tuple[str, str, int], dict[str, Any]]


def mean_over_seeds(
    runs: Runs, train: str, arm: str, test_set: str, which: str = "last"
) -> dict[str, float | None]:
    """{metric: mean over the seeds of the mean over classes}; {} without runs. None where a set has no such metric."""
    found = [
        run["metrics"][test_set][which]["mean"]
        for (source, name, _), run in runs.items()
        if (source, name) == (train, arm) and which in run["metrics"][test_set]
    ]
    means = {}
    for metric in (*COLUMNS, OWN_IMAGE_SCORE) if found else ():
        values = [mean.get(metric) for mean in found]
        means[metric] = None if None in values else sum(values) / len(values)
    return means


def hypotheses_of(study: Study, train: str) -> list[str]:
    """compare.py's --hypotheses for a training set, of the declared arms that are run."""
    main_set = study.protocol.directions[train][0]
    return [
        f"{arm}:{metric}:{main_set}"
        for arm in DECLARED_ARMS
        if arm in study.arms
        for metric in DECLARED_METRICS
    ]


def gate_text(study: Study, runs: Runs, train: str) -> tuple[bool, str]:
    """(whether verdicts may be given, one sentence on the baseline)."""
    main_set = study.protocol.directions[train][0]
    complaints = outside(main_set, mean_over_seeds(runs, train, "baseline", main_set))
    if complaints is None:
        return True, f"Nothing was published for {main_set}: the baseline is not checked against anything."
    if complaints:
        return False, f"**{NO_VERDICT}** ({'; '.join(complaints)})."
    return True, f"The baseline lands where AA-CLIP does on {main_set}."


def comparisons(study: Study, train: str, seeds: Sequence[int]) -> list[Command]:
    """compare.py's commands for a training set: every trained arm against the baseline, and against rarity alone."""
    runs = study.out / "runs" / train
    folders = {}
    for arm in study.arms:
        if ARMS[arm].retests is None:
            places = [runs / f"{arm}_seed{seed}" for seed in seeds] if is_trained(arm) else [runs / arm]
            folders[arm] = f"{arm}={','.join(map(str, places))}"
    commands = []
    for reference in REFERENCES:
        arms = [text for arm, text in folders.items() if arm not in (reference, "local_contrast")]
        words = ["--baseline", folders[reference], "--runs", *arms]
        words += ["--datasets", *study.protocol.directions[train], "--margin", f"{MARGIN:g}"]
        words += ["--hypotheses", *hypotheses_of(study, train)]
        common = list(study.common)
        for flag in ("--data_root", "--dataset_config"):
            words += common[common.index(flag) : common.index(flag) + 2] if flag in common else []
        commands.append(("compare.py", [*words, "--out", str(study.out / f"compare_{train}_{reference}")]))
    return commands


def cells(values: Sequence[float | None]) -> str:
    """Figures of a table's row, percent with one decimal, a dash where there is none."""
    return " | ".join("–" if value is None else f"{value:.1f}" for value in values)


def table(study: Study, runs: Runs, train: str, test_set: str) -> str:
    """Markdown: the arms of one test set, the secondary epoch, and what was published."""
    heads = ("pixel AUROC", "pixel AP", "AUPRO", "image AUROC", "image AP", "image AUROC, each image alone")
    lines = [f"| | seeds | {' | '.join(heads)} |", "|--|--|" + "--|" * len(heads)]
    secondary = f"epoch_{study.protocol.secondary}"
    for which, ending in (("last", ""), (secondary, f", epoch {study.protocol.secondary}")):
        for arm in study.arms:
            means = mean_over_seeds(runs, train, arm, test_set, which)
            if means:
                count = sum(key[:2] == (train, arm) for key in runs) if is_trained(arm) else 1
                values = [None if value is None else 100 * value for value in means.values()]
                lines.append(f"| {arm}{ending} | {count} | {cells(values)} |")
    for source, values in PUBLISHED.get(test_set, {}).items():
        lines.append(f"| *{source}* | | {cells([*values, None])} |")
    return "\n".join(lines) + "\n"


def report(study: Study, runs: Runs, seeds: Sequence[int], remarks: Sequence[str]) -> str:
    """Markdown: everything the study says so far.

    Args:
        remarks: on weights and data, before all else.
    """
    parts = ["# The question on real weights\n", *(f"* {one}" for one in remarks), ""]
    for train, test_sets in study.protocol.directions.items():
        wanted = [(train, arm, seed) for arm in study.arms for seed in seeds]
        done = sum(key in runs for key in wanted)
        parts.append(f"## Trained on {train}\n")
        if done < len(wanted):
            parts.append(f"{done} of {len(wanted)} runs are there: no verdict yet.\n")
        elif not gate_text(study, runs, train)[0]:
            parts.append(gate_text(study, runs, train)[1] + "\n")
        else:
            declared = ", ".join(f"`{one}`" for one in hypotheses_of(study, train))
            places = " and ".join(f"`compare_{train}_{one}/report.html`" for one in REFERENCES)
            parts.append(f"{gate_text(study, runs, train)[1]} Declared: {declared}; decided in {places}.\n")
        for test_set in test_sets:
            parts.append(f"### {test_set}\n\n{table(study, runs, train, test_set)}")
    return "\n".join(parts)
