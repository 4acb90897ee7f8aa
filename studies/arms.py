"""Selection and confirmation of the arms (studies/arm_registry.py), each at the baseline's steps and on one thread.

    python -m studies.arms --select                     # halves of DemoA and of DemoPhoto, both ways
    python -m studies.arms --confirm anchor_late        # once: DemoA -> DemoC

A selection trains on one half of a set's classes and tests on the other, 5 initialisations x 2 data seeds. One process
per run; a run whose JSON lies in results/arms/ is not repeated, so both can be stopped, continued, extended by seeds
and shared by several processes (--shard 0/2, --shard 1/2). Hypotheses stand in results/arms/hypotheses.json before the
runs. A confirmation takes at most two arms that were declared there, and is not begun a second time unless `--again`
says so.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from files.atomic import sha256, write_text
from files.command import Refusal, run_main
from run_folder.flags import HelpFormatter
from studies.arm_harness import Place, read_place, run_missing, tasks_of
from studies.arm_registry import ARMS, complete
from studies.arm_report import METRICS, Runs, report
from studies.arm_runs import ROOT
from studies.class_halves import declare, halves_of, other_half

SELECTED_ON = ("DemoA", "DemoPhoto")
CONFIRMED_ON = ("DemoA", "DemoC")
AT_MOST = 2  # arms in a confirmation
HYPOTHESES = "hypotheses.json"
CONFIRMATION = "confirmation.json"


def render(dataset: str, data: Path, data_seed: int) -> None:
    """Render a demo set into a data seed's folder, if it is not there."""
    words = ["-m", "demo_world.render_sets", "--name", dataset, "--out", str(data), "--seed", str(data_seed)]
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True)


def places_of_selection(args: argparse.Namespace, data_seed: int) -> list[Place]:
    """Both halves of every set, each tested on the other."""
    data, out = Path(args.runs).resolve() / f"data_seed{data_seed}", Path(args.out)
    places = []
    for dataset in args.sets:
        if not args.tables_only:
            render(dataset, data, data_seed)
            declare(data, dataset)
        for half in halves_of(dataset):
            name = f"{half}_data{data_seed}"
            config = data / f"halves_of_{dataset}.json"
            places.append(Place(half, other_half(half), data, config, data.parent / name, out / name))
    return places


def places_of_confirmation(args: argparse.Namespace, data_seed: int) -> list[Place]:
    """All of DemoA, tested on DemoC."""
    data, out = Path(args.runs).resolve() / f"data_seed{data_seed}", Path(args.out)
    train, test = CONFIRMED_ON
    if not args.tables_only:
        for dataset in CONFIRMED_ON:
            render(dataset, data, data_seed)
        declare(data, train)
    name = f"{train}_{test}_data{data_seed}"
    return [Place(train, test, data, data / f"halves_of_{train}.json", data.parent / name, out / name)]


def hypotheses_in(out: Path) -> list[dict]:
    """The declared hypotheses.

    Raises:
        Refusal: there are none: they are declared before the runs.
        ValueError: one names an arm or a metric that is not there.
    """
    file = out / HYPOTHESES
    if not file.is_file():
        raise Refusal(f"{file} is missing: declare the hypotheses there before the first run")
    declared = json.loads(file.read_text(encoding="utf-8"))["hypotheses"]
    for one in declared:
        if one["arm"] not in ARMS or one["against"] not in ARMS:
            raise ValueError(
                f"{file}: {one['arm']} against {one['against']}: expected arms of {', '.join(ARMS)}"
            )
        if one["metric"] not in METRICS:
            raise ValueError(
                f"{file}: {one['arm']} against {one['against']} by {one['metric']!r}: expected a metric of "
                f"{', '.join(METRICS)}"
            )
    return declared


def bind_confirmation(out: Path, arms: Sequence[str], declared: Sequence[dict], again: bool) -> Path:
    """Begin the one confirmation there is, or go on with it; returns its file.

    Raises:
        Refusal: more than two arms, one that was not declared, another confirmation than the one that was begun, or a
            second one.
    """
    if not 1 <= len(arms) <= AT_MOST:
        raise Refusal(
            f"--confirm {' '.join(arms)}: expected one arm or {AT_MOST}, the winners of the selection"
        )
    if undeclared := sorted(set(arms) - {one["arm"] for one in declared}):
        raise Refusal(f"--confirm {' '.join(undeclared)}: not declared in {out / HYPOTHESES} before the runs")
    file, begun = out / CONFIRMATION, {"arms": sorted(arms), "hypotheses_sha256": sha256(out / HYPOTHESES)}
    before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() and not again else None
    if before is not None and before["finished"]:
        raise Refusal(
            f"{' and '.join(before['arms'])} were confirmed on {CONFIRMED_ON[1]} already ({file}): a set that was "
            "looked at confirms nothing more; --again does it nevertheless, and the report has to say so"
        )
    if before is not None and {key: before[key] for key in begun} != begun:
        raise Refusal(
            f"{file}: the confirmation of {' and '.join(before['arms'])} was begun with the hypotheses as they stood; "
            "finish it with these arms and that file"
        )
    write_text(file, json.dumps(begun | {"finished": False}, indent=1) + "\n")
    return file


def run_all(args: argparse.Namespace, arms: Sequence[str], places_of) -> tuple[Runs, bool]:
    """Make what is missing of this process's share; (all kept runs, whether nothing is missing)."""
    places = {data_seed: places_of(args, data_seed) for data_seed in args.data_seeds}
    flat = [(data_seed, place) for data_seed, those in places.items() for place in those]
    for _, place in flat:
        read_place(ARMS, place)  # a mismatch is better found before anything is trained
    index, _, count = args.shard.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise ValueError(f"--shard {args.shard}: expected i/n with i below n, for instance 0/2")
    groups = [
        (place, [task for task in tasks_of(arms, args.seeds) if task[1] == seed])
        for seed in args.seeds
        for _, place in flat
    ]
    if not args.tables_only:  # an arm and what tests its run again stay in one process
        for place, tasks in groups[int(index) :: int(count)]:
            run_missing(tasks, args.seeds[0], place)
    whole = all(place.file(*task).is_file() for place, tasks in groups for task in tasks)
    runs = {
        (arm, seed, data_seed, place.train): run
        for data_seed, place in flat
        for (arm, seed), run in read_place(ARMS, place).items()
    }
    return runs, whole


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--select", action="store_true", help="on halves of the sets' classes")
    what.add_argument("--confirm", nargs="+", metavar="ARM", help="at most two declared arms, on DemoC, once")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), help="with --select; default all")
    parser.add_argument(
        "--sets", nargs="+", default=list(SELECTED_ON), choices=SELECTED_ON, help="with --select"
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", help="initialisations; default 411-415, 511-515 to confirm"
    )
    parser.add_argument(
        "--data_seeds", type=int, nargs="+", help="of the rendered images; default 3 4, 5 6 to confirm"
    )
    parser.add_argument("--again", action="store_true", help="confirm once more on a set that was looked at")
    parser.add_argument("--runs", default="runs/arms", help="folder of the rendered sets and the run folders")
    parser.add_argument(
        "--shard", default="0/1", help="i/n: this process does every n-th group of runs from the i-th on"
    )
    parser.add_argument("--out", default=str(ROOT / "results" / "arms"), help="folder of the JSON files")
    parser.add_argument(
        "--tables_only", action="store_true", help="remake the table from the kept runs; train nothing"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.confirm and args.arms:
        parser.error("--arms goes with --select; --confirm names its arms itself")
    chosen = args.confirm or args.arms or list(ARMS)
    args.seeds = args.seeds or ([511, 512, 513, 514, 515] if args.confirm else [411, 412, 413, 414, 415])
    args.data_seeds = args.data_seeds or ([5, 6] if args.confirm else [3, 4])
    out, arms = Path(args.out), complete(chosen)
    declared, binding = hypotheses_in(out), None
    if args.confirm and not args.tables_only:
        binding = bind_confirmation(out, args.confirm, declared, args.again)
    runs, whole = run_all(args, arms, places_of_confirmation if args.confirm else places_of_selection)
    if binding is not None and whole:
        begun = json.loads(binding.read_text(encoding="utf-8"))
        write_text(binding, json.dumps(begun | {"finished": True}, indent=1) + "\n")
    command = "python -m studies.arms " + (
        f"--confirm {' '.join(args.confirm)}" if args.confirm else "--select"
    )
    command += " --again" if args.confirm and args.again else ""
    is_part = not args.confirm and set(args.sets) != set(SELECTED_ON)
    command += f" --sets {' '.join(args.sets)}" if is_part else ""
    command += "" if args.confirm or set(arms) == set(ARMS) else f" --arms {' '.join(chosen)}"
    command += f" --seeds {' '.join(map(str, args.seeds))} --data_seeds {' '.join(map(str, args.data_seeds))}"
    judged = [one for one in declared if not args.confirm or one["arm"] in args.confirm]
    table = report(runs, arms, judged, confirming=bool(args.confirm))
    name = "confirmation" if args.confirm else f"selection_{'_'.join(args.sets)}" if is_part else "selection"
    folder = out / name
    write_text(folder / "table.md", f"    {command}\n\n{table}")
    print(table)


if __name__ == "__main__":
    run_main(main)
