"""The study of whether the idea helps: every arm gets the same data, seeds and optimisation steps as the baseline.

    python -m studies.evidence --seeds 211 212 213 214 215 --precision bf16

One run per process; a run whose JSON lies in the results folder is not repeated, so the study can be stopped,
continued, extended by seeds, and shared by several processes (--shard 0/2 and --shard 1/2). `--corrected` runs
every arm, the baseline too, with AA-CLIP's known deviations corrected; `--train DemoB --test DemoA` is the reversed
study. The rendered images come from a data seed of their own, because the demo world was calibrated on data seed 0.

`--study self_reference` is the confirmation of the one improvement that studies/improvements.py chose without DemoB, to
be run once and with fresh seeds.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from files.atomic import write_text
from files.command import run_main
from run_folder.flags import HelpFormatter
from studies.arm_runs import CROSS, FEEDBACK, ROOT, read_results, run_missing
from studies.paired_report import report
from studies.references import REFERENCES, for_every_seed, reference_tasks

# Steps of every arm; the feedback arms share them out over their loops.
STEPS = ["--text_epoch", "5", "--image_epoch", "10"]
IDEA = {  # arm: (script, flags)
    "baseline": ("train.py", STEPS),
    "cross_attention": (CROSS, STEPS),
    "control_other_class": (CROSS, [*STEPS, "--context_control", "other_class"]),
    "control_constant": (CROSS, [*STEPS, "--context_control", "constant"]),
    "cross_attention_train_mean": (CROSS, [*STEPS, "--text_context", "train_mean"]),
    "cross_attention_image": (CROSS, [*STEPS, "--text_context", "image"]),
    "feedback_v1": (
        FEEDBACK,
        [
            "--num_feedback_loops",
            "3",
            "--text_epoch",
            "2",
            "--loop2_text_epoch",
            "2",
            "--loop3_text_epoch",
            "1",
            "--image_epoch",
            "5",
            "--loop2_image_epoch",
            "3",
            "--loop3_image_epoch",
            "2",
        ],
    ),
    "feedback_v2": (
        FEEDBACK,
        [
            "--recipe",
            "v2",
            "--num_feedback_loops",
            "5",
            "--text_epoch",
            "1",
            "--image_epoch",
            "2",
            "--epoch_decay_per_loop",
            "1",
            "--plateau_patience",
            "0",
            "--text_lr",
            "4e-3",
        ],
    ),
}
OFF = ["--text_cross_attn_weight", "0", "--image_cross_attn_weight", "0"]
REFERENCE = ["--self_reference", "0.3"]
SELF_REFERENCE = {
    "baseline": IDEA["baseline"],
    "self_reference": (CROSS, [*STEPS, *REFERENCE]),
    "self_reference_alone": (CROSS, [*STEPS, *REFERENCE, *OFF]),
    "control_constant": (CROSS, [*STEPS, *REFERENCE, "--self_reference_control", "constant"]),
    "control_shuffled": (CROSS, [*STEPS, *REFERENCE, "--self_reference_control", "shuffled"]),
}
STUDIES = {"idea": IDEA, "self_reference": SELF_REFERENCE}
CONTROLS = ("control_constant", "control_other_class", "control_shuffled", "self_reference_alone")
METHODS = [
    "cross_attention",
    "cross_attention_train_mean",
    "cross_attention_image",
    "feedback_v1",
    "feedback_v2",
    "self_reference",
]


def tasks(arms: Iterable[str], seeds: Sequence[int], shard: str) -> list[tuple[str, int]]:
    """[(arm, seed)] of this process, seed by seed, so that what is finished is always paired.

    Args:
        shard: "i/n": every n-th task from the i-th on.

    Raises:
        ValueError: `shard` is not of that form.
    """
    index, _, count = shard.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise ValueError(f"--shard {shard}: expected i/n with i below n, for instance 0/2")
    return [(arm, seed) for seed in seeds for arm in arms][int(index) :: int(count)]


def add_study_flags(parser: argparse.ArgumentParser, name: str, seeds: list[int], data_seed: int) -> None:
    """The flags of a study that several processes may share; `name` is its folder under runs/ and results/."""
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=seeds, help="training seeds, a run of every arm each"
    )
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="of the training runs")
    parser.add_argument("--data_seed", type=int, default=data_seed, help="seed of the rendered images")
    parser.add_argument(
        "--runs", default=f"runs/{name}", help="folder of the rendered sets and the run folders"
    )
    parser.add_argument(
        "--shard", default="0/1", help="i/n: this process does every n-th run from the i-th on"
    )
    parser.add_argument("--out", default=str(ROOT / "results" / name), help="folder of the JSON files")
    parser.add_argument(
        "--tables_only",
        action="store_true",
        help="remake the table from the runs that are there; train nothing",
    )


def corrections(
    plain: dict[tuple[str, int], dict], corrected: dict[tuple[str, int], dict], test_set: str
) -> str:
    """Markdown: what correcting AA-CLIP's known deviations changes in the baseline.

    Args:
        plain, corrected: {(arm, seed): the run's JSON}.
    """
    runs = {(arm, seed): run for (arm, seed), run in plain.items() if arm == "baseline"}
    runs |= {("corrected_baseline", seed): run for (arm, seed), run in corrected.items() if arm == "baseline"}
    return report(runs, ["corrected_baseline"], test_set)


def reports(results: dict[tuple[str, int], dict], arms: Sequence[str], test_set: str) -> str:
    """Markdown: every arm against the baseline, the methods against each control and against rarity alone."""
    table, there = report(results, arms, test_set), {arm for arm, _ in results}
    for control in CONTROLS:  # does what a tower sees matter, or its parameters?
        if control in there:
            table += "\n" + report(results, METHODS, test_set, control)
    if "rarity_alone" in there:  # does training add to what needs none?
        table += "\n" + report(results, [*METHODS, "self_reference_alone"], test_set, "rarity_alone")
    return table


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add_study_flags(parser, "evidence", [211, 212, 213, 214, 215], data_seed=1)
    parser.add_argument("--study", choices=list(STUDIES), default="idea", help="which arms")
    parser.add_argument(
        "--arms",
        nargs="+",
        choices=sorted({*IDEA, *SELF_REFERENCE, *REFERENCES}),
        help="default all of the study",
    )
    parser.add_argument("--train", default="DemoA", help="training set, rendered if missing")
    parser.add_argument("--test", default="DemoB", help="test set, rendered if missing")
    parser.add_argument(
        "--corrected", action="store_true", help="AA-CLIP's known deviations corrected, in the baseline too"
    )
    args = parser.parse_args(argv)
    arms = STUDIES[args.study] | REFERENCES
    if foreign := sorted(set(args.arms or ()) - set(arms)):
        parser.error(f"--arms {' '.join(foreign)}: not in --study {args.study}, which has {', '.join(arms)}")
    name = f"{args.train}_{args.test}_data{args.data_seed}" + ("_corrected" if args.corrected else "")
    name += "" if args.study == "idea" else f"_{args.study}"
    out, runs = Path(args.out) / name, Path(args.runs).resolve()
    data = runs / f"data_seed{args.data_seed}"
    chosen = [arm for arm in arms if arm in (args.arms or arms)]
    missing_runs = tasks([arm for arm in chosen if arm not in REFERENCES], args.seeds, args.shard)
    missing_runs += reference_tasks(chosen, args.seeds)
    for rendered in () if args.tables_only else (args.train, args.test):
        render = ["-m", "demo_world.render_sets", "--name", rendered, "--out", str(data)]
        subprocess.run([sys.executable, *render, "--seed", str(args.data_seed)], cwd=ROOT, check=True)
    precision = ["--precision", args.precision]
    trained = {arm: pair for arm, pair in arms.items() if arm not in REFERENCES}
    plain_arms = {arm: (script, [*flags, *precision]) for arm, (script, flags) in trained.items()}
    every = {arm: (script, [*flags, "--corrected", *precision]) for arm, (script, flags) in trained.items()}
    every = (every if args.corrected else plain_arms) | REFERENCES
    plain_out = out.with_name(name.replace("_corrected", ""))
    uncorrected = read_results(plain_out, plain_arms, args.train) if args.corrected else {}
    read_results(out, every, args.train)  # a mismatch is better found before anything is trained
    if not args.tables_only:
        run_missing(missing_runs, every, args.train, [args.test], data, runs / name, out)
    results = for_every_seed(read_results(out, every, args.train))
    flags = (
        f"--train {args.train} --test {args.test} --data_seed {args.data_seed} --precision {args.precision}"
    )
    seeds = " ".join(str(seed) for seed in sorted({seed for _, seed in results}))
    command = f"python -m studies.evidence --seeds {seeds} {flags}" + (
        " --corrected" if args.corrected else ""
    )
    command += "" if args.study == "idea" else f" --study {args.study}"
    table = reports(results, list(arms), args.test)
    if uncorrected:
        table += "\n" + corrections(uncorrected, results, args.test)
    write_text(out / "table.md", f"    {command}\n\n{table}")
    print(table)


if __name__ == "__main__":
    run_main(main)
