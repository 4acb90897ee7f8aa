"""Decide on real weights and real data whether the idea helps: one command, resumable, its analysis frozen.

    python -m studies.real_study --data_root DATA --plan --hours 100      # what it costs, and what fits
    python -m studies.real_study --data_root DATA --hours 100
    python -m studies.real_study --dry_run --out runs/dry                 # the same command, tiny, in two minutes

Arms, steps and the order in which arms are dropped: studies/real_study/protocol.py; hypotheses, gate and tables:
analysis.py, frozen once a study has begun. Every run leaves one JSON; a run whose JSON is there is not repeated, so the
study can be stopped, continued, extended by seeds, and shared by several devices (--shard 0/2 and --shard 1/2).
"""

import argparse
import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from comparison.arms import Arm, Run
from comparison.figures import learning_curves
from dataset.custom import load_dataset_config
from dataset.paths import resolve_data_root
from files.atomic import write_text
from files.command import Refusal, program, run_main
from run_folder.flags import HelpFormatter
from scripts.commands import ONE_THREAD
from studies.real_study import analysis, binding, dry_run, plan
from studies.real_study.protocol import ARMS, DRY, REAL, Protocol, groups_of, trained_arm
from studies.real_study.runs import Study, read_runs, run_commands, run_missing


def build_parser() -> argparse.ArgumentParser:
    """The flags of this command."""
    parser = argparse.ArgumentParser(program(), description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--data_root", help="folder that holds the datasets; else AACLIP_DATA, else ./data")
    parser.add_argument(
        "--clip_weights", metavar="FILE", help="OpenAI's ViT-L-14-336px.pt; else where train.py looks"
    )
    parser.add_argument("--train", nargs="+", metavar="SET", help="training sets; default VisA MVTec")
    parser.add_argument(
        "--leave_out", nargs="+", default=[], metavar="SET", help="test sets that are not here"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[111, 112, 113], help="training seeds")
    parser.add_argument(
        "--hours", type=float, help="of one device: arms that do not fit are dropped in their order"
    )
    parser.add_argument(
        "--plan", action="store_true", help="check weights and data, time every arm, run nothing"
    )
    parser.add_argument(
        "--shard", default="0/1", help="i/n: this process does every n-th group of runs from the i-th on"
    )
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="of the training runs")
    parser.add_argument("--device", help="torch device; default CUDA if there, else CPU")
    parser.add_argument(
        "--workers", help="data loader processes, as train.py takes them; auto, 0 in a dry run"
    )
    parser.add_argument("--out", default="runs/real_study", help="folder of the study")
    parser.add_argument("--dry_run", action="store_true", help="tiny CLIP, DemoA -> DemoB, few pictures")
    return parser


def protocol_of(args: argparse.Namespace) -> Protocol:
    """The declared protocol with the sets the user has.

    Raises:
        ValueError: an unknown training set, or no test set is left.
    """
    protocol = DRY if args.dry_run else REAL
    wanted = args.train or list(protocol.directions)
    if unknown := sorted(set(wanted) - set(protocol.directions)):
        raise ValueError(f"--train {' '.join(unknown)}: expected some of {', '.join(protocol.directions)}")
    directions = {
        train: tuple(one for one in protocol.directions[train] if one not in args.leave_out)
        for train in wanted
    }
    for train, test_sets in directions.items():
        if test_sets[:1] != protocol.directions[train][:1]:
            raise ValueError(
                f"--leave_out {' '.join(args.leave_out)}: {protocol.directions[train][0]} decides for {train}; leave "
                f"{train} out of --train instead"
            )
    return protocol._replace(directions=directions)


def study_of(args: argparse.Namespace) -> tuple[Study, dict[str, Any]]:
    """The study of the command's flags with all its arms, and what binding.data_of found.

    Raises:
        FileNotFoundError, ValueError: weights or data are not there or not whole.
    """
    protocol, out, config = protocol_of(args), Path(args.out).resolve(), []
    sets = list(dict.fromkeys(one for train, tests in protocol.directions.items() for one in (train, *tests)))
    data_root = args.data_root
    if args.dry_run:
        data_root = out / "data"
        file = dry_run.few_pictures(data_root, sets)
        load_dataset_config(file)
        config = ["--dataset_config", str(file)]
    data_root = str(resolve_data_root(data_root).resolve())
    data = binding.data_of(sets, data_root)
    common = [
        "--model_name",
        protocol.model_name,
        "--data_root",
        data_root,
        *config,
        "--workers",
        args.workers or ("0" if args.dry_run else "auto"),
    ]
    common += ["--clip_weights", str(Path(args.clip_weights).resolve())] if args.clip_weights else []
    common += ["--device", args.device] if args.device else []
    agreed = {
        "model_name": protocol.model_name,
        "schedule": list(protocol.schedule._asdict().values()),
        "precision": args.precision,
        "hardware": binding.hardware(args.device),
        "weights": binding.weights_of(protocol.model_name, args.clip_weights),
        "data": data,
        "analysis": binding.analysis_files(),
    }
    agreed = json.loads(json.dumps(agreed))
    training = ("--precision", args.precision)
    environment = ONE_THREAD if args.dry_run else {}
    return Study(protocol, protocol.arms, out, tuple(common), training, agreed, environment), data


def remarks_on(study: Study) -> list[str]:
    """What a reader has to know about weights and data."""
    weights, wrong = study.agreed["weights"], binding.differing_counts(study.agreed["data"])
    known = weights["published_as"]
    remarks = [
        f"Weights {weights['sha256']}: "
        + (f"OpenAI's {known}." if known else "NOT a file that OpenAI published.")
    ]
    remarks += [f"NOT as published: {one}." for one in wrong]
    counted = [name for name, found in study.agreed["data"].items() if found["published"]]
    if counted and not wrong:
        remarks.append(f"As many pictures as published: {', '.join(counted)}.")
    own = study.agreed["hardware"]
    remarks.append(f"{own['name']}, torch {own['torch']}, training in {study.agreed['precision']}.")
    dropped = [arm for arm in study.protocol.arms if arm not in study.arms]
    return remarks + ([f"Dropped to fit the hours: {', '.join(dropped)}."] if dropped else [])


def planned(study: Study, data: dict[str, Any], args: argparse.Namespace) -> Study:
    """The study with the arms that fit into the hours; its costs are measured once and kept in plan.json."""
    folder = study.out / "plan"
    file, train = folder / "plan.json", next(iter(study.protocol.directions))
    sizes = plan.sizes_of(study, data)
    before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if before.get("agreed") != study.agreed:
        folder.mkdir(parents=True, exist_ok=True)
        data_root = Path(study.common[study.common.index("--data_root") + 1])
        samples = binding.samples_of(train, str(data_root))
        parts = plan.declare_parts(study, train, samples, data_root, folder, sizes)
        costs = {}
        for arm in dict.fromkeys(map(trained_arm, study.protocol.arms)):
            print(f"timing {arm}", flush=True)
            costs[arm] = plan.time_arm(study, arm, parts, folder)
        before = {"agreed": study.agreed, "costs": costs}
        write_text(file, json.dumps(before, indent=1) + "\n")
    costs = {arm: plan.Cost(*values) for arm, values in before["costs"].items()}
    kept = plan.arms_that_fit(study, args.seeds, costs, sizes, args.hours)
    text = plan.plan_text(study, args.seeds, costs, sizes, kept)
    write_text(folder / "plan.md", text)
    print(text)
    return study._replace(arms=kept)


def draw_learning_curves(study: Study, train: str, seeds: Sequence[int]) -> None:
    """Write learning_curves_{training set}.svg: the loss of every epoch of the runs that are there."""
    arms = [
        Arm(arm, [Run(study.folder(train, arm, seed), "", None, "", seed, None) for seed in seeds])
        for arm in study.arms
        if ARMS[arm].script
    ]
    picture = learning_curves(arms)
    if picture is not None:
        svg = base64.b64decode(picture.partition(",")[2]).decode()
        write_text(study.out / f"learning_curves_{train}.svg", svg)


def decide(study: Study, seeds: Sequence[int]) -> str:
    """Write the report, and compare.py's where all runs of a training set are there and the gate is passed."""
    runs = read_runs(study, seeds)
    for train in study.protocol.directions:
        draw_learning_curves(study, train, seeds)
        whole = all((train, arm, seed) in runs for arm in study.arms for seed in seeds)
        if whole and analysis.gate_text(study, runs, train)[0]:
            run_commands(analysis.comparisons(study, train, seeds), study.environment)
    text = analysis.report(study, runs, seeds, remarks_on(study))
    write_text(study.out / "report.md", text)
    return text


def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    index, _, count = args.shard.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise ValueError(f"--shard {args.shard}: expected i/n with i below n, for instance 0/2")
    study, data = study_of(args)
    print("\n".join(remarks_on(study)), flush=True)
    begun = binding.arms_begun(study.out)
    if args.plan or (args.hours is not None and begun is None):
        study = planned(study, data, args)
    if args.plan:
        return
    if begun is not None:  # what was dropped was decided once, for all seeds
        study = study._replace(arms=begun)
    if wrong := binding.differing_counts(data):
        raise Refusal(
            "\n".join([*wrong, "unpack these sets anew, or give others with --train and --leave_out"])
        )
    binding.bind(study.out, study.agreed | {"arms": list(study.arms)})
    groups = groups_of(study.protocol.directions, study.arms, args.seeds)
    run_missing(study, groups[int(index) :: int(count)])
    print(decide(study, args.seeds))


if __name__ == "__main__":
    run_main(main)
