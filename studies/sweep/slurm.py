"""A sweep's runs as jobs of a Slurm cluster, by submitit (an optional package).

A job that is about to be taken away (its time is up, or somebody goes first) is told so by SIGUSR2; the run saves, ends
with 75, and the job is queued again. A run that is told directly (SIGTERM to all of a job's processes) does the same.
"""

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from files.atomic import write_text
from files.command import Refusal
from run_folder.signals import TRY_AGAIN
from studies.sweep.plan import SweepRun
from studies.sweep.work import DONE, Process, RunState, work_off

SHARED = (  # submitit's names that are not Slurm's alone
    "timeout_min",
    "mem_gb",
    "nodes",
    "cpus_per_task",
    "gpus_per_node",
    "tasks_per_node",
    "name",
    "stderr_to_stdout",
)
POLL = 1.0  # seconds between two looks at the jobs' files; submitit asks the queue less often


class Job:
    """What a job of the cluster calls. It is pickled: the process lives in the job alone."""

    def __init__(self, out: str, run: SweepRun, environment: dict[str, str], processes: int = 0):
        self.out, self.run, self.environment, self.processes = out, run, environment, processes
        self._process: Process | None = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_process": None}

    def __call__(self) -> int:
        """Work the run off; returns 0.

        Raises:
            RuntimeError: a command failed; the message has the end of its log.
        """
        self._process, state = Process(), RunState(self.out, self.run)
        environment = dict(os.environ) | self.environment
        code = work_off(state, self._process, environment, self.processes)
        if code == TRY_AGAIN:
            # Told directly, without submitit's notice: its handler puts the job back into the queue and exits.
            os.kill(os.getpid(), getattr(signal, "SIG" + os.environ.get("SUBMITIT_PREEMPT_SIGNAL", "USR2")))
        if code != DONE:
            raise Refusal(f"{self.run.name}: exit code {code}; {state.log} ends with\n{state.end_of_log()}")
        return code

    def checkpoint(self) -> Any:
        """What is queued again, once the run has saved: called by submitit when the job is to be taken away."""
        from submitit.helpers import DelayedSubmission

        if self._process is not None:
            self._process.stop(signal.SIGUSR1)
            if self._process.child is not None:
                self._process.wait()
        return DelayedSubmission(Job(self.out, self.run, self.environment, self.processes))


def folder_of(out: Path) -> Path:
    """Where submitit keeps a job's files."""
    return out / "slurm" / "%j"


def executor_of(out: Path, parameters: dict[str, Any]) -> Any:
    """submitit's executor with a sweep's `slurm:` parameters.

    Args:
        parameters: submitit's names, those of Slurm alone with or without "slurm_" before them; "cluster": local runs
            the same jobs as processes of this machine, to try a sweep out.

    Raises:
        ModuleNotFoundError: submitit is not installed.
        ValueError: a parameter that it does not have.
    """
    try:
        import submitit
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("--executor slurm needs submitit: pip install submitit") from error

    given = dict(parameters)
    cluster = given.pop("cluster", "slurm")
    options = {}
    if "max_num_timeout" in given:  # how often a job that ran out of time is queued again
        options[f"{cluster}_max_num_timeout"] = given.pop("max_num_timeout")
    try:
        executor = submitit.AutoExecutor(folder=folder_of(out), cluster=cluster, **options)
        named = {
            key if key in SHARED or key.startswith("slurm_") else f"slurm_{key}": value
            for key, value in given.items()
        }
        executor.update_parameters(**{"name": "sweep"} | named)
    except (NameError, AssertionError, RuntimeError, ValueError) as error:
        raise ValueError(f"slurm: {error}") from error
    return executor


def submit(
    executor: Any, states: Sequence[RunState], out: Path, environment: dict[str, str], processes: int
) -> dict:
    """{name: job} of the runs, as one array of the cluster; their ids are kept beside the runs' states."""
    with executor.batch():
        jobs = {
            one.run.name: executor.submit(Job(str(out), one.run, environment, processes)) for one in states
        }
    for one in states:
        write_text(one.job, f"{jobs[one.run.name].job_id}\n")
    return jobs


def waiting(out: Path, state: RunState) -> Any | None:
    """The job of a run that an earlier call has submitted and that is not over; None without one."""
    from submitit import SlurmJob

    if not state.job.is_file():
        return None
    job = SlurmJob(folder=folder_of(out), job_id=state.job.read_text(encoding="utf-8").strip())
    return None if job.done(force_check=True) else job


def wait_for(jobs: dict[str, Any], states: Sequence[RunState], say: Callable[[str], None]) -> dict[str, int]:
    """{name: exit code} of all runs, once every job is over; 1 for what failed."""
    codes, by_name = {}, {one.run.name: one for one in states}
    while len(codes) < len(jobs):
        for name, job in jobs.items():
            if name in codes or not job.done():
                continue
            codes[name] = DONE if by_name[name].is_done() else 1
            failed = f"job {job.job_id} failed, see {by_name[name].log} and {job.paths.stderr}"
            say(f"{name}: " + (failed if codes[name] else "done"))
        time.sleep(POLL)
    return codes
