"""Evaluations of runs: making those that are missing or out of date, and reading them."""

import argparse
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from comparison.arms import Run
from comparison.comparable import NETWORK_FLAGS
from dataset import get_dataset
from dataset.paths import dataset_folder, resolve_data_root
from evaluation.provenance import prompts_sha256, tested_rows
from evaluation.run import DEFAULTS, GROUPS, LOCAL_CONTRAST, UNTRAINED, evaluate_run
from evaluation.scores import digest, read_about, read_scores, scores_file
from files.atomic import sha256
from files.cells import plain
from files.logs import quiet_logger
from files.text import read_json
from metrics import METRICS_VERSION
from run_folder.flags import parse
from run_folder.identity import differing_rows


class SetNow:
    """A dataset's test images as they are now. They are read for their fingerprints once, when a run first asks."""

    def __init__(self, test_sets: dict[str, Dataset]):
        self._test_sets = test_sets

    @cached_property
    def rows(self) -> dict[str, Any]:
        """As an evaluation stores them, `evaluation.provenance.tested_rows`."""
        return tested_rows(self._test_sets.values())

    @cached_property
    def digests(self) -> dict[tuple[str, str], str]:
        """{(class, file): digest of the whole contents} of the labelled images."""
        return {
            (name, sample.file_name): digest(sample)
            for name, images in self._test_sets.items()
            for sample in images.samples
            if sample.label is not None
        }


def outdated(run: Run, dataset: str, now: SetNow | None = None) -> str | None:
    """Why a run's stored scores on a dataset cannot be used, or None if they can.

    Args:
        now: the dataset as it is now; None where it is not here and cannot be compared.
    """
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
    prompts = evaluation_info.get("prompts_sha256")
    if run.checkpoint != LOCAL_CONTRAST and prompts not in (None, prompts_sha256(dataset)):
        return "evaluated with other real names or prompts"
    return changed_rows(path, evaluation_info, now) if now is not None else None


def changed_rows(path: Path, evaluation_info: dict, now: SetNow) -> str | None:
    """How the test images, masks or rows differ from those a scores file was made of, or None."""
    if "rows" in evaluation_info:
        changed = differing_rows(evaluation_info["rows"], now.rows)
        return f"evaluated on {changed}" if changed else None
    # Files of older versions know the images by their whole contents alone.
    before = {
        (name, file): content
        for name, scores in read_scores(path)[0].items()
        for file, content in zip(scores.files.tolist(), scores.digests.tolist(), strict=True)
    }
    changed = sorted(
        key for key in before.keys() | now.digests.keys() if before.get(key) != now.digests.get(key)
    )
    return (
        f"evaluated on other images, masks or rows: {changed[0][1]} and {len(changed) - 1} more"
        if changed
        else None
    )


def rows_evaluated(runs: Sequence[Run], dataset: str) -> set[str]:
    """SHA-256s of the test images that stored scores of some runs on a dataset were made of."""
    files = [scores_file(run.folder, dataset, run.checkpoint) for run in runs]
    return {read_about(file)["rows_sha256"] for file in files if file.is_file()}


def set_now(dataset: str, flags: Sequence[str]) -> SetNow | None:
    """A dataset's test images as they are now; None where they are not here, as beside kept evaluations.

    Args:
        flags: of test.py, of which --data_root is looked at.

    Raises:
        ValueError, FileNotFoundError: they are here and their rows are not whole; the dataset is unknown.
    """
    words = argparse.ArgumentParser(add_help=False)
    words.add_argument("--data_root", help="as test.py takes it")
    try:
        root = resolve_data_root(words.parse_known_args(list(flags))[0].data_root)
        dataset_folder(dataset, root)
    except FileNotFoundError:
        return None
    return SetNow(get_dataset(dataset, 1, None, 0, "test", quiet_logger(), data_root=root, look=False))


def evaluate_missing(
    runs: Sequence[Run], datasets: Sequence[str], flags: Sequence[str], say: Callable[[str], None]
) -> None:
    """Evaluate every run on every dataset where that is missing or out of date, as test.py does.

    Out of date is what was made of another checkpoint, of other prompts, or of other images, masks or rows.

    Args:
        flags: further flags for test.py, for instance ["--data_root", ...].
        say: function (line), hears what is evaluated and why.

    Raises:
        FileNotFoundError: a run is kept without its checkpoint and was not evaluated on a dataset.
    """
    # Evaluations that contradict one another are left to the refusal, which names the images.
    sets = {
        dataset: set_now(dataset, flags) if len(rows_evaluated(runs, dataset)) < 2 else None
        for dataset in datasets
    }
    for run in runs:
        for dataset in datasets:
            reason = outdated(run, dataset, sets[dataset])
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
