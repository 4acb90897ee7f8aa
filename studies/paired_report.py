"""What the arms of a study change against its baseline, from the runs' JSON files: paired differences in Markdown."""

from collections.abc import Sequence

import numpy as np

from comparison.significance import compare_pairs, holm, verdict
from studies.references import REFERENCES

METRICS = ("pixel_auroc", "pixel_ap", "pixel_aupro", "image_auroc", "image_ap")
DECISIVE = ("pixel_ap", "image_auroc")  # chosen before the first run; these two get verdicts
ABOUT = (
    "Intervals take classes and training seeds as crossed random effects. p flips the signs of the classes' means, "
    'corrected by Holm over the arms and the decisive metrics of this table. "Found" is the smallest true difference '
    "that such a study finds in 4 of 5 cases."
)


def paired_rows(
    results: dict[tuple[str, int], dict],
    arms: Sequence[str],
    test_set: str,
    metric: str,
    baseline: str = "baseline",
) -> dict[str, dict]:
    """What each arm changes against the baseline in one metric, over the seeds both have.

    Args:
        results: {(arm, seed): the run's JSON}.
        arms: their names, the baseline's among them or not.
        metric: a key of the classes' metrics.
        baseline: the arm the others are compared with.

    Returns:
        {arm: {"seeds", "mean", "baseline", "value", "low", "high", "p", "wins", "ties", "losses", "by_class", …}},
        in percent; by_class is {class: mean difference over the seeds}.
        Interval and p as comparison.significance.compare_pairs.
    """
    rows = {}
    for arm in arms:
        seeds = [seed for name, seed in sorted(results) if name == arm and (baseline, seed) in results]
        if arm == baseline or not seeds:
            continue
        sides = [
            np.array(
                [
                    [one[metric] for one in results[name, seed]["metrics"][test_set]["classes"].values()]
                    for seed in seeds
                ],
                dtype=float,
            ).T
            for name in (baseline, arm)
        ]  # [classes, seeds] each
        defined = ~np.isnan(sides[0]).any(axis=1)
        if not defined.any():
            continue
        difference = (sides[1] - sides[0])[defined]
        replicates = np.repeat(difference[..., None], 4000, axis=2)
        difference_row = compare_pairs(difference, replicates, np.random.default_rng(0))._asdict()
        difference_row |= {"baseline": sides[0][defined].mean(), "mean": sides[1][defined].mean()}
        percent = {
            key: None if difference_row[key] is None else 100 * difference_row[key]
            for key in ("baseline", "mean", "value", "low", "high", "detectable")
        }
        names = list(results[arm, seeds[0]]["metrics"][test_set]["classes"])
        by_class = {
            name: 100 * float(row.mean()) for name, row in zip(names, sides[1] - sides[0], strict=True)
        }
        rows[arm] = difference_row | percent | {"seeds": len(seeds), "by_class": by_class}
    return rows


def report(
    results: dict[tuple[str, int], dict], arms: Sequence[str], test_set: str, baseline: str = "baseline"
) -> str:
    """Markdown: one table per metric; verdicts in the decisive metrics (Holm over them and the arms) for all arms but
    the controls and what is not trained, which are there to be looked at, as is every difference to those."""
    every = {metric: paired_rows(results, arms, test_set, metric, baseline) for metric in METRICS}
    family = [
        row
        for metric in DECISIVE
        for arm, row in every[metric].items()
        if not arm.startswith("control_") and arm not in REFERENCES and baseline not in REFERENCES
    ]
    for row, p in zip(family, holm([row["p"] for row in family]), strict=True):
        row["verdict"] = f"{verdict(row, p, len(family))} (p {p:.3f})"
    parts = [f"Arm minus {baseline}, paired by (class x seed), in percent. {ABOUT}"]
    for metric, rows in every.items():
        parts += [
            "",
            f"### {metric}, {test_set}",
            "",
            f"| arm | seeds | {baseline} | arm | difference [95 % interval] | found | wins/ties/losses | verdict |",
            "|--|--|--|--|--|--|--|--|",
        ]
        for arm, row in rows.items():
            interval = f"{row['value']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"
            found = "–" if row["detectable"] is None else f"{row['detectable']:.1f}"
            counts = f"{row['wins']}/{row['ties']}/{row['losses']}"
            cells = [row["seeds"], f"{row['baseline']:.2f}", f"{row['mean']:.2f}", interval, found, counts]
            parts.append(f"| {arm} | " + " | ".join(map(str, cells)) + f" | {row.get('verdict', '')} |")
        if metric in DECISIVE and rows:
            classes = list(next(iter(rows.values()))["by_class"])
            parts += [
                "",
                f"Difference by class, {metric}:",
                "",
                "| arm | " + " | ".join(classes) + " |",
                "|--|" + "--|" * len(classes),
            ]
            for arm, row in rows.items():
                parts.append(
                    f"| {arm} | " + " | ".join(f"{row['by_class'][name]:+.1f}" for name in classes) + " |"
                )
    return "\n".join(parts).strip() + "\n"
