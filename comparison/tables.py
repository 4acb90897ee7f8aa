"""A comparison as text: console, Markdown, LaTeX, CSV and JSON."""

import csv
import io
import re
from collections.abc import Sequence

from comparison.significance import LEVEL, largest_family, units_needed
from evaluation.results import UNDEFINED
from files.cells import cell

TITLES = {
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "pixel_f1max": "pixel F1-max",
    "pixel_aupro": "AUPRO@0.3",
    "image_auroc": "image AUROC",
    "image_ap": "image AP",
    "image_f1max": "image F1-max",
    "image_auroc_unnormalised": "image AUROC, unnormalised",
    "image_ap_unnormalised": "image AP, unnormalised",
    "image_f1max_unnormalised": "image F1-max, unnormalised",
}
VERDICTS = {
    "equivalent": "no difference beyond the margin",
    "undecidable": "undecidable with these classes",
}
COLUMNS = (
    "dataset",
    "arm",
    "class",
    "metric",
    "baseline",
    "arm_value",
    "value",
    "low",
    "high",
    "bootstrap_low",
    "bootstrap_high",
    "p",
    "p_holm",
    "p_images",
    "detectable",
    "wins",
    "ties",
    "losses",
    "seeds",
)
HEADER = ("metric", "baseline", "arm", "difference", "95 % interval", "p", "p (Holm)", "win/tie/loss")
LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "\n": " ",
}


def percent(value: float | None, signed: bool = False) -> str:
    """A fraction in percent with two decimals; a dash for undefined."""
    if value is None:
        return UNDEFINED
    return f"{100 * value:+.2f}" if signed else f"{100 * value:.2f}"


def p_text(value: float | None) -> str:
    """A p-value with three decimals; a dash for undefined."""
    if value is None:
        return UNDEFINED
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def interval(row: dict) -> str:
    """ "[low, high]" in percentage points."""
    return (
        UNDEFINED if row["value"] is None else f"[{percent(row['low'], True)}, {percent(row['high'], True)}]"
    )


def cells(metric: str, row: dict) -> list[str]:
    """One line of a table, as `HEADER`."""
    counts = UNDEFINED if row["value"] is None else f"{row['wins']}/{row['ties']}/{row['losses']}"
    return [
        TITLES[metric],
        percent(row["baseline"]),
        percent(row["arm"]),
        percent(row["value"], True),
        interval(row),
        p_text(row["p"]),
        p_text(row["p_holm"]),
        counts,
    ]


def verdict_lines(results: dict[str, dict]) -> list[tuple[str, str, list[tuple[str, str, str]]]]:
    """The declared hypotheses by dataset and arm in plain words: [(dataset, arm, [(metric, word, text)])]."""
    lines = []
    for dataset, result in results.items():
        for arm, compared in result["arms"].items():
            words = [
                (metric, row["verdict"], verdict_text(metric, row))
                for metric, row in compared["metrics"].items()
                if "verdict" in row
            ]
            if words:
                lines.append((dataset, arm, words))
    return lines


def verdict_text(metric: str, row: dict) -> str:
    """The verdict in one metric with its interval, and what a reader needs to weigh it."""
    if row["value"] is None:
        kinds = "pixels of both kinds and masks" if metric.startswith("pixel") else "both labels"
        return f"{TITLES[metric]}: undefined, no class has {kinds}"
    text = (
        f"{TITLES[metric]}: {VERDICTS.get(row['verdict'], row['verdict'])}, {percent(row['value'], True)} points, "
        f"95 % interval {interval(row)}, p {p_text(row['p_holm'])} after Holm over {row['hypotheses']}"
    )
    if row["verdict"] == "not shown" and not row["low"] <= 0 <= row["high"]:
        text += " (the interval excludes 0, the corrected p does not confirm it)"
    elif row["verdict"] == "not shown" and row["p_holm"] < LEVEL:
        text += " (p alone would say so, the interval does not exclude 0)"
    if row["verdict"] == "undecidable":
        text += (
            f": {row['smallest_p']:.2g} is the smallest p of so few classes; {units_needed(row['hypotheses'])} classes "
            f"could decide {_counted(row['hypotheses'], 'hypothesis', 'hypotheses')}"
        )
        if row["smallest_p"] < LEVEL:
            text += f", or these classes {_counted(largest_family(row['smallest_p']), 'hypothesis', 'hypotheses')}"
    if row["detectable"] is not None:
        text += f"; a true {percent(row['detectable'])} points would be found in 4 of 5 such studies"
    if row["p_images"] is not None:
        text += f"; these runs on these images only: p {p_text(row['p_images'])}"
    return text


def _counted(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def seeds_text(seeds: Sequence[int | None]) -> str:
    """ "seed 111" or "seeds 111, 112"."""
    known = ", ".join("any" if seed is None else str(seed) for seed in seeds)
    return f"seed{'s' if len(seeds) > 1 else ''} {known}"


def console(results: dict[str, dict]) -> str:
    """Aligned tables of every dataset and arm, verdicts last."""
    parts = []
    for dataset, result in results.items():
        for arm, compared in result["arms"].items():
            seeds = seeds_text(compared["seeds"])
            parts.append(f"\n{dataset} @{result['img_size']}px: {arm} against the baseline, {seeds}")
            lines = [HEADER, *(cells(metric, row) for metric, row in compared["metrics"].items())]
            widths = [max(len(line[i]) for line in lines) for i in range(len(HEADER))]
            parts += [
                "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
                for line in lines
            ]
    parts.append("")
    for dataset, arm, words in verdict_lines(results):
        parts += [f"{dataset}, {arm}: {text}" for _, _, text in words]
    return "\n".join(parts)


def escape_markdown(text: object) -> str:
    """Text that Markdown shows as it is, inside a table too."""
    escaped = re.sub(r"([\\`*_{}\[\]()#+!|~])", r"\\\1", " ".join(str(text).split()))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def escape_latex(text: object) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(LATEX.get(character, character) for character in str(text))


def markdown(results: dict[str, dict]) -> str:
    """The verdicts, then one table per dataset and arm."""
    lines = ["# Comparison with the baseline", ""]
    for dataset, arm, words in verdict_lines(results):
        lines += [
            f"* **{escape_markdown(dataset)}, {escape_markdown(arm)}**: "
            + "; ".join(text for *_, text in words)
        ]
    for dataset, result in results.items():
        for arm, compared in result["arms"].items():
            title = f"{escape_markdown(dataset)} @{result['img_size']}px: {escape_markdown(arm)}"
            lines += ["", f"## {title}", "", f"Percent; {seeds_text(compared['seeds'])}.", ""]
            lines += ["| " + " | ".join(HEADER) + " |", "|--" * len(HEADER) + "|"]
            lines += [
                "| " + " | ".join(cells(metric, row)) + " |" for metric, row in compared["metrics"].items()
            ]
    return "\n".join(lines) + "\n"


def latex(results: dict[str, dict], metrics: Sequence[str]) -> str:
    """One table of all datasets and arms: value and difference with its interval in some metrics (needs booktabs)."""
    lines = [r"\begin{tabular}{ll" + "r" * 2 * len(metrics) + "}", r"\toprule"]
    heads = " & ".join(rf"\multicolumn{{2}}{{c}}{{{escape_latex(TITLES[metric])}}}" for metric in metrics)
    lines += [rf"dataset & arm & {heads} \\", r"\midrule"]
    for dataset, result in results.items():
        seeds = None
        for arm, compared in result["arms"].items():
            # An arm with other seeds is paired with another mean of the baseline.
            if compared["seeds"] != seeds:
                seeds = compared["seeds"]
                baseline_cells = [
                    latex_number(percent(compared["metrics"][metric]["baseline"])) + " &"
                    for metric in metrics
                ]
                lines.append(
                    rf"{escape_latex(dataset)} & baseline, {seeds_text(seeds)} & {' & '.join(baseline_cells)} \\"
                )
            texts = []
            for metric in metrics:
                row = compared["metrics"][metric]
                texts += [percent(row["arm"]), f"{percent(row['value'], True)} {interval(row)}"]
            line = " & ".join(latex_number(text) for text in texts)
            lines.append(rf" & {escape_latex(arm)} & {line} \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def latex_number(text: str) -> str:
    """Numbers with LaTeX's minus signs; an en dash for undefined."""
    return re.sub(r"-(?=\d)", "$-$", text).replace("–", "--")


def csv_text(results: dict[str, dict]) -> str:
    """One line per dataset, arm, class ("mean" for all) and metric, in full precision; undefined is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", restval="")
    writer.writeheader()
    for dataset, result in results.items():
        for arm, compared in result["arms"].items():
            seeds = " ".join(str(seed) for seed in compared["seeds"])
            for metric, row in compared["metrics"].items():
                for name, class_row in [("mean", row), *row["classes"].items()]:
                    place = {"dataset": dataset, "arm": arm, "class": name, "metric": metric, "seeds": seeds}
                    row = class_row | {"arm_value": class_row["arm"]} | place
                    writer.writerow({column: cell(value) for column, value in row.items()})
    return text.getvalue()
