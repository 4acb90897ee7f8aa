"""A sweep's runs on this machine, several at once, each in a process of its own."""

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

from run_folder.signals import TRY_AGAIN, StopSignals
from scripts.commands import ONE_THREAD
from studies.sweep.work import DONE, Process, RunState, work_off

MOST_AGAIN = 20  # a command that always ends with 75 must not go on for ever


class LocalRuns:
    """Works off runs side by side.

    `at_once`: how many. `gpus`: what they are shared out over, each as CUDA_VISIBLE_DEVICES has it.
    `processes`: of each training, started by torchrun; 0 to start it directly.
    """

    def __init__(
        self,
        at_once: int,
        gpus: Sequence[str],
        environment: dict[str, str],
        processes: int,
        say: Callable[[str], None],
    ):
        threads = ONE_THREAD if at_once > 1 else {}
        self.environment = threads | dict(os.environ) | environment
        self.at_once, self.processes, self.say = at_once, processes, say
        self._places: SimpleQueue = SimpleQueue()
        for number in range(at_once):
            self._places.put(gpus[number % len(gpus)] if gpus else None)
        self._running: set[Process] = set()
        self._stopped: signal.Signals | None = None
        self._lock = threading.Lock()

    def work_off(self, states: Sequence[RunState], signals: StopSignals) -> dict[str, int]:
        """{name: exit code} of the runs; those that a signal stopped, or left out, have 75."""
        # The first signal is handed on, then all are waited for.
        with signals.finishing(), ThreadPoolExecutor(self.at_once) as pool:
            started = {state.run.name: pool.submit(self._run, state) for state in states}
            while not all(one.done() for one in started.values()):
                if signals.asked is not None and self._stopped is None:
                    self.stop(signal.SIGTERM)
                time.sleep(0.1)
            return {name: one.result() for name, one in started.items()}

    def stop(self, asked: signal.Signals) -> None:
        """Ask what is running to stop, and begin nothing more."""
        with self._lock:
            self._stopped = asked
            self.say(
                f"asked to stop: {len(self._running)} runs save what they have; the same command goes on"
            )
            for process in self._running:
                process.stop(asked)

    def _run(self, state: RunState) -> int:
        place = self._places.get()
        environment = self.environment | ({"CUDA_VISIBLE_DEVICES": str(place)} if place is not None else {})
        try:
            code = TRY_AGAIN
            for _ in range(MOST_AGAIN):
                process = self._begin()
                if process is None:
                    return TRY_AGAIN
                code = work_off(state, process, environment, self.processes)
                with self._lock:
                    self._running.discard(process)
                if code != TRY_AGAIN:
                    break
                if self._stopped is None:
                    self.say(f"{state.run.name}: stopped with everything saved, going on")
            self.say(
                f"{state.run.name}: " + ("done" if code == DONE else f"exit code {code}, see {state.log}")
            )
            return code
        finally:
            self._places.put(place)

    def _begin(self) -> Process | None:
        """A process that `stop` knows of; None once it was called."""
        with self._lock:
            if self._stopped is not None:
                return None
            process = Process()
            self._running.add(process)
            return process
