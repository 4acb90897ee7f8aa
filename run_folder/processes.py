"""The processes that work on one run together: which one this is, what all of them agree on, what is gathered.

A command of one process is ALONE: it imports nothing more and waits for nobody. torchrun and accelerate launch say by
environment variables (WORLD_SIZE, RANK, LOCAL_RANK) that there are more; process 0 then logs and writes for all.
"""

import atexit
import gc
import importlib
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import accumulate
from logging import Logger
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from files.atomic import writing_nothing
from files.command import Refusal, processes_started
from files.logs import PROGRAM, PlainFormatter, open_logger
from run_folder.signals import Stopped
from utils import get_logger, lock_run

REQUIREMENT = "accelerate>=1.0"
# How long a process waits for the others: longer than process 0 counts the metrics of a class or writes a checkpoint.
PATIENCE = timedelta(minutes=30)


@contextmanager
def _with_the_others() -> Iterator[None]:
    """Says what it means when the others do not answer."""
    try:
        yield
    except RuntimeError as error:
        raise Refusal(
            f"another process of this run has ended or does not answer, its own message says why ({error})"
        ) from error


class Processes:
    """`count` processes, of which this one is number `rank`; number 0 is the `main` one, which writes.

    Args:
        host: torch.distributed's group for what lies in the host's memory; None with one process.
        device: where tensors lie that are gathered.
    """

    def __init__(self, rank: int = 0, count: int = 1, host: Any = None, device: torch.device | None = None):
        self.rank, self.count, self.host, self.device = rank, count, host, device

    @property
    def main(self) -> bool:
        """Whether this process logs and writes."""
        return self.rank == 0

    def sizes(self, total: int) -> list[int]:
        """How many of `total` things each process has: as equal as can be, the first ones have one more."""
        return [total // self.count + (rank < total % self.count) for rank in range(self.count)]

    def own(self, total: int) -> slice:
        """Which of `total` things in a row are this process's."""
        ends = [0, *accumulate(self.sizes(total))]
        return slice(ends[self.rank], ends[self.rank + 1])

    def wait(self) -> None:
        """Until all have come here."""
        if self.count > 1:
            with _with_the_others():
                torch.distributed.barrier(self.host)

    def agree(self, *numbers: int) -> list[int]:
        """Of each number the largest that any process gives."""
        if self.count == 1:
            return list(numbers)
        found = torch.tensor(numbers, dtype=torch.int64)
        with _with_the_others():
            torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX, self.host)
        return found.tolist()

    def tell(self, value: Any) -> Any:
        """The main process's `value`, in all."""
        if self.count == 1:
            return value
        told = [value]
        with _with_the_others():
            torch.distributed.broadcast_object_list(told, 0, self.host)
        return told[0]

    def collect(self, value: Any) -> list[Any] | None:
        """Every process's value, in order, in the main process; None in the others."""
        if self.count == 1:
            return [value]
        found = [None] * self.count if self.main else None
        with _with_the_others():
            torch.distributed.gather_object(value, found, 0, self.host)
        return found

    def check_same(self, what: str, value: Any) -> None:
        """Refuse to go on where processes found different things in the run's folder.

        Raises:
            Refusal: says what they found, and that they do not see one folder.
        """
        found = self.tell(self.collect(value))
        if any(one != found[0] for one in found):
            listed = ", ".join(f"process {rank}: {one}" for rank, one in enumerate(found))
            raise Refusal(
                f"the processes do not find the same {what} ({listed}): --save_path must lie on a file system that "
                "all machines share"
            )

    def gather(self, own: Tensor, sizes: Sequence[int]) -> Tensor:
        """All processes' rows in order: [sizes[rank], ...] -> [sum(sizes), ...]; without a gradient."""
        if self.count == 1:
            return own
        padded = own.new_zeros(max(sizes), *own.shape[1:])
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in sizes]
        with _with_the_others():
            torch.distributed.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def share_generators(self) -> None:
        """Give all processes the state of the main one's random generators: CPU's, and of each one's own GPU."""
        if self.count == 1:
            return
        on_gpu = self.device.type == "cuda"
        states = self.tell((torch.get_rng_state(), torch.cuda.get_rng_state() if on_gpu else None))
        torch.set_rng_state(states[0])
        if on_gpu:
            torch.cuda.set_rng_state(states[1])


ALONE = Processes()
_working, _joined = ALONE, None  # those that work on something now; those this process belongs to


def current() -> Processes:
    """The processes that work on this process's run."""
    return _working


@contextmanager
def joined(device: str | None) -> Iterator[Processes]:
    """Work together with the processes that were started beside this one; all but the main one write no file within.

    Args:
        device: as `--device`.

    Raises:
        Refusal: the environment or the device does not fit that many processes.
        ModuleNotFoundError: accelerate is missing.
    """
    global _working, _joined
    if processes_started() == 1 or _working is not ALONE:
        yield _working
        return
    if _joined is None:
        _joined = join(device)
    _working = _joined
    atexit.unregister(_leave)  # who fails does not wait for the others
    try:
        if _working.main:
            yield _working
        else:
            with writing_nothing():
                yield _working
        _working.wait()  # what the main process still writes may fail
        atexit.register(_leave)
    except Stopped:  # as the others
        atexit.register(_leave)
        raise
    finally:
        _working = ALONE


def join(device: str | None) -> Processes:
    """Meet the other processes; arguments and errors as `joined`."""
    count, rank, local = processes_started(), os.environ.get("RANK"), os.environ.get("LOCAL_RANK")
    if rank is None or local is None:
        raise Refusal(
            f"WORLD_SIZE is {count}, but RANK and LOCAL_RANK are not set: start the command with torchrun or "
            "accelerate launch, or unset WORLD_SIZE"
        )
    kind, _, number = (device or ("cuda" if torch.cuda.is_available() else "cpu")).partition(":")
    if kind not in ("cpu", "cuda") or number:
        raise Refusal(
            f"--device {device} with {count} processes: give --device cuda, of which each takes its own card, or cpu"
        )
    if kind == "cuda" and int(local) >= torch.cuda.device_count():
        raise Refusal(
            f"process {local} of this machine has no GPU, it sees {torch.cuda.device_count()}: start one process per "
            "GPU and let each see all of them, or give --device cpu"
        )
    try:
        accelerate = importlib.import_module("accelerate")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{count} processes need the package accelerate: pip install -r requirements-distributed.txt "
            f"({REQUIREMENT}); one process needs none"
        ) from error
    backend = {} if kind == "cuda" else {"backend": "gloo"}
    state = accelerate.PartialState(cpu=kind == "cpu", timeout=PATIENCE, **backend)
    if state.distributed_type.value not in ("MULTI_CPU", "MULTI_GPU"):
        raise Refusal(
            f"accelerate was configured for {state.distributed_type.value}: several processes train here with plain "
            "data parallelism; choose multi-GPU or multi-CPU in accelerate config"
        )
    on_host = torch.distributed.group.WORLD
    if kind == "cuda":  # signals and maps lie in the host's memory: to send them waits for no GPU
        on_host = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
    return Processes(state.process_index, state.num_processes, on_host, state.device)


def _leave():
    """End the group's threads before the interpreter ends, which they would meet without their objects."""
    global _joined
    _joined = None
    gc.collect()
    torch.distributed.destroy_process_group()


@contextmanager
def locked(save_path: Path | str) -> Iterator[None]:
    """The main process locks the run's folder; all fail if it cannot."""
    processes, lock, failure = current(), None, None
    if processes.main:
        try:
            lock = lock_run(save_path)
        except BaseException as error:
            processes.tell(str(error))
            raise
    failure = processes.tell(None)
    if failure is not None:
        raise Refusal(failure)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def run_logger(save_path: Path | str, file_name: str) -> Logger:
    """The main process's logger, as utils.get_logger; another one shows warnings on the console, with its number."""
    processes = current()
    if processes.main:
        return get_logger(save_path, file_name)
    logger = open_logger(PROGRAM, level=logging.WARNING)
    for handler in logger.handlers:
        handler.setFormatter(PlainFormatter(f"process {processes.rank}: %(message)s"))
    return logger
