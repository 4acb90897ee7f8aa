"""Choose --feedback_mix on training classes that are held out; no test set is looked at.

    python -m studies.choose_mix --dataset VisA --data_root DATA --out runs/mix -- --training_mode full_shot

The data set's classes, taken in turns, are two halves. Every share is trained on one half and tested on the other, both
ways and with every seed, at the same steps; chosen is the share with the largest mean of `--metric` over the held-out
classes, of equal ones the smaller. What stands behind `--` goes to train_cross_attention_feedback.py. A run whose JSON
lies in --out is not repeated, so the choice can be stopped, continued and extended by seeds and shares.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from dataset import DOMAINS, get_dataset
from dataset.constants import CLASS_NAMES, DATA_PATH, REAL_NAMES
from dataset.jsonl import Sample, write_rows
from dataset.mask_values import mask_reading_of
from dataset.paths import resolve_data_root
from files.atomic import write_text
from files.command import run_main
from files.logs import quiet_logger
from run_folder.flags import HelpFormatter
from run_folder.kinds import FINAL_MODEL
from run_folder.session import declare_datasets
from run_folder.settings import DataSettings
from studies.arm_runs import FEEDBACK, ROOT

METRICS = ("pixel_ap", "pixel_aupro", "image_auroc_unnormalised", "image_ap_unnormalised")
CONFIG = "halves.json"


def row_of(sample: Sample, root: Path) -> dict:
    """A metadata row, its paths relative to the data root."""
    row = {"image_path": sample.file_name, "label": sample.label, "class_name": sample.class_name}
    masks = [Path(os.path.relpath(mask, root)).as_posix() for mask in sample.mask_paths]
    return row | ({"mask_path": masks} if masks else {})


def declare_halves(dataset: str, root: Path, out: Path) -> tuple[str, str]:
    """Write a dataset file with both halves of a data set's classes, and their rows; returns their names.

    Raises:
        ValueError: it has fewer than two classes.
    """
    samples = [
        sample
        for images in get_dataset(dataset, 32, None, 0, "test", quiet_logger(), data_root=root).values()
        for sample in images.samples
        if sample.label is not None
    ]
    found = {sample.class_name for sample in samples}
    names = [name for name in CLASS_NAMES[dataset] if name in found]
    if len(names) < 2:
        raise ValueError(
            f"--dataset {dataset}: {len(names)} class is there, and none can be held out: choose the share on another "
            "data set"
        )
    entries, halves = {}, (f"{dataset}_even", f"{dataset}_odd")
    for number, half in enumerate(halves):
        own = names[number::2]
        write_rows([row_of(one, root) for one in samples if one.class_name in own], out / f"{half}.jsonl")
        entries[half] = {
            "path": DATA_PATH[dataset],
            "domain": DOMAINS[dataset],
            "classes": {name: REAL_NAMES[dataset][name] for name in own},
            "metadata": f"{half}.jsonl",
        }
    write_text(out / CONFIG, json.dumps(entries, indent=1) + "\n")
    return halves


def commands(
    args: argparse.Namespace, halves: tuple[str, str], share: float, seed: int, folder: Path
) -> list[list[str]]:
    """The words behind "python" that train on the first of `halves` and test on the second."""
    shared = [
        "--dataset_config",
        str(Path(args.out) / CONFIG),
        "--save_path",
        str(folder),
        "--seed",
        str(seed),
    ]
    shared += ["--mask_reading", mask_reading_of(args.dataset, args.mask_reading)]
    for flag in ("data_root", "model_name", "clip_weights"):
        value = getattr(args, flag)
        shared += [f"--{flag}", str(value)] if value is not None else []
    training = [FEEDBACK, "--dataset", halves[0], *shared, *args.flags, "--feedback_mix", f"{share:g}"]
    return [training, ["test.py", "--dataset", halves[1], *shared]]


def held_out(file: Path, wanted: list[list[str]], folder: Path, test_set: str) -> dict[str, dict]:
    """{class: metrics} of a run: read from its JSON, or trained, tested and written there.

    Raises:
        ValueError: the JSON is of other commands.
    """
    if file.is_file():
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["commands"] != wanted:
            raise ValueError(
                f"{file} was made by\n{kept['commands']}\nand not by\n{wanted}\nGive another --out, or delete it"
            )
        return kept["classes"]
    for command in wanted:
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    classes = metrics[test_set][FINAL_MODEL]["classes"]
    write_text(file, json.dumps({"commands": wanted, "classes": classes}, indent=1) + "\n")
    return classes


def mean_of(runs: list[dict[str, dict]], metric: str) -> float | None:
    """Mean of a metric over the classes of all runs; None where none defines it."""
    values = [one[metric] for classes in runs for one in classes.values() if one[metric] is not None]
    return statistics.mean(values) if values else None


def chosen(runs: dict[float, list[dict[str, dict]]], metric: str) -> float:
    """The share with the largest mean, of equal ones the smallest.

    Raises:
        ValueError: no class defines the metric.
    """
    means = {share: mean_of(classes, metric) for share, classes in runs.items()}
    if None in means.values():
        raise ValueError(
            f"--metric {metric}: no held-out class defines it; choose another of {', '.join(METRICS)}"
        )
    return min(share for share, mean in means.items() if mean == max(means.values()))


def table(runs: dict[float, list[dict[str, dict]]]) -> str:
    """Markdown: means over held-out classes and seeds in percent, a row per share."""
    lines = ["| feedback_mix | " + " | ".join(METRICS) + " |", "|--" * (len(METRICS) + 1) + "|"]
    for share, classes in sorted(runs.items()):
        means = [mean_of(classes, metric) for metric in METRICS]
        cells = ["undefined" if mean is None else f"{100 * mean:.2f}" for mean in means]
        lines.append(f"| {share:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    made.add_argument("--dataset", required=True, help="the training set whose classes are halved")
    made.add_argument("--data_root", help="as in training")
    made.add_argument("--dataset_config", help="as in training, where --dataset is an own one")
    made.add_argument("--mask_reading", help="as in training")
    made.add_argument("--model_name", help="as in training")
    made.add_argument("--clip_weights", help="as in training")
    made.add_argument(
        "--shares",
        type=float,
        nargs="+",
        default=[0.0, 0.25, 0.5, 0.75, 1.0],
        help="values of --feedback_mix",
    )
    made.add_argument("--seeds", type=int, nargs="+", default=[111, 112, 113], help="training seeds")
    made.add_argument("--metric", choices=METRICS, default="pixel_ap", help="whose mean decides")
    made.add_argument(
        "--out", default="runs/choose_mix", help="folder of the halves, the runs and their JSON"
    )
    return made


def main(argv: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    end = words.index("--") if "--" in words else len(words)
    args = parser().parse_args(words[:end])
    args.flags, args.out = words[end + 1 :], str(Path(args.out).resolve())
    declare_datasets(DataSettings(dataset_config=args.dataset_config))
    args.data_root = str(resolve_data_root(args.data_root).resolve())
    halves = declare_halves(args.dataset, Path(args.data_root), Path(args.out))
    runs = {share: [] for share in args.shares}
    for seed in args.seeds:
        for share in args.shares:
            for pair in (halves, halves[::-1]):
                folder = Path(args.out) / f"{pair[0]}_mix{share:g}_seed{seed}"
                wanted = commands(args, pair, share, seed, folder)
                print(folder.name, flush=True)
                runs[share].append(
                    held_out(folder.with_suffix(f"{folder.suffix}.json"), wanted, folder, pair[1])
                )
    text = table(runs) + f"\nchosen by {args.metric}: --feedback_mix {chosen(runs, args.metric):g}\n"
    write_text(Path(args.out) / "table.md", text)
    print(text)


if __name__ == "__main__":
    run_main(main)
