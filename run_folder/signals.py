"""SIGTERM, SIGINT and SIGUSR1 as a wish to stop: what has begun is finished and saved, and the process ends with 75.

A cluster sends them before it takes a machine away; 75 (EX_TEMPFAIL) tells its scripts to give the same command again.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
TRY_AGAIN = 75
ECHO = 0.1  # seconds in which the same signal counts once: `timeout` sends it to the process and to its group


class Stopped(SystemExit):
    """The end of a process that was asked to stop and can go on later; its exit code is 75."""

    def __init__(self, asked: signal.Signals, kept: str):
        """`kept`: what is saved, in words."""
        super().__init__(TRY_AGAIN)
        self.message = (
            f"stopped by {asked.name}: {kept}; the same command goes on from there (exit code {TRY_AGAIN})"
        )

    def __str__(self) -> str:
        return self.message


class StopSignals:
    """The handler: the first signal asks to stop, a second one ends the process at once with 128 + its number.

    `asked` is the first one or None. Outside of `finishing` it stops the process where it is, which loses nothing:
    files appear whole or not at all, and what is made between two stages is made again.
    """

    def __init__(self):
        self.asked: signal.Signals | None = None
        self._finishing, self._at, self._process = False, 0.0, os.getpid()

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a child that inherited the handler: the parent decides
            return
        now = time.monotonic()
        if self.asked is None:
            self.asked, self._at = signal.Signals(number), now
            # Not the logger: the signal may have come while it was writing.
            note = f"{self.asked.name}: stopping, a second signal ends the process at once\n"
            with suppress(OSError):
                os.write(2, note.encode())
            if not self._finishing:
                raise Stopped(self.asked, "files are whole")
        elif number != self.asked or now - self._at > ECHO:
            os._exit(128 + number)

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """Within, a signal only sets `asked`; whoever works there looks at it when something is finished."""
        self._finishing = True
        try:
            yield
        finally:
            self._finishing = False
        if self.asked is not None:
            raise Stopped(self.asked, "files are whole")


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Listen to the signals until the block ends; then those who listened before do so again.

    Only in the main thread, the only one that Python tells of signals; elsewhere nothing is ever asked.
    """
    handler, before = StopSignals(), {}
    if threading.current_thread() is threading.main_thread():
        before = {one: signal.getsignal(one) for one in STOP_SIGNALS}
    try:
        for one, old in before.items():
            if old is not None:  # None: a handler of C code, which could not be put back
                signal.signal(one, handler)
        yield handler
    finally:
        for one, old in before.items():
            if old is not None:
                signal.signal(one, old)


def ignore_stop_signals(worker: int = 0) -> None:
    """For a data loader's process (`worker_init_fn`): a signal to the whole group leaves it to the parent to stop.

    A SIGTERM of the parent's own still ends it. Where the sender cannot be told (macOS), any does.
    """
    for one in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(one, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent):
    """Wait for the parent's SIGTERM, and for nobody else's."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
