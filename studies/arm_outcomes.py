"""What every arm comes to: its declared rows against what was wanted, and what its trainings show of the mechanism.

An arm is selected where each of its declared rows reaches, as a mean, what was wanted; a confirmation asks for an
interval above 0 and a corrected p below 0.05 in each row too. A row whose 95 % interval lies below what was wanted
excludes it; these intervals are not corrected for their number.
"""

from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np

from studies.arm_registry import ARMS, BAR

IMAGE_ATTENTION = "image_cross_attn"
TARGET = {"pixel_ap": 0.03, "image_auroc_unnormalised": 0.01}  # over the baseline, of the whole project
NOTE = (
    "Reached: the mean difference is what was wanted or more (in a confirmation, helping as well). Excluded: the 95 % "
    "interval, not corrected for the number of rows, lies below it. One row missed, and the arm is not taken; one "
    "excluded, or missed with attention as narrow as was wanted, and it is refuted here. Not declared, for every arm: "
    "`over A6`, its pixel AP and own image AUROC minus the better of rarity alone and the baseline with rarity; and "
    "the target, 3 points of pixel AP and 1 of own image AUROC over the baseline, with intervals above 0 there and "
    "over both of A6."
)
WATCHED = ("displacement", "attention_entropy", "output_cosine", "gate", "temperature")


def state_of(row: dict | None, at_least: float, confirming: bool) -> str:
    """ "reached", "missed", "excluded" (the interval lies below what was wanted) or "not run".

    Args:
        row: of `arm_report.judged`; None without runs.
        at_least: wanted difference, a fraction.
        confirming: whether the verdict has to be "helps" as well.
    """
    if row is None:
        return "not run"
    if row["high"] is not None and row["high"] < at_least:
        return "excluded"
    if row["value"] < at_least or (confirming and row.get("verdict") != "helps"):
        return "missed"
    return "reached"


def outcomes(
    rows: Iterable[dict], hypotheses: Sequence[dict], watched: dict[str, dict], confirming: bool
) -> list[dict]:
    """Every declared arm's outcome.

    Args:
        rows: of `arm_report.judged`.
        hypotheses: {"arm", "against", "metric", "at_least" (points)} each.
        watched: of `watched_parts`.

    Returns:
        [{"arm", "states": {state: count}, "worst": (points below what was wanted, against, metric) or None, "entropy":
        largest of the image's attention or None, "over_bar": {metric: difference to the better of A6}, "target":
        whether the project's target is met, None without the rows, "outcome"}].
    """
    found = {(row["arm"], row["against"], row["metric"]): row for row in rows}
    results = []
    for arm in dict.fromkeys(one["arm"] for one in hypotheses):
        states, short = [], []
        for one in hypotheses:
            if one["arm"] != arm:
                continue
            row, at_least = found.get((arm, one["against"], one["metric"])), one["at_least"] / 100
            states.append(state_of(row, at_least, confirming))
            if row is not None:
                short.append((100 * (at_least - row["value"]), one["against"], one["metric"]))
        entropies = watched.get(arm, {}).get(IMAGE_ATTENTION, {}).get("attention_entropy", [])
        entropy = max(entropies, default=None)
        results.append(
            {
                "arm": arm,
                "states": {state: states.count(state) for state in dict.fromkeys(states)},
                "worst": max(short, default=None),
                "entropy": entropy,
                "over_bar": over_bar(arm, found),
                "target": is_target_met(arm, found),
                "outcome": outcome_of(states, ARMS[arm].entropy_below, entropy, confirming),
            }
        )
    return results


def over_bar(arm: str, found: dict[tuple[str, str, str], dict]) -> dict[str, float]:
    """{metric: an arm minus the better one of A6, a fraction}, where both were run; of A6 itself minus the other."""
    differences = {
        metric: [found[key]["value"] for bar in BAR if (key := (arm, bar, metric)) in found]
        for metric in TARGET
    }
    return {
        metric: min(values) for metric, values in differences.items() if len(values) == len(set(BAR) - {arm})
    }


def is_target_met(arm: str, found: dict[tuple[str, str, str], dict]) -> bool | None:
    """Whether both metrics lie by the target above the baseline and, with their intervals, above A6."""
    needed = [(arm, against, metric) for metric in TARGET for against in ("baseline", *BAR) if against != arm]
    if not set(needed) <= found.keys():
        return None
    return all(
        (found[key]["low"] or 0) > 0 and (key[1] != "baseline" or found[key]["value"] >= TARGET[key[2]])
        for key in needed
    )


def outcome_of(
    states: Sequence[str], entropy_below: float | None, entropy: float | None, confirming: bool
) -> str:
    """One of "not run", "unfinished", "refuted here", "selected" or "confirmed", "not selected" or "not confirmed"."""
    if set(states) == {"not run"}:
        return "not run"
    if "excluded" in states:
        return "refuted here"
    focused = entropy_below is None or (entropy is not None and entropy < entropy_below)
    if "missed" in states and entropy_below is not None and focused:
        return "refuted here"  # narrow attention without the gain
    if "missed" in states or not focused:
        return "not confirmed" if confirming else "not selected"
    if "not run" in states:
        return "unfinished"
    return "confirmed" if confirming else "selected"


def watched_parts(runs: dict) -> dict[str, dict]:
    """{arm: {part: {quantity: values}}} of what --watch logged of all runs' last epochs, every head and level."""
    found: dict[str, dict] = {}
    for (arm, *_), run in runs.items():
        for stage in run.get("watch", {}).values():
            for quantity, parts in stage.items():
                for part, value in parts.items():
                    own = found.setdefault(arm, {}).setdefault(part.split(".")[0], {})
                    own.setdefault(quantity, []).extend(np.ravel(value).tolist())
    return found


def outcome_table(results: Sequence[dict]) -> str:
    """Markdown of `outcomes`."""
    lines = [
        "| arm | declared rows | reached | missed | excluded | furthest below what was wanted | entropy | outcome | "
        "over A6, pixel AP / image | target |",
        "|--|--|--|--|--|--|--|--|--|--|",
    ]
    for one in results:
        states, worst = one["states"], one["worst"]
        counts = [states.get(state, 0) for state in ("reached", "missed", "excluded")]
        below = "–" if worst is None else f"{worst[0]:.2f} points ({worst[2]}, {worst[1]})"
        below = "none" if worst is not None and worst[0] <= 0 else below
        entropy = "–" if one["entropy"] is None else f"{one['entropy']:.2f}"
        cells = [one["arm"], sum(states.values()), *counts, below, entropy, one["outcome"]]
        cells.append(" / ".join(f"{100 * value:+.1f}" for value in one["over_bar"].values()) or "–")
        cells.append({None: "–", True: "met", False: "not met"}[one["target"]])
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join([*lines, "", NOTE])


def watched_table(watched: dict[str, dict]) -> str:
    """Markdown of `watched_parts`: from the smallest to the largest of all runs; gates by their size."""
    lines = [
        "| arm | part | displacement | entropy, of a uniform one's | cosine of outputs | gate, size | temperature |",
        "|--|--|--|--|--|--|--|",
    ]
    for arm, part in chain.from_iterable(
        ((arm, part) for part in watched[arm]) for arm in ARMS if arm in watched
    ):
        cells = [spread_of(watched[arm][part].get(quantity, []), quantity == "gate") for quantity in WATCHED]
        if cells[0] not in ("–", "0.000"):  # without a gradient nothing moves
            lines.append(f"| {arm} | {part} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread_of(values: Sequence[float], size: bool = False) -> str:
    """Smallest to largest, three decimals below 10."""
    if not values:
        return "–"
    values = np.abs(values) if size else np.asarray(values)
    ends = [f"{end:.3f}" if abs(end) < 10 else f"{end:.1f}" for end in (values.min(), values.max())]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)
