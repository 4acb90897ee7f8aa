"""The arms of a study: train and test one with a seed, keep its metrics as JSON, read what is finished.

An arm is a training script with its flags, or None with those of test.py. Every run has a process of its own; a run
whose JSON is there is not repeated, so a study can be stopped, continued and extended.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from files.atomic import write_text
from run_folder.checkpoints import versions

ROOT = Path(__file__).resolve().parent.parent
MODEL = "ViT-Tiny-8-demo"
CROSS = "train_cross_attention.py"
FEEDBACK = "train_cross_attention_feedback.py"
TEST_FLAGS = {FEEDBACK: ["--all"]}
PRODUCTS = ("--matmul", "auto")  # the faster library of matrix products, in training and at test
PACE = ("--precision", "bf16", *PRODUCTS)  # what makes forty runs of an arm affordable; one for all arms


def run_arm(
    script: str | None,
    flags: list[str],
    seed: int,
    train_set: str,
    test_sets: Sequence[str],
    data: Path,
    folder: Path,
    config: str | None = None,
) -> dict:
    """Train and test one arm with one seed.

    Args:
        config: dataset file below `data` that declares the sets, or None for the built-in ones.

    Returns:
        {"commands", "seconds", "metrics": {test set: metrics of the last checkpoint}, "versions"}; a feedback run has
        {"loops": {test set: [mean metrics per loop]}, "history": [losses per loop]} too.
    """
    commands = [training_command(script, flags, seed, train_set, data, folder, config)] if script else []
    for test_set in test_sets:
        commands.append(
            [
                "test.py",
                "--dataset",
                test_set,
                *common_flags(seed, data, folder, config),
                *(TEST_FLAGS.get(script, []) if script else flags),
            ]
        )
    begin = time.perf_counter()
    for command in commands:
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    last_entries = {test_set: list(metrics[test_set].values())[-1] for test_set in test_sets}
    loops = {}
    if script == FEEDBACK:
        loops["loops"] = {
            test_set: [entry["mean"] for file, entry in metrics[test_set].items() if file.startswith("loop_")]
            for test_set in test_sets
        }
        loops["history"] = json.loads((folder / "history.json").read_text(encoding="utf-8"))
    return {
        "commands": [" ".join(["python", *command]) for command in commands],
        "seconds": round(time.perf_counter() - begin, 1),
        "metrics": {
            test_set: {"mean": entry["mean"], "classes": entry["classes"]}
            for test_set, entry in last_entries.items()
        },
        "versions": versions(),
    } | loops


def common_flags(seed: int, data: Path | str, folder: Path | str, config: str | None = None) -> list[str]:
    """Flags of training and testing."""
    declared = ["--dataset_config", f"{data}/{config}"] if config else []
    return [
        *declared,
        "--model_name",
        MODEL,
        "--data_root",
        str(data),
        "--save_path",
        str(folder),
        "--seed",
        str(seed),
    ]


def caches(data: Path | str) -> list[str]:
    """Flags of the caches that all runs on the same rendered sets share; they change no number."""
    return ["--feature_cache", f"{data}/features", "--image_cache", f"{data}/pictures"]


def training_command(
    script: str,
    flags: list[str],
    seed: int,
    train_set: str,
    data: Path | str = "DATA",
    folder: Path | str = "RUN",
    config: str | None = None,
) -> list[str]:
    """The words behind "python" that train an arm; with the default places as a run's JSON has them."""
    return [script, "--dataset", train_set, *flags, *common_flags(seed, data, folder, config)]


def run_missing(
    tasks: list[tuple[str, int]],
    arms: dict[str, tuple[str | None, list[str]]],
    train_set: str,
    test_sets: Sequence[str],
    data: Path,
    runs: Path,
    out: Path,
    config: str | None = None,
) -> None:
    """Train and test what has no JSON in `out` yet, and write it there.

    Args:
        tasks: [(arm, seed)].
        arms: {arm: (script, flags)}.
        data: the rendered sets.
        runs: folder of the run folders.
        config: as in `run_arm`.
    """
    for arm, seed in tasks:
        file, folder = out / f"{arm}_seed{seed}.json", runs / f"{arm}_seed{seed}"
        if file.is_file():
            continue
        print(f"{runs.name}: {arm}, seed {seed}", flush=True)
        result = run_arm(*arms[arm], seed, train_set, test_sets, data, folder, config)
        text = json.dumps({"arm": arm, "seed": seed, "train": train_set, **result}, indent=1)
        write_text(file, text.replace(str(data), "DATA").replace(str(folder), "RUN") + "\n")


def read_results(
    out: Path | str, arms: dict[str, tuple[str | None, list[str]]], train_set: str, config: str | None = None
) -> dict[tuple[str, int], dict]:
    """Finished runs {(arm, seed): JSON} of a folder.

    Args:
        arms: {arm: (script, flags)}; runs of other arms in the folder are not read.

    Raises:
        ValueError: a run was trained with another command than its arm's is now; it would be compared with the others.
    """
    results = {}
    for file in sorted(Path(out).glob("*_seed*.json")):
        result = json.loads(file.read_text(encoding="utf-8"))
        if result["arm"] not in arms:
            continue
        script, flags = arms[result["arm"]]
        if script:
            expected = " ".join(
                ["python", *training_command(script, flags, result["seed"], train_set, config=config)]
            )
            if result["commands"][0] != expected:
                raise ValueError(
                    f"{file} was trained by\n{result['commands'][0]}\nand not by\n{expected}\n"
                    "Repeat its flags, give another --out, or delete the file"
                )
        results[result["arm"], result["seed"]] = result
    return results
