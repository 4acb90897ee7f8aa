"""Train and test a grid of runs, on this machine or a cluster, and compare them in one report.

    python -m studies.sweep FILE.yaml                        # --executor local: side by side on this machine
    python -m studies.sweep FILE.yaml --executor torchrun    # each training in several processes
    python -m studies.sweep FILE.yaml --executor slurm       # jobs of a cluster (pip install submitit)

What is done is not done again: the same command goes on with what is left, also after exit code 75. The file's keys are
in docs/cluster.md.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from logging import Logger
from pathlib import Path

from files.command import run_main
from files.logs import open_logger
from run_folder.flags import HelpFormatter
from run_folder.signals import TRY_AGAIN, stop_signals
from studies.arm_runs import ROOT
from studies.sweep import slurm
from studies.sweep.local import LocalRuns
from studies.sweep.plan import Sweep, SweepRun, Tests, arms_of, read_sweep, runs_of, settings_of_run
from studies.sweep.work import DONE, RunState

FAILED = 1
DATA_FLAGS = ("data_root", "dataset_config", "real_names")  # that compare.py takes


def build_parser() -> argparse.ArgumentParser:
    """The flags of this command."""
    parser = argparse.ArgumentParser(
        prog="python -m studies.sweep", description=__doc__, formatter_class=HelpFormatter
    )
    parser.add_argument("file", help="the sweep's YAML file")
    parser.add_argument(
        "--executor", choices=["local", "slurm", "torchrun"], default="local", help="who starts the runs"
    )
    parser.add_argument("--jobs", type=int, help="runs at once; default 1, with --gpus one for each")
    parser.add_argument(
        "--gpus",
        nargs="+",
        default=[],
        help="numbers of the GPUs that runs are shared out over; torchrun: one for each process of a run",
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="check the file, say the runs and start nothing"
    )
    parser.add_argument("--no_wait", action="store_true", help="slurm: submit the jobs and end")
    return parser


def work(args: argparse.Namespace, sweep: Sweep, states: Sequence[RunState], say: Callable) -> dict[str, int]:
    """{name: exit code} of what was left to do, worked off by the executor that is asked for."""
    environment = {key: str(value) for key, value in sweep.environment.items()}
    if args.executor == "slurm":
        return on_cluster(args, sweep, states, environment, say)
    processes = sweep.processes if args.executor == "torchrun" else 0
    gpus = gpus_of_a_run(args.gpus, max(1, processes))
    at_once = args.jobs or max(1, len(gpus))
    runs = LocalRuns(at_once, gpus, environment, processes, say)
    with stop_signals() as signals:
        return runs.work_off(states, signals)


def gpus_of_a_run(gpus: Sequence[str], processes: int) -> list[str]:
    """The GPUs shared out, one for each process of a run: "0,1" and "2,3" of 0 1 2 3 for two processes.

    Raises:
        ValueError: they do not go into runs without a rest.
    """
    if len(gpus) % processes:
        raise ValueError(
            f"--gpus {' '.join(gpus)}: expected a multiple of the file's processes ({processes}), a GPU for each"
        )
    return [",".join(gpus[first : first + processes]) for first in range(0, len(gpus), processes)]


def on_cluster(
    args: argparse.Namespace, sweep: Sweep, states: Sequence[RunState], environment: dict, say: Callable
) -> dict[str, int]:
    """The same as jobs of a cluster; those that an earlier call has submitted are waited for."""
    out = Path(sweep.out).resolve()
    executor = slurm.executor_of(out, sweep.slurm)
    real = sweep.slurm.get("cluster", "slurm") == "slurm"
    jobs = {one.run.name: job for one in states if real and (job := slurm.waiting(out, one))}
    new = [one for one in states if one.run.name not in jobs]
    if new:
        processes = sweep.processes if sweep.processes > 1 else 0
        jobs |= slurm.submit(executor, new, out, environment, processes)
    for name, job in jobs.items():
        say(f"{name}: job {job.job_id}")
    if args.no_wait:
        return dict.fromkeys(jobs, TRY_AGAIN)
    return slurm.wait_for(jobs, states, say)


def report(sweep: Sweep, runs: Sequence[SweepRun], say: Callable) -> int:
    """Compare the arms with the baseline by compare.py; returns its exit code."""
    arms, tests = dict.fromkeys(run.arm for run in runs), Tests(**sweep.test)
    baseline = sweep.baseline or next(iter(arms))
    if len(arms) < 2 or not tests.datasets:
        say("one arm or no test set: there is nothing to compare")
        return DONE
    named = {arm: f"{arm}=" + ",".join(str(run.folder) for run in runs if run.arm == arm) for arm in arms}
    others = [words for arm, words in named.items() if arm != baseline]
    first = next(iter(arms_of(sweep).values()))
    shared = settings_of_run(first, {}, sweep.out) | tests.settings
    flags = [word for key in DATA_FLAGS if shared.get(key) for word in (f"--{key}", str(shared[key]))]
    out = Path(sweep.out).resolve() / "comparison"
    command = [str(ROOT / "compare.py"), "--baseline", named[baseline], "--runs", *others]
    command += ["--datasets", *map(str, tests.datasets), "--out", str(out), *flags, *map(str, sweep.compare)]
    return subprocess.run([sys.executable, *command], env=os.environ | {"PYTHONUNBUFFERED": "1"}).returncode


def main(argv: Sequence[str] | None = None, logger: Logger | None = None) -> int:
    args = build_parser().parse_args(argv)
    if args.jobs is not None and args.jobs < 1:
        raise ValueError(f"--jobs {args.jobs}: expected 1 or more")
    say = (logger or open_logger("sweep")).info
    sweep = read_sweep(args.file)
    runs = runs_of(sweep, args.file)
    states = [RunState(Path(sweep.out).resolve(), run) for run in runs]
    left = [state for state in states if not state.is_done()]
    say(f"{len(runs)} runs, {len(runs) - len(left)} of them done before")
    if args.dry_run:
        for state in left:
            for words in state.run.commands:
                say(" ".join(["python", *words]))
        return DONE
    codes = work(args, sweep, left, say) if left else {}
    failed = [name for name, code in codes.items() if code not in (DONE, TRY_AGAIN)]
    if failed:
        say(
            f"{len(failed)} of {len(runs)} runs failed: {', '.join(failed)}; the same command tries them again"
        )
        return FAILED
    if any(codes.values()):
        say(f"not all is done: the same command goes on (exit code {TRY_AGAIN})")
        return TRY_AGAIN
    return report(sweep, runs, say)


if __name__ == "__main__":
    run_main(main)
