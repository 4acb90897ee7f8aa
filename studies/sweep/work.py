"""Working off the commands of one run: what is done is written down, and a command that ends with 75 goes on later."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from files.atomic import write_text
from files.command import Refusal
from files.text import read_json
from run_folder.signals import TRY_AGAIN
from studies.arm_runs import ROOT
from studies.sweep.plan import SweepRun, state_file

DONE = 0
SHOWN = 600  # characters of a failed command's log
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
STOPPED_UNDER_TORCHRUN = f"exitcode  : {TRY_AGAIN} "  # in its report; its own exit code is 1 for any failure


class RunState:
    """How far a run is: state/<name>.json of a sweep.

    It holds {"commands", "done": how many of them}. Beside it <name>.job has the run's id on a cluster: the one who
    submits writes it while the job may be writing the state.
    """

    def __init__(self, out: Path | str, run: SweepRun):
        self.run, self.path = run, state_file(out, run.name)
        self.job = self.path.with_suffix(".job")
        self.log = Path(out) / "logs" / f"{run.name}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)

    def read(self) -> dict[str, Any]:
        """The state; of a run that was not begun, or whose folder is gone, with nothing done.

        Raises:
            RuntimeError: the run was begun with other commands; further ones behind them are none.
        """
        nothing = {"commands": self.run.commands, "done": 0}
        if not self.path.is_file():
            return nothing
        state = read_json(self.path)
        if state["commands"] != self.run.commands[: len(state["commands"])]:
            raise Refusal(
                f"run {self.run.name} was begun with other commands than the sweep has now: restore its file, give it "
                f"another out, or delete {self.path} and {self.run.folder} to begin the run anew"
            )
        return nothing | {"done": state["done"]} if self.run.folder.is_dir() else nothing

    def write(self, **changes: Any) -> None:
        """Write the state with these entries changed."""
        write_text(self.path, json.dumps(self.read() | changes, indent=1) + "\n")

    def is_done(self) -> bool:
        """Whether every command is done."""
        return self.read()["done"] == len(self.run.commands)

    def end_of_log(self) -> str:
        """The last characters of the run's log."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-SHOWN:] if self.log.is_file() else ""


class Process:
    """The command of a run that is running; it can be asked to stop from another thread or a signal's handler.

    It has a session of its own and ignores SIGUSR2: a terminal's Ctrl-C and a cluster's notice go to the sweep, which
    hands them on once as a signal that the command knows.
    """

    def __init__(self):
        self.child: subprocess.Popen | None = None
        self.asked: signal.Signals | None = None
        self._told = False

    def __call__(self, words: list[str], log: Path, environment: dict[str, str]) -> int:
        """Run a command to its end, its output appended to a log.

        Returns:
            its exit code; 75 also for whatever it ended with because it was asked to stop.
        """
        if self.asked is not None:
            return TRY_AGAIN
        shell = ["sh", "-c", 'trap "" USR2; exec "$@"', "sh", sys.executable, "-u", *words]
        with open(log, "ab") as file:
            self.child = subprocess.Popen(
                shell,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
                cwd=ROOT,
            )
        if self.asked is not None:  # since the first line
            self._tell()
        while self.child.poll() is None:  # wait() would hold a lock that a signal's handler needs
            time.sleep(0.05)
        return TRY_AGAIN if self.child.returncode and self.asked is not None else self.child.returncode

    def stop(self, asked: signal.Signals) -> None:
        """Ask the command to stop; what comes after it is not begun."""
        self.asked = asked
        if self.child is not None:
            self._tell()

    def _tell(self):
        if not self._told:  # a second signal would end it at once
            self._told = True
            self.child.send_signal(self.asked)

    def wait(self) -> None:
        """Wait for the end of a command, whoever else waits for it."""
        with suppress(ChildProcessError):
            os.waitid(os.P_PID, self.child.pid, os.WEXITED | os.WNOWAIT)


def work_off(
    state: RunState, process: Callable[..., int], environment: dict[str, str], processes: int = 0
) -> int:
    """Run what is left of a run.

    Args:
        process: a `Process`.
        environment: of the commands.
        processes: of the training command, started by torchrun; 0 to start it directly.

    Returns:
        0, or the exit code of the command that ended otherwise; 75: the same call goes on from there.
    """
    done = state.read()["done"]
    state.write(done=done)
    for number, words in enumerate(state.run.commands[done:], start=done):
        under_torchrun = processes > 0 and number == 0
        words = [*TORCHRUN, str(processes), *words] if under_torchrun else words
        begin = state.log.stat().st_size if state.log.is_file() else 0
        code = process(words, state.log, environment)
        if code and under_torchrun:
            said = state.log.read_bytes()[begin:].decode("utf-8", "replace")
            code = TRY_AGAIN if STOPPED_UNDER_TORCHRUN in said else code
        if code != DONE:
            return code
        state.write(done=number + 1)
    return DONE
