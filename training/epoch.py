"""What an epoch sums up step by step, and how that is kept where a later call of the same command goes on from it."""

import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from run_folder.checkpoints import restore_rng
from run_folder.processes import current
from run_folder.progress import EpochFile
from run_folder.signals import Stopped, StopSignals
from run_folder.state import TrainState
from training.finite_steps import FiniteSteps
from training.watch import Watch


class EpochSums:
    """Losses, terms and gradient norms of an epoch's steps, on the device until the epoch ends.

    `taken`: of each step whether it was, up to the last that `--on_nan skip` might have left out; the others were.
    `overflowed`: of each step whether a gradient scaler kept it from being taken: its loss counts, its norms do not.
    """

    def __init__(self, watched: Iterable[str] = (), watch: Watch | None = None):
        """`watched`: keys of the modules whose gradient norms are summed up. `watch`: of `--watch`, or None."""
        self.watch = watch
        self.losses: list[Tensor] = []
        self.terms: dict[str, Tensor] = {}
        self.norms: dict[str, list[Tensor]] = {key: [] for key in watched}
        self.taken: list[Tensor] = []
        self.overflowed: list[Tensor] = []
        self._seconds, self._begin = 0.0, time.perf_counter()

    @property
    def steps(self) -> int:
        """Steps made, those of the process before included."""
        return len(self.losses)

    @property
    def seconds(self) -> float:
        """Spent on the epoch, the time between two processes left out."""
        return self._seconds + time.perf_counter() - self._begin

    @property
    def left_out(self) -> int:
        """Steps that were not taken; with some that might have been this waits for the device."""
        return len(self.taken) - int(torch.stack(self.taken).sum()) if self.taken else 0

    def _taken(self):
        """Of every step whether it was taken [steps]."""
        others = self.losses[0].new_ones(self.steps - len(self.taken), dtype=torch.bool)
        return torch.cat([torch.stack(self.taken), others]) if self.taken else others

    def add(
        self,
        terms: dict[str, Tensor],
        norms: dict[str, Tensor],
        taken: Tensor | None = None,
        overflowed: Tensor | None = None,
    ) -> None:
        """Add a step: {term: scalar}, {key: norm}, whether it was taken (None: it was, or the stage ends), and with a
        gradient scaler whether that alone kept it from being so."""
        loss = sum(terms.values())
        if overflowed is not None:
            self.overflowed.append(overflowed)
            taken = None if taken is None else taken | overflowed
            norms = {key: torch.where(overflowed, 0.0, norm) for key, norm in norms.items()}
        if taken is not None:
            if len(self.taken) < self.steps:
                self.taken = list(self._taken())
            self.taken.append(taken)
            loss = torch.where(taken, loss, 0.0)
            terms = {term: torch.where(taken, value, 0.0) for term, value in terms.items()}
            norms = {key: torch.where(taken, norm, 0.0) for key, norm in norms.items()}
        self.losses.append(loss)
        for term, value in terms.items():
            self.terms[term] = self.terms.get(term, 0.0) + value
        for key, norm in norms.items():
            self.norms[key].append(norm)

    def content(self) -> dict[str, Any]:
        """All of it as a checkpoint holds it."""
        return {
            "steps": self.steps,
            "losses": torch.stack(self.losses),
            "terms": self.terms,
            "norms": {key: torch.stack(values) for key, values in self.norms.items()},
            "taken": self._taken() if self.taken else None,
            **({"overflowed": torch.stack(self.overflowed)} if self.overflowed else {}),
            "seconds": self.seconds,
            "watch": self.watch.content() if self.watch is not None else None,
        }

    def restore(self, content: dict[str, Any], device: torch.device | str) -> None:
        """Go on from what `content` gave."""
        self.losses = list(content["losses"].to(device))
        self.terms = {term: value.to(device) for term, value in content["terms"].items()}
        self.norms = {key: list(values.to(device)) for key, values in content["norms"].items()}
        self.taken = [] if content["taken"] is None else list(content["taken"].to(device))
        self.overflowed = list(content["overflowed"].to(device)) if "overflowed" in content else []
        self._seconds, self._begin = content["seconds"], time.perf_counter()
        if self.watch is not None and content.get("watch"):  # None of a process without, or an older version
            self.watch.restore(content["watch"], device)

    def entry(self, state: TrainState) -> dict[str, Any]:
        """The epoch's entry of the history, see training.engine.train_one_epoch; this waits for the device."""
        losses, count = torch.stack(self.losses), self.steps
        norms = {key: torch.stack(values) for key, values in self.norms.items()}
        left_out = self.left_out
        if left_out == count:
            raise FloatingPointError(
                f"stage {state.name!r}, epoch {state.epoch}: no step had a finite loss and gradient, all were left "
                "out; lower the stage's learning rate, or look at the files named in the log"
            )
        counted = self._taken()
        if left_out:
            count, losses = count - left_out, losses[counted]
        if self.overflowed:
            counted = counted & ~torch.stack(self.overflowed)
        if left_out or self.overflowed:
            norms = {key: values[counted] for key, values in norms.items()}
        entry = {
            "epoch": state.epoch,
            "loss": float(losses.mean()),
            "terms": {term: float(total) / count for term, total in self.terms.items()},
            "lr": state.optimizer.param_groups[0]["lr"],
            "seconds": round(self.seconds, 2),
            "gradients": {key: mean_or_0(values) for key, values in norms.items()},
        }
        entry |= {"gradient_norm": mean_total_norm(norms)} if norms else {}
        entry |= {"watch": self.watch.entry()} if self.watch is not None else {}
        overflowed = int(torch.stack(self.overflowed).sum()) if self.overflowed else 0
        entry |= {"steps_overflowed": overflowed} if overflowed else {}
        return entry | ({"steps_left_out": left_out} if left_out else {})


def mean_total_norm(norms: dict[str, Sequence[Tensor] | Tensor]) -> float:
    """Mean over the steps of the gradient's norm over all modules, from {key: norm of every step}."""
    rows = [values if isinstance(values, Tensor) else torch.stack(values) for values in norms.values()]
    by_module = torch.stack(rows)  # [modules, steps]
    return mean_or_0(by_module.norm(dim=0))


def mean_or_0(values: Tensor) -> float:
    """Mean of values [n]; 0 without any: no step had a gradient that could be used."""
    return float(values.mean()) if len(values) else 0.0


class EpochKeeper:
    """Saves the state inside an epoch: every so many steps or minutes, and when a signal asks to stop.

    Raises:
        ValueError: a negative number of steps or minutes.
    """

    def __init__(
        self, file: EpochFile, every_steps: int, every_minutes: float, signals: StopSignals | None = None
    ):
        """`every_steps`, `every_minutes`: 0 for never. `signals`: None where nobody listens to them."""
        for flag, value in (("save_every_steps", every_steps), ("save_every_minutes", every_minutes)):
            if not value >= 0:
                raise ValueError(f"--{flag} {value}: expected 0 (never) or more")
        self.file, self.signals = file, signals
        self.every_steps, self.every_seconds = every_steps, 60 * every_minutes
        self.begun: dict[str, Any] | None = None  # what EpochFile.resume found, until its epoch goes on
        self.saved_at = 0.0

    def begin(self, sums: EpochSums, device: torch.device | str) -> dict[str, Any] | None:
        """Begin an epoch, or go on in one: `sums` are restored, and the random states for its next step returned."""
        begun, self.begun, self.saved_at = self.begun, None, time.monotonic()
        if begun is None:
            return None
        sums.restore(begun["so_far"], device)
        return begun["rng"]

    def after_step(self, state: TrainState, sums: EpochSums, steps: FiniteSteps) -> None:
        """Save if it is time to.

        Raises:
            Stopped: a signal asked to stop; everything up to this step is saved.
            FloatingPointError: a step since the last look was not finite; nothing is saved.
        """
        by_steps = self.every_steps and sums.steps % self.every_steps == 0
        late = self.every_seconds and time.monotonic() - self.saved_at >= self.every_seconds
        asked, by_time = self._agreed(late)
        if not (asked or by_steps or by_time):
            return
        steps.look()
        self.file.save(state, sums.content())
        self.saved_at = time.monotonic()
        if asked:
            kept = (
                f"{self.file.path.name} holds stage {state.name}, epoch {state.epoch} up to step {sums.steps}"
            )
            raise Stopped(asked, kept)

    def _agreed(self, late: bool = False) -> tuple[signal.Signals | None, bool]:
        """(the signal that asked one of the processes to stop, or None; whether the main one's clock says to save)."""
        processes = current()
        asked = self.signals.asked if self.signals is not None else None
        if processes.count > 1:
            number, late = processes.agree(asked or 0, int(late and processes.main))
            asked = signal.Signals(number) if number else None
        return asked, bool(late)

    def after_epoch(self, state: TrainState) -> None:
        """The epoch's checkpoint is written.

        Raises:
            Stopped: a signal asked to stop meanwhile.
        """
        self.file.remove()
        asked, _ = self._agreed()
        if asked:
            kept = f"{self.file.stage_file.name} holds stage {state.name} up to epoch {state.epoch}"
            raise Stopped(asked, kept)


def batches_from(
    loader: Iterable[dict], step: int, random_states: dict[str, Any] | None = None
) -> Iterator[dict]:
    """The batches of an epoch from a step on, whatever the loader's workers are.

    A sampler with `skip` leaves the indices of those before out; of any other loader they are read and dropped.

    Args:
        random_states: put back before the first batch; None to go on from those of now.
    """
    sampler = getattr(loader, "sampler", None)
    can_skip, before = hasattr(sampler, "skip"), torch.get_rng_state()
    if can_skip:
        sampler.skip = step * loader.batch_size
    batches = iter(loader)
    if can_skip and loader.persistent_workers:
        # A loader draws a number from torch's generator for every iterator, but those that live on are made once:
        # what a step draws (dropout) must not depend on it.
        torch.set_rng_state(before)
        torch.empty((), dtype=torch.int64).random_()
    if not can_skip:
        for _ in range(step):
            next(batches, None)
    if random_states is not None:
        restore_rng(random_states)
    return batches
