"""Commands run as a user types them: in this process, or several side by side, each in a process of one thread.

python -m scripts.commands '[["train.py", ["--save_path", "ckpt/visa"]], ["test.py", ["--save_path", "ckpt/visa"]]]'
"""

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from files.command import Refusal

ROOT = Path(__file__).resolve().parent.parent
Command = tuple[str, Sequence[str]]  # a file of the repository's root and the words behind it
# Two of torch's threads gain a tiny model nothing, and threads that spin while they wait for one another take four
# times as long where other work shares the cores: one thread a process, asleep while it waits. A user's own choice
# stays.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def run_command(name: str, argv: Sequence[str]) -> None:
    """Run a command of the repository's root; what it raises is raised here.

    Args:
        name: its file, for instance "train.py".
        argv: the words behind it.
    """
    runpy.run_path(str(ROOT / name))["main"](argv)


class SideBySide:
    """Chains of commands, as many at once as there are cores; what they print carries the chain's title.

    >>> with SideBySide() as jobs:
    ...     trained = jobs.start("baseline", [("train.py", ["--save_path", "ckpt/visa"])])
    ...     jobs.start("raw CLIP", [("test.py", ["--raw_clip"])])
    ...     trained()  # waits

    Leaving the block waits for every chain. One that fails stops the others and raises RuntimeError with its title.
    """

    def __init__(self, at_once: int | None = None):
        self._pool = ThreadPoolExecutor(at_once or os.cpu_count() or 1)
        self._started, self._running, self._failed = [], [], False

    def start(self, title: str, commands: Sequence[Command]) -> Callable[[], None]:
        """Run the commands one after the other in a process of their own; the result waits until they are done."""
        self._started.append(self._pool.submit(self._run, title, commands))
        return self._started[-1].result

    def _run(self, title: str, commands: Sequence[Command]) -> None:
        if self._failed:
            return
        words = [sys.executable, "-u", "-m", "scripts.commands", json.dumps(commands)]
        process = subprocess.Popen(
            words,
            cwd=os.getcwd(),
            env=ONE_THREAD | dict(os.environ) | {"PYTHONPATH": _with_root(os.environ.get("PYTHONPATH"))},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        self._running.append(process)
        with process:
            for line in process.stdout:
                print(f"[{title}] {line}", end="", flush=True)
        if process.returncode and not self._failed:
            self._stop()
            raise Refusal(f"{title}: stopped with exit status {process.returncode}; see its lines above")

    def _stop(self) -> None:
        self._failed = True
        for process in self._running:
            process.terminate()

    def __enter__(self) -> "SideBySide":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is not None:
            self._stop()
        self._pool.shutdown(cancel_futures=kind is not None)
        if kind is None:
            for chain in self._started:
                chain.result()


def _with_root(path: str | None) -> str:
    return os.pathsep.join([str(ROOT), *([path] if path else [])])


if __name__ == "__main__":
    for command_name, command_argv in json.loads(sys.argv[1]):
        run_command(command_name, command_argv)
