"""Arms of a study over seeds: train, test, keep every run's metrics as JSON, and write the table.

    python -m studies.study --study baseline --seeds 111 112 113

One run per process; a run whose JSON lies in results/<study>/ is not repeated, so a study can be stopped, continued and
extended. The tables with their command are in results/<study>/table.md.
"""

import argparse
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from files.atomic import write_text
from files.command import run_main
from run_folder.flags import HelpFormatter
from studies import paired_report
from studies.arm_runs import CROSS, FEEDBACK, ROOT, read_results, run_missing
from studies.references import REFERENCES, for_every_seed

COLUMNS = ("pixel_auroc", "pixel_ap", "pixel_aupro", "image_auroc", "image_ap")
STUDIES = {  # study: {arm: (training script, its flags), or (None, test.py's flags) for what is not trained}
    "baseline": {
        **REFERENCES,
        "raw_clip": (None, ["--raw_clip"]),
        "baseline": ("train.py", []),
    },
    "cross_attention": {
        **REFERENCES,
        "baseline": ("train.py", []),
        **{
            f"{scope}_{anchors}": (CROSS, ["--context_scope", scope, "--text_context", anchors])
            for scope in ("class", "batch")
            for anchors in ("none", "train_mean", "image")
        },
    },
    "feedback": {
        **REFERENCES,
        # recipe v2's text rate is made for ViT-L; as there, it is twice the baseline's
        "v1_3_loops": (FEEDBACK, ["--recipe", "v1", "--num_feedback_loops", "3"]),
        "v2_5_loops": (FEEDBACK, ["--recipe", "v2", "--num_feedback_loops", "5", "--text_lr", "4e-3"]),
    },
}


def table(study: str, results: dict[tuple[str, int], dict], test_sets: Sequence[str]) -> str:
    """Markdown: mean over the seeds of every metric, with the seeds' smallest and largest value, in percent."""
    lines = ["| test set | arm | seeds | " + " | ".join(COLUMNS) + " |", "|--|--|--|" + "--|" * len(COLUMNS)]
    for test_set in test_sets:
        for arm in STUDIES[study]:
            runs = [run["metrics"][test_set]["mean"] for run in runs_of(arm, results)]
            if not runs:
                continue
            cells = [spread([100 * run[column] for run in runs]) for column in COLUMNS]
            lines.append(f"| {test_set} | {arm} | {len(runs)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def loops_table(study: str, results: dict[tuple[str, int], dict], test_sets: Sequence[str]) -> str:
    """Markdown, for the study's feedback runs: metrics after every loop (as `table`), and the image stage's loss in
    every loop, first epoch -> last epoch, mean over the seeds; "" for a study without feedback."""
    lines = []
    for test_set in test_sets:
        for arm in STUDIES[study]:
            runs = [run for run in runs_of(arm, results) if "loops" in run]
            for loop in range(len(runs[0]["loops"][test_set]) if runs else 0):
                losses = [[epoch["loss"] for epoch in run["history"]["loops"][loop]["image"]] for run in runs]
                first, last = (statistics.mean(run[end] for run in losses) for end in (0, -1))
                falls = sum(run[-1] < run[0] for run in losses)
                cells = [
                    spread([100 * run["loops"][test_set][loop][column] for run in runs]) for column in COLUMNS
                ]
                cells += [f"{first:.3f} → {last:.3f}", f"{falls} of {len(runs)}"]
                lines.append(f"| {test_set} | {arm} | {loop + 1} | " + " | ".join(cells) + " |")
    if not lines:
        return ""
    head = [*COLUMNS, "image loss, first → last epoch", "falls in"]
    return "\n".join(
        [f"| test set | arm | loop | {' | '.join(head)} |", "|--|--|--|" + "--|" * len(head), *lines]
    )


def runs_of(arm: str, results: dict[tuple[str, int], dict]) -> list[dict]:
    """The runs of an arm by seed, of {(arm, seed): JSON}."""
    return [run for (name, _), run in sorted(results.items()) if name == arm]


def spread(values: list[float]) -> str:
    """Mean with smallest and largest value in brackets."""
    extremes = f" ({min(values):.1f}–{max(values):.1f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{extremes}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--study", choices=sorted(STUDIES), required=True, help="which arms")
    parser.add_argument("--seeds", type=int, nargs="+", default=[111, 112, 113], help="training seeds")
    parser.add_argument("--arms", nargs="+", help="some of the study's arms; default all")
    parser.add_argument("--train", default="DemoA", help="training set")
    parser.add_argument("--test", nargs="+", default=["DemoB", "DemoPhoto", "DemoPhotoMed"], help="test sets")
    parser.add_argument("--data", default="runs/study/data", help="the rendered demo sets; made if missing")
    parser.add_argument("--out", help="folder of JSON files and table; default results/<study>[_<train>]")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="of the training runs")
    parser.add_argument(
        "--tables_only",
        action="store_true",
        help="remake the table from the runs that are there; train nothing",
    )
    args = parser.parse_args(argv)
    name = args.study if args.train == "DemoA" else f"{args.study}_{args.train}"
    out, data = Path(args.out or ROOT / "results" / name), Path(args.data).resolve()
    if not args.tables_only:
        render = [sys.executable, "-m", "demo_world.render_sets", "--out", str(data)]
        subprocess.run(render, cwd=ROOT, check=True)
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
    if not args.tables_only:
        runs = data.parent / f"{args.study}_{args.train}"
        run_missing(tasks, arms, args.train, args.test, data, runs, out)
    results = read_results(out, every, args.train)
    report_text = table(args.study, results, args.test)
    loops = loops_table(args.study, results, args.test)
    report_text += f"\n\nLoop by loop:\n\n{loops}" if loops else ""
    trained = sum(bool(script) for script, _ in every.values())
    if len(args.seeds) > 1 and any(arm == "baseline" for arm, _ in results) and trained > 1:
        names, by_seed = list(STUDIES[args.study]), for_every_seed(results)
        reports = (paired_report.report(by_seed, names, test_set) for test_set in args.test)
        report_text += "\n\n" + "\n".join(reports)
    seeds = " ".join(str(seed) for seed in sorted({seed for _, seed in results}))
    command = f"python -m studies.study --study {args.study} --train {args.train} --seeds {seeds}"
    command += f" --test {' '.join(args.test)}" + " ".join(["", *precision])
    write_text(
        out / "table.md",
        f"Trained on {args.train}; percent, mean over the seeds (smallest–largest).\n\n"
        f"    {command}\n\n{report_text}\n",
    )
    print(report_text)


if __name__ == "__main__":
    run_main(main)
