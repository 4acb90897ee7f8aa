"""Arms of a study over seeds: train, test, keep every run's metrics as JSON, and write the table.

    python -m studies.study --study baseline --seeds 111 112 113

One run per process; a run whose JSON lies in results/<study>/ is not repeated, so a study can be stopped, continued and
extended. The tables with their command are in results/<study>/table.md.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from files.atomic import write_text
from run_folder.checkpoints import versions
from studies import paired_report

ROOT = Path(__file__).resolve().parent.parent
MODEL = "ViT-Tiny-8-demo"
COLUMNS = ("pixel_auroc", "pixel_ap", "pixel_aupro", "image_auroc", "image_ap")
CROSS = "train_cross_attention.py"
FEEDBACK = "train_cross_attention_feedback.py"
STUDIES = {  # study: {arm: (training script, its flags), or (None, test.py's flags) for what is not trained}
    "baseline": {
        "local_contrast": (None, ["--local_contrast"]),
        "raw_clip": (None, ["--raw_clip"]),
        "baseline": ("train.py", []),
    },
    "cross_attention": {
        "baseline": ("train.py", []),
        **{
            f"{scope}_{anchors}": (CROSS, ["--context_scope", scope, "--text_context", anchors])
            for scope in ("class", "batch")
            for anchors in ("none", "train_mean", "image")
        },
    },
    "feedback": {  # recipe v2's text rate is made for ViT-L; as there, it is twice the baseline's
        "v1_3_loops": (FEEDBACK, ["--recipe", "v1", "--num_feedback_loops", "3"]),
        "v2_5_loops": (FEEDBACK, ["--recipe", "v2", "--num_feedback_loops", "5", "--text_lr", "4e-3"]),
    },
}
TEST_FLAGS = {FEEDBACK: ["--all"]}


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
    for name in test_sets:
        commands.append(
            [
                "test.py",
                "--dataset",
                name,
                *common_flags(seed, data, folder, config),
                *(TEST_FLAGS.get(script, []) if script else flags),
            ]
        )
    begin = time.perf_counter()
    for command in commands:
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    found = {name: list(metrics[name].values())[-1] for name in test_sets}
    loops = {}
    if script == FEEDBACK:
        loops["loops"] = {
            name: [entry["mean"] for file, entry in metrics[name].items() if file.startswith("loop_")]
            for name in test_sets
        }
        loops["history"] = json.loads((folder / "history.json").read_text(encoding="utf-8"))
    return {
        "commands": [" ".join(["python", *command]) for command in commands],
        "seconds": round(time.perf_counter() - begin, 1),
        "metrics": {
            name: {"mean": entry["mean"], "classes": entry["classes"]} for name, entry in found.items()
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


def table(study: str, results: dict[tuple[str, int], dict], test_sets: Sequence[str]) -> str:
    """Markdown: mean over the seeds of every metric, with the seeds' smallest and largest value, in percent."""
    lines = ["| test set | arm | seeds | " + " | ".join(COLUMNS) + " |", "|--|--|--|" + "--|" * len(COLUMNS)]
    for name in test_sets:
        for arm in STUDIES[study]:
            runs = [
                result["metrics"][name]["mean"] for (own, _), result in sorted(results.items()) if own == arm
            ]
            if not runs:
                continue
            cells = [spread([100 * run[column] for run in runs]) for column in COLUMNS]
            lines.append(f"| {name} | {arm} | {len(runs)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def loops_table(study: str, results: dict[tuple[str, int], dict], test_sets: Sequence[str]) -> str:
    """Markdown, for the study's feedback runs: metrics after every loop (as `table`), and the image stage's loss in
    every loop, first epoch -> last epoch, mean over the seeds; "" for a study without feedback."""
    lines = []
    for name in test_sets:
        for arm in STUDIES[study]:
            runs = [
                result for (own, _), result in sorted(results.items()) if own == arm and "loops" in result
            ]
            for loop in range(len(runs[0]["loops"][name]) if runs else 0):
                losses = [[epoch["loss"] for epoch in run["history"]["loops"][loop]["image"]] for run in runs]
                first, last = (statistics.mean(run[end] for run in losses) for end in (0, -1))
                falls = sum(run[-1] < run[0] for run in losses)
                cells = [
                    spread([100 * run["loops"][name][loop][column] for run in runs]) for column in COLUMNS
                ]
                cells += [f"{first:.3f} → {last:.3f}", f"{falls} of {len(runs)}"]
                lines.append(f"| {name} | {arm} | {loop + 1} | " + " | ".join(cells) + " |")
    if not lines:
        return ""
    head = [*COLUMNS, "image loss, first → last epoch", "falls in"]
    return "\n".join(
        [f"| test set | arm | loop | {' | '.join(head)} |", "|--|--|--|" + "--|" * len(head), *lines]
    )


def spread(values: list[float]) -> str:
    """Mean with smallest and largest value in brackets."""
    extremes = f" ({min(values):.1f}–{max(values):.1f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{extremes}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", choices=sorted(STUDIES), required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[111, 112, 113])
    parser.add_argument("--arms", nargs="+", help="some of the study's arms; default all")
    parser.add_argument("--train", default="DemoA", help="training set")
    parser.add_argument("--test", nargs="+", default=["DemoB", "DemoPhoto", "DemoPhotoMed"], help="test sets")
    parser.add_argument("--data", default="runs/study/data", help="the rendered demo sets; made if missing")
    parser.add_argument("--out", help="folder of JSON files and table; default results/<study>[_<train>]")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="of the training runs")
    args = parser.parse_args(argv)
    name = args.study if args.train == "DemoA" else f"{args.study}_{args.train}"
    out, data = Path(args.out or ROOT / "results" / name), Path(args.data).resolve()
    subprocess.run([sys.executable, "-m", "demo_world.render_sets", "--out", str(data)], cwd=ROOT, check=True)
    precision = [] if args.precision == "fp32" else ["--precision", args.precision]
    every = {
        arm: (script, [*flags, *(precision if script else [])])
        for arm, (script, flags) in STUDIES[args.study].items()
    }
    arms = {arm: every[arm] for arm in args.arms or every}
    read_results(out, every, args.train)  # a mismatch is better found before anything is trained
    tasks = [  # what is not trained has no seed
        (arm, seed)
        for seed in args.seeds
        for arm, (script, _) in arms.items()
        if script or seed == args.seeds[0]
    ]
    run_missing(tasks, arms, args.train, args.test, data, data.parent / f"{args.study}_{args.train}", out)
    results = read_results(out, every, args.train)
    report = table(args.study, results, args.test)
    loops = loops_table(args.study, results, args.test)
    report += f"\n\nLoop by loop:\n\n{loops}" if loops else ""
    trained = sum(bool(script) for script, _ in every.values())
    if len(args.seeds) > 1 and any(arm == "baseline" for arm, _ in results) and trained > 1:
        told = (paired_report.report(results, list(STUDIES[args.study]), name) for name in args.test)
        report += "\n\n" + "\n".join(told)
    seeds = " ".join(str(seed) for seed in sorted({seed for _, seed in results}))
    command = f"python -m studies.study --study {args.study} --train {args.train} --seeds {seeds}"
    command += f" --test {' '.join(args.test)}" + " ".join(["", *precision])
    write_text(
        out / "table.md",
        f"Trained on {args.train}; percent, mean over the seeds (smallest–largest).\n\n"
        f"    {command}\n\n{report}\n",
    )
    print(report)


if __name__ == "__main__":
    main()
