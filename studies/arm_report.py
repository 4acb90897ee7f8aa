"""What the arms change against what they have to beat: classes, training seeds and data seeds as crossed effects."""

from collections.abc import Iterable, Sequence

import numpy as np

from comparison.crossed_effects import mean_of_runs
from comparison.significance import LEVEL, holm, sign_flip_p, smallest_p, verdict, wins_ties_losses
from metrics import renamed
from studies.arm_outcomes import outcome_table, outcomes, watched_parts, watched_table
from studies.arm_registry import ARMS

METRICS = {  # key: title; the first two are judged
    "pixel_ap": "pixel AP",
    "image_auroc_unnormalised": "image AUROC, each image's own score",
    "image_auroc": "image AUROC, fused over the test set",
    "pixel_aupro": "AUPRO@0.3",
    "pixel_auroc": "pixel AUROC",
}
DECISIVE = tuple(METRICS)[:2]

Runs = dict[tuple[str, int | None, int, str], dict]  # (arm, seed or None, data seed, training set): JSON


def values_of(runs: Runs, arm: str, metric: str) -> dict[tuple[str, int | None, int], float]:
    """{(class, seed, data seed): value} of an arm; a class is called by its set and its name."""
    found = {}
    for (name, seed, data_seed, _), run in runs.items():
        if name != arm:
            continue
        for test_set, entry in run["metrics"].items():
            whole = test_set.split("_")[0]
            for class_name, row in entry["classes"].items():
                value = renamed(row)[metric]
                if value is not None:
                    found[f"{whole}/{class_name}", seed, data_seed] = value
    return found


def paired(
    runs: Runs, arm: str, reference: str, metric: str
) -> tuple[np.ndarray, np.ndarray, list, list, list]:
    """(arm, reference) as arrays [classes, seeds, data seeds], and those three, over what both have in full.

    Something that is not trained has one value for every seed. A seed counts where every class of every data seed that
    both arms know is there; a data seed where one whole seed is.
    """
    ours, theirs = values_of(runs, arm, metric), values_of(runs, reference, metric)
    seeds = sorted({key[1] for key in (*ours, *theirs)} - {None})
    spread = [
        {
            (c, s, d): value
            for (c, own, d), value in side.items()
            for s in ([own] if own is not None else seeds)
        }
        for side in (ours, theirs)
    ]
    both = spread[0].keys() & spread[1].keys()
    classes = sorted({key[0] for key in both})
    data_seeds = sorted({key[2] for key in both})
    seeds = [s for s in seeds if all((c, s, d) in both for c in classes for d in data_seeds)]
    if not seeds:
        data_seeds = data_seeds[:1]  # the second has only begun
        seeds = sorted({key[1] for key in both})
        seeds = [s for s in seeds if all((c, s, d) in both for c in classes for d in data_seeds)]
    arrays = [
        np.array([[[side[c, s, d] for d in data_seeds] for s in seeds] for c in classes], dtype=float)
        for side in spread
    ]
    return *arrays, classes, seeds, data_seeds


def compare(runs: Runs, arm: str, reference: str, metric: str) -> dict | None:
    """An arm minus a reference in one metric, as fractions: what `comparison.significance.verdict` asks for, and more.

    Returns:
        {"arm", "against", "metric", "value", "low", "high", "low_90", "high_90", "p", "smallest_p", "detectable",
        "wins", "ties", "losses", "means": (arm, reference), "seeds", "data_seeds", "by_class"}; None without a pair.
    """
    ours, theirs, classes, seeds, data_seeds = paired(runs, arm, reference, metric)
    if not ours.size:
        return None
    difference = ours - theirs
    mean = mean_of_runs(difference)
    by_class = difference.mean(axis=(1, 2))
    row = {
        "arm": arm,
        "against": reference,
        "metric": metric,
        "value": float(difference.mean()),
        "means": (float(ours.mean()), float(theirs.mean())),
        "seeds": seeds,
        "data_seeds": data_seeds,
        "by_class": dict(zip(classes, by_class.tolist(), strict=True)),
        "p": sign_flip_p(by_class, np.random.default_rng(0)),
        "smallest_p": smallest_p(len(classes)),
    }
    names = ("low", "high", "low_90", "high_90")
    ends = (None,) * 4 if mean is None else (*mean.interval(1 - LEVEL), *mean.interval(1 - 2 * LEVEL))
    row |= dict(zip(names, ends, strict=True))
    row["detectable"] = None if mean is None else mean.detectable(LEVEL)
    return row | wins_ties_losses(difference)


def judged(runs: Runs, arms: Iterable[str], hypotheses: Sequence[dict]) -> list[dict]:
    """Rows of all arms against what they have to beat in all metrics; "verdict" and "p_holm" where declared.

    Args:
        hypotheses: {"arm", "against", "metric", "at_least" (points)} each, declared before the runs.
    """
    rows = []
    for arm in arms:
        if ARMS[arm].control:
            continue
        for reference in dict.fromkeys(("baseline", *ARMS[arm].against)):
            rows += [row for metric in METRICS if (row := compare(runs, arm, reference, metric)) is not None]
    declared = {(one["arm"], one["against"], one["metric"]): one for one in hypotheses}
    family = [row for row in rows if (row["arm"], row["against"], row["metric"]) in declared]
    count = len(declared)  # those without runs yet count: the family does not grow while one looks
    padded = [row["p"] for row in family] + [1.0] * (count - len(family))
    for row, p in zip(family, holm(padded), strict=False):
        one = declared[row["arm"], row["against"], row["metric"]]
        row["p_holm"], row["at_least"] = p, one["at_least"] / 100
        if row["low"] is not None:
            row["verdict"] = verdict(row, p, count)
    return rows


def report(runs: Runs, arms: Sequence[str], hypotheses: Sequence[dict], confirming: bool = False) -> str:
    """Markdown: what each arm comes to, all arms' means, a table of differences per metric, what --watch logged.

    Args:
        arms: that are told of; runs and hypotheses of others may be there, and all hypotheses count.
    """
    watched = watched_parts({key: run for key, run in runs.items() if key[0] in arms})
    rows = judged(runs, arms, hypotheses)
    results = outcomes(rows, [one for one in hypotheses if one["arm"] in arms], watched, confirming)
    parts = [outcome_table(results), "", means_table(runs, arms), ""]
    for metric, title in METRICS.items():
        chosen = [row for row in rows if row["metric"] == metric]
        if not chosen:
            continue
        parts += [
            f"### {title}",
            "",
            "| arm | against | seeds × data seeds | against | arm | difference [95 % interval] | found | +/=/− | "
            "wanted | verdict |",
            "|--|--|--|--|--|--|--|--|--|--|",
            *(line_of(row) for row in chosen),
            "",
        ]
    parts += [class_table(rows, metric) for metric in DECISIVE]
    if watched:
        parts += [
            "### Last epoch of the trained arms, smallest to largest of all runs",
            "",
            watched_table(watched),
        ]
    return "\n".join(parts).rstrip() + "\n"


def class_table(rows: Iterable[dict], metric: str) -> str:
    """Markdown: every arm minus the baseline by class in a metric, points, means over seeds and data seeds."""
    chosen = [row for row in rows if row["metric"] == metric and row["against"] == "baseline"]
    if not chosen:
        return ""
    lines = [f"### Minus the baseline by class, {METRICS[metric]}", ""]
    lines.append("| class | " + " | ".join(row["arm"] for row in chosen) + " |")
    lines.append("|--|" + "--|" * len(chosen))
    for name in chosen[0]["by_class"]:
        cells = [f"{100 * row['by_class'][name]:+.1f}" if name in row["by_class"] else "–" for row in chosen]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def means_table(runs: Runs, arms: Sequence[str]) -> str:
    """Markdown: every arm's mean over classes and seeds in every metric, percent, as far as its runs go."""
    lines = ["| arm | runs | " + " | ".join(METRICS.values()) + " |", "|--|--|" + "--|" * len(METRICS)]
    for arm in arms:
        count = sum(key[0] == arm for key in runs)
        if not count:
            continue
        cells = [f"{100 * np.mean(list(values_of(runs, arm, metric).values())):.1f}" for metric in METRICS]
        lines.append(f"| {arm} | {count} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def line_of(row: dict) -> str:
    """One row of a table of differences."""
    interval = "–" if row["low"] is None else f"[{100 * row['low']:+.2f}, {100 * row['high']:+.2f}]"
    found = "–" if row["detectable"] is None else f"{100 * row['detectable']:.1f}"
    wanted = f"≥ {100 * row['at_least']:+.0f}" if "at_least" in row else ""
    told = f"{row['verdict']} (p {row['p_holm']:.3f})" if "verdict" in row else ""
    cells = [
        row["arm"],
        row["against"],
        f"{len(row['seeds'])} × {len(row['data_seeds'])}",
        f"{100 * row['means'][1]:.2f}",
        f"{100 * row['means'][0]:.2f}",
        f"{100 * row['value']:+.2f} {interval}",
        found,
        f"{row['wins']}/{row['ties']}/{row['losses']}",
        wanted,
        told,
    ]
    return "| " + " | ".join(cells) + " |"
