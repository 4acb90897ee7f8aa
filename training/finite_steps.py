"""No step on a loss or a gradient that is not finite, and no wait for the device to find out."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from run_folder.state import TrainState


class Taken(NamedTuple):
    """What is kept of a step until it is looked at: all on the device but the names."""

    finite: Tensor
    terms: dict[str, Tensor]
    norm: Tensor
    files: list[str]


class FiniteSteps:
    """Takes the optimiser steps of an epoch as long as losses and gradients are finite.

    To read a number of a CUDA device is to wait for all it has to do. So `every` steps are looked at together. The
    first that is not finite and all behind it leave parameters and optimiser state as they are, which the device
    decides by itself, and the look then ends the stage. With `every` 1 each step is looked at before it is taken.

    Raises:
        ValueError: `every` is below 1.
    """

    def __init__(self, state: TrainState, every: int):
        if every < 1:
            raise ValueError(f"--log_every {every}: expected 1 step or more")
        self.state, self.every = state, every
        self.taken: list[Taken] = []
        self.sound: Tensor | None = None  # whether all steps since the last look are finite

    def take(self, terms: dict[str, Tensor], norm: Tensor, batch: dict) -> None:
        """Step the optimiser, unless this step or one since the last look is not finite.

        Args:
            terms: {term: detached scalar} of the loss.
            norm: of the gradient over all trained parameters.
            batch: what they are of; its "file_name" is said if it ends the stage.

        Raises:
            FloatingPointError: as `look`.
        """
        finite = sum(terms.values()).isfinite() & norm.isfinite()
        self.taken.append(Taken(finite, terms, norm, batch.get("file_name", ["(the batch names no files)"])))
        if self.every == 1:
            self.look()
            self.state.optimizer.step()
            return
        self.sound = finite if self.sound is None else self.sound & finite
        step_where(self.state.optimizer, self.sound)
        if len(self.taken) == self.every:
            self.look()

    def look(self) -> None:
        """Read which of the steps since the last look were finite: the one place that waits for the device.

        Raises:
            FloatingPointError: one was not; nothing has been stepped since.
        """
        if not self.taken:
            return
        finite = torch.stack([step.finite for step in self.taken]).tolist()
        if not all(finite):
            raise FloatingPointError(self._message(self.taken[finite.index(False)]))
        self.taken, self.sound = [], None

    def _message(self, step):
        """What a user needs to find the cause."""
        values = {term: float(value) for term, value in step.terms.items()}
        what = "loss" if not sum(step.terms.values()).isfinite() else "gradient"
        if what == "gradient":
            values["gradient norm"] = float(step.norm)
        shown = ", ".join(f"{name} = {value}" for name, value in values.items())
        return (
            f"stage {self.state.name!r}, epoch {self.state.epoch}: the {what} is not finite ({shown}) for "
            f"{', '.join(map(str, step.files))}. Nothing was updated; look at these files, or lower the stage's "
            "learning rate"
        )


@torch.no_grad()
def step_where(optimizer: torch.optim.Optimizer, sound: Tensor) -> None:
    """`optimizer.step()` where `sound`, a boolean scalar on the device, is true; else parameters and state stay.

    Any optimiser is guarded, at the price of a copy of what it moves (for Adam three times the trained parameters) and
    of two small kernels per tensor. Step counters that an optimiser keeps on the CPU count every call.
    """
    before = {key: value.clone() for key, value in moving(optimizer, sound.device)}
    optimizer.step()
    for key, now in moving(optimizer, sound.device):
        # A state that this step has made starts at zero, as Adam's moments do.
        torch.where(sound, now, before.get(key, torch.zeros_like(now)), out=now)


def moving(optimizer: torch.optim.Optimizer, device: torch.device) -> Iterator[tuple[tuple, Tensor]]:
    """((parameter's number, name in the state), tensor) of all a step may change on a device."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, parameter in enumerate(parameters):
        yield (number, "parameter"), parameter
        for name, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor) and value.device == device:
                yield (number, name), value
