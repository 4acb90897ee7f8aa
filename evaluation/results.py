"""Results of evaluations: AA-CLIP's table as text, metrics.json and metrics.csv of a run's folder."""

import io
import json
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from files.atomic import write_text
from files.cells import CellWriter, plain
from metrics import renamed, with_old_names

UNDEFINED = "–"  # in every table for people; null in JSON, empty in CSV


def format_table(rows: list[dict]) -> str:
    """Upstream's table as aligned text: one line per class, percent with two decimals, a dash for undefined."""
    columns = list(rows[0])
    cells = [[_cell(row[key]) for key in columns] for row in rows]
    widths = [max(len(line[i]) for line in [columns, *cells]) for i in range(len(columns))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in [columns, *cells]
    )


def _cell(value: str | float | None) -> str:
    if value is None:
        return UNDEFINED
    return plain(value) if isinstance(value, str) else f"{value:.2f}"


def write_metrics(
    save_path: Path | str,
    dataset: str,
    checkpoint: str,
    result: dict,
    evaluation_info: dict,
    wanted: Sequence[str] = (),
) -> None:
    """Merge one evaluation into `metrics.json` (full precision, undefined = null) and rewrite `metrics.csv`.

    Args:
        result: of evaluation.predictions.evaluate_dataset; its error bounds, if any, are stored beside the metrics.
        evaluation_info: what the numbers depend on (image size, seed, settings of the checkpoint, hashes).
        wanted: the classes that the evaluation is going to have. As long as one is missing, the entry names it under
            "unfinished", and a finished entry of the very same things stays instead.

    Raises:
        ValueError: the folder's metrics.json is not readable; it is left as it is.
    """
    path = Path(save_path) / "metrics.json"
    with FileLock(Path(save_path) / ".metrics.lock"):  # two evaluations may end at the same time
        _merge_metrics(path, dataset, checkpoint, result, evaluation_info, wanted)


def is_unfinished(save_path: Path | str, dataset: str, checkpoint: str) -> bool:
    """Whether metrics.json says that an evaluation lacks classes."""
    everything = json.loads((Path(save_path) / "metrics.json").read_text(encoding="utf-8"))
    return "unfinished" in everything[dataset][checkpoint]


def _merge_metrics(path, dataset, checkpoint, result, evaluation_info, wanted):
    try:
        everything = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is not JSON ({error}): move it away, evaluation would overwrite it"
        ) from error
    classes = {name: with_old_names(row) for name, row in result["classes"].items()}
    entry = evaluation_info | {"classes": classes, "mean": with_old_names(result["mean"])}
    unfinished = [name for name in wanted if name not in classes]
    if unfinished:
        before = everything.get(dataset, {}).get(checkpoint, {"unfinished": []})
        if "unfinished" not in before and all(
            before.get(key) == evaluation_info[key] for key in evaluation_info
        ):
            return
        entry["unfinished"] = unfinished
    if result.get("error_bounds"):
        entry["error_bounds"] = result["error_bounds"]
    everything.setdefault(dataset, {})[checkpoint] = entry
    write_text(path, json.dumps(everything, indent=1) + "\n")
    table = io.StringIO()
    writer = CellWriter(table)
    metrics = list(result["mean"])
    writer.writerow(["dataset", "checkpoint", "class", *metrics])
    for name, checkpoints in everything.items():
        for file, found in checkpoints.items():
            for row_name, row in [*found["classes"].items(), ("mean", found["mean"])]:
                row = renamed(row)
                writer.writerow([name, file, row_name, *(row.get(key) for key in metrics)])
    write_text(path.with_suffix(".csv"), table.getvalue())
