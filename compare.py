"""Set runs side by side: does a method help? Tables, intervals, tests and one report.html.

    python compare.py --baseline 'ckpt/baseline_seed*' --runs 'cross=ckpt/cross_seed*' 'loop 1=ckpt/f/loop_1_final.pth'
        --datasets MVTec VisA --data_root DATA --out comparison_out      (all in one line)

Every value of --runs is one arm: [name=]PATH[,PATH...] with one run per seed; a PATH is a run folder, a checkpoint file
in one, or a quoted pattern of either. Runs are paired with the baseline's by the seed stored in their checkpoints.
Evaluations that are missing or older than their checkpoint are made first, by test.py, in the runs' folders; flags
behind `--` go to it (for instance: -- --device cuda --workers 4).
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from comparison.arms import Arm, read_arm
from comparison.crossed_effects import ENOUGH_SEEDS
from comparison.evaluations import evaluate_missing
from comparison.gallery import gallery
from comparison.hypotheses import read_hypotheses
from comparison.overview import headline, read_references
from comparison.paired import compare_arms
from comparison.replicates import METRICS
from comparison.report import render
from comparison.tables import console, csv_text, latex, markdown
from dataset import get_dataset
from files.atomic import write_text
from files.command import run_main
from files.logs import quiet_logger
from run_folder.checkpoints import versions
from run_folder.flags import HelpFormatter, Parser, add_flag
from run_folder.session import declare_datasets
from run_folder.settings import DataSettings

BASE_FLAGS = ("load_base_text_adapter", "load_base_image_adapter")
DATA_FLAGS = ("data_root", "dataset_config", "real_names")  # of DataSettings, handed on to test.py


def build_parser() -> argparse.ArgumentParser:
    """The flags of this script."""
    parser = Parser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument(
        "--baseline", nargs="+", required=True, metavar="ARM", help="what the arms are compared with"
    )
    parser.add_argument("--runs", nargs="+", required=True, metavar="ARM", help="one arm per value")
    parser.add_argument(
        "--references",
        nargs="+",
        default=[],
        metavar="ARM",
        help="shown beside the arms in the report's first table and not tested, such as raw CLIP",
    )
    parser.add_argument("--datasets", nargs="+", required=True, help="test sets")
    parser.add_argument("--out", default="comparison_out", help="folder of the report and the tables")
    parser.add_argument(
        "--verdict_metrics",
        nargs="+",
        choices=METRICS,
        default=["pixel_ap", "image_auroc"],
        help="metrics that decide; chosen before looking",
    )
    parser.add_argument(
        "--hypotheses",
        nargs="+",
        metavar="ARM:METRIC[:DATASET]",
        help="what is to be decided, declared before looking; * for any; default: all arms and datasets in the verdict "
        "metrics",
    )
    parser.add_argument(
        "--margin",
        type=float,
        metavar="POINTS",
        help="differences below it are of no interest: a 90 %% interval inside it shows that there is none",
    )
    parser.add_argument(
        "--replicates", type=int, default=1000, help="resampled test sets per class (bootstrap)"
    )
    parser.add_argument("--resampling_seed", type=int, default=0, help="of the resampled test sets")
    for one in dataclasses.fields(DataSettings):
        if one.name in DATA_FLAGS:
            add_flag(parser, one, one.default)
    return parser


def read_arms(args: argparse.Namespace) -> tuple[Arm, list[Arm], list[Arm]]:
    """(baseline, arms, references); several values of --baseline are its runs.

    Raises:
        ValueError: two arms share a name.
    """
    baseline = read_arm(",".join(args.baseline))
    arms = [read_arm(text) for text in args.runs]
    references = [read_arm(text) for text in args.references]
    names = [arm.name for arm in [baseline, *arms, *references]]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"two arms are called {', '.join(twice)}: give them names, for instance --runs new=PATH"
        )
    return baseline, arms, references


def notes_on(results: dict[str, dict], baseline: Arm, arms: list[Arm]) -> list[str]:
    """What a reader must know about the design, as sentences."""
    notes = []
    for dataset, result in results.items():
        for arm, evaluation_infos in result["abouts"].items():
            if any(
                (info["settings"] or {}).get("dataset") == dataset and info["checkpoints"]
                for info in evaluation_infos
            ):
                notes.append(f"{arm} was trained on {dataset}: this is no zero-shot result.")
    first_result = next(iter(results.values()))["arms"]
    abouts = next(iter(results.values()))["abouts"]
    continued = [
        arm
        for arm, evaluation_infos in abouts.items()
        if any((info["settings"] or {}).get(flag) for info in evaluation_infos for flag in BASE_FLAGS)
    ]
    if baseline.name not in continued:
        notes += [
            f"{arm} went on from a baseline's checkpoints: it took more steps than it shows, so a difference need not "
            "be its method's."
            for arm in continued
        ]
    for arm in arms:
        compared = first_result[arm.name]
        if compared["unpaired_seeds"]:
            notes.append(
                f"Seeds {compared['unpaired_seeds']} of {arm.name} or {baseline.name} have no partner "
                "and are left out."
            )
    if any(len(compared["seeds"]) < ENOUGH_SEEDS for compared in first_result.values()):
        notes.append(
            f"With fewer than {ENOUGH_SEEDS} seeds the intervals say nothing about other training seeds."
        )
    return notes


def galleries_of(
    results: dict[str, dict], baseline: Arm, arms: list[Arm], data_root: str | None, notes: list[str]
) -> dict[str, dict[str, list[dict]]]:
    """{dataset: image grids}; a dataset whose images are not there gets a note instead."""
    rows = {}
    for dataset, result in results.items():
        try:
            sets = get_dataset(
                dataset,
                result["img_size"],
                "full_shot",
                0,
                "test",
                quiet_logger(),
                data_root=data_root,
                look=False,
            )
        except FileNotFoundError as error:
            notes.append(f"No image grid of {dataset}, its images are not here: {error}")
            continue
        rows[dataset] = gallery(baseline, arms, dataset, sets)
    return rows


def as_json(results: dict[str, dict], baseline: Arm, arms: list[Arm], report_info: dict) -> str:
    """Everything in full precision."""
    runs = {
        arm.name: [
            {"folder": str(run.folder), "checkpoint": run.checkpoint, "kind": run.kind, "seed": run.seed}
            for run in arm.runs
        ]
        for arm in [baseline, *arms]
    }
    return json.dumps(
        report_info | {"baseline": baseline.name, "runs": runs, "datasets": results},
        indent=1,
        allow_nan=False,
    )


def main(argv: Sequence[str] | None = None) -> dict[str, dict]:
    typed = list(sys.argv[1:] if argv is None else argv)
    own_flags, test_flags = (
        (typed[: typed.index("--")], typed[typed.index("--") + 1 :]) if "--" in typed else (typed, [])
    )
    args = build_parser().parse_args(own_flags)
    if args.replicates < 100:
        raise ValueError(f"--replicates {args.replicates}: a 95 % interval needs 100 or more")
    if args.margin is not None and args.margin <= 0:
        raise ValueError(f"--margin {args.margin}: expected percentage points above 0, for instance 1")
    hypotheses = read_hypotheses(args.hypotheses, args.verdict_metrics)
    margin = None if args.margin is None else args.margin / 100
    declare_datasets(DataSettings(dataset_config=args.dataset_config, real_names=args.real_names))
    baseline, arms, references = read_arms(args)
    flags = [text for flag in DATA_FLAGS if (value := getattr(args, flag)) for text in (f"--{flag}", value)]
    every = [run for arm in [baseline, *arms, *references] for run in arm.runs]
    evaluate_missing(every, args.datasets, [*flags, *test_flags], print)

    results = compare_arms(
        baseline,
        arms,
        args.datasets,
        hypotheses=hypotheses,
        replicates=args.replicates,
        seed=args.resampling_seed,
        margin=margin,
    )
    report_info = {
        "command": ["python", "compare.py", *typed],
        "verdict_metrics": [
            metric for metric in METRICS if any(fnmatchcase(metric, one.metric) for one in hypotheses)
        ],
        "hypotheses": [str(one) for one in hypotheses],
        "margin": margin,
        "replicates": args.replicates,
        "resampling_seed": args.resampling_seed,
        "versions": versions(),
        "notes": notes_on(results, baseline, arms),
    }
    shown = read_references(baseline, references, args.datasets)
    galleries = galleries_of(results, baseline, arms, args.data_root, report_info["notes"])
    out = Path(args.out)
    write_text(out / "comparison.json", as_json(results, baseline, arms, report_info) + "\n")
    write_text(out / "comparison.csv", csv_text(results))
    write_text(out / "comparison.md", markdown(results))
    write_text(out / "comparison.tex", latex(results, report_info["verdict_metrics"]))
    write_text(out / "report.html", render(results, baseline, arms, report_info, galleries, shown))
    print(console(results))
    print(f"\n{headline(results)}.\nReport and tables are in {out}: open {out / 'report.html'}")
    return results


if __name__ == "__main__":
    run_main(main)
