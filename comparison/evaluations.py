"""Evaluations of runs: making those that are missing or out of date, and reading them."""

from collections.abc import Callable, Sequence

from comparison.arms import Run
from comparison.comparable import NETWORK_FLAGS
from evaluation.run import DEFAULTS, GROUPS, UNTRAINED, evaluate_run
from evaluation.scores import read_about, scores_file
from files.atomic import sha256
from files.cells import plain
from files.text import read_json
from metrics import METRICS_VERSION
from run_folder.flags import parse


def outdated(run: Run, dataset: str) -> str | None:
    """Why a run's stored scores on a dataset cannot be used, or None if they can."""
    path = scores_file(run.folder, dataset, run.checkpoint)
    if not path.is_file():
        return "not evaluated yet"
    evaluation_info = read_about(path)
    if evaluation_info["metrics_version"] != METRICS_VERSION:
        return f"evaluated with version {evaluation_info['metrics_version']} of the metrics, this is {METRICS_VERSION}"
    trained, tested = evaluation_info["settings"] or {}, evaluation_info["tested_with"]
    for flag in NETWORK_FLAGS if run.file is not None else ():
        if flag != "img_size" and flag in trained and tested.get(flag, trained[flag]) != trained[flag]:
            return f"an ablation: tested with --{flag} {tested[flag]}, trained with {trained[flag]}"
    if run.file is not None:
        for name, stored in evaluation_info["checkpoints"].items():
            file = run.folder / name
            if not file.is_file() or sha256(file) != stored:
                return f"{name} is another file than the evaluated one"
    return None


def evaluate_missing(
    runs: Sequence[Run], datasets: Sequence[str], flags: Sequence[str], say: Callable[[str], None]
) -> None:
    """Evaluate every run on every dataset where that is missing or out of date, as test.py does.

    Args:
        flags: further flags for test.py, for instance ["--data_root", ...].
        say: function (line), hears what is evaluated and why.

    Raises:
        FileNotFoundError: a run is kept without its checkpoint and was not evaluated on a dataset.
    """
    for run in runs:
        for dataset in datasets:
            reason = outdated(run, dataset)
            if reason is None:
                continue
            say(f"evaluating {plain(run.folder)} ({run.checkpoint}) on {dataset}: {reason}")
            if run.file is None and run.kind not in UNTRAINED:
                raise FileNotFoundError(
                    f"{run.folder} holds evaluations but no checkpoint, and on {dataset} it is {reason}: "
                    "leave the dataset out, or put the checkpoint back"
                )
            chosen = [*how_to_load(run), "--dataset", dataset, "--save_path", str(run.folder), *flags]
            evaluate_run(parse("test.py's flags", GROUPS, chosen, DEFAULTS))


def how_to_load(run: Run) -> list[str]:
    """test.py's flags that choose a run's model."""
    if run.kind in UNTRAINED:
        metrics = read_json(run.folder / "metrics.json")
        entry = next(entries[run.kind] for entries in metrics.values() if run.kind in entries)
        return [f"--{run.kind}", "--model_name", entry["model_name"], "--img_size", str(entry["img_size"])]
    model = ["--model_name", run.settings["model_name"]] if run.settings else []
    return ["--checkpoint", str(run.file), *model]
