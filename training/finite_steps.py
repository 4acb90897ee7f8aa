"""No step on a loss or a gradient that is not finite, and no wait for the device to find out."""

from typing import NamedTuple

import torch
from torch import Tensor

from run_folder.guarded_step import LeftOut, step_where
from run_folder.state import TrainState


class Taken(NamedTuple):
    """What is kept of a step until it is looked at: all on the device but the names.

    `sound`: loss and gradient are finite, or the gradient alone is not and the loss was scaled too much for it.
    """

    sound: Tensor
    terms: dict[str, Tensor]
    norm: Tensor
    files: list[str]


class FiniteSteps:
    """Takes the optimiser steps of an epoch as long as losses and gradients are finite.

    To read a number of a CUDA device is to wait for all it has to do. So `every` steps are looked at together. A step
    that is not finite leaves parameters and optimiser state as they are, which the device decides by itself; so do all
    steps behind the first that may not be left out, and the look then ends the stage. With `every` 1 each step is
    looked at before it is taken.

    With a gradient scaler (`state.scaler`) a gradient that is not finite where the loss is says that the scale was too
    large. Such a step is not taken either, but is nothing to stop at, until the scale is down at 1.

    Raises:
        ValueError: `every` is below 1.
    """

    def __init__(self, state: TrainState, every: int, left_out: LeftOut | None = None):
        if every < 1:
            raise ValueError(f"--log_every {every}: expected 1 step or more")
        self.state, self.every, self.left_out = state, every, left_out or LeftOut()
        self.taken: list[Taken] = []
        self.broken: Tensor | None = None  # number of steps since the last look that are not sound

    def take(
        self, terms: dict[str, Tensor], norm: Tensor, batch: dict, scale: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Step the optimiser, unless this step is not finite or one since the last look ends the stage.

        Args:
            terms: {term: detached scalar} of the loss.
            norm: of the gradient over all trained parameters.
            batch: what they are of; its "file_name" is said if it is left out or ends the stage.
            scale: the loss had in the backward pass; None without a scaler.

        Returns:
            (whether it was stepped, whether the scaler alone kept it from that), boolean scalars on the device.

        Raises:
            FloatingPointError: as `look`.
        """
        loss_finite = sum(terms.values()).isfinite()
        finite = loss_finite & norm.isfinite()
        overflowed = None if scale is None else loss_finite & ~norm.isfinite() & (scale > 1)
        sound = finite if overflowed is None else finite | overflowed
        self.taken.append(Taken(sound, terms, norm, batch.get("file_name", ["(the batch names no files)"])))
        if self.every == 1:
            if all(self.look()) and (overflowed is None or finite):
                self.state.optimizer.step()
            return finite, overflowed
        self.broken = ~sound + (0 if self.broken is None else self.broken)
        steps = finite & (self.broken <= self.left_out.more)
        step_where(self.state.optimizer, steps)
        if len(self.taken) == self.every:
            self.look()
        return steps, overflowed

    def look(self) -> list[bool]:
        """Read which of the steps since the last look were sound: the one place that waits for the device.

        Returns:
            of each of these steps whether it was.

        Raises:
            FloatingPointError: one was not and may not be left out; nothing has been stepped since.
        """
        if not self.taken:
            return []
        sound = torch.stack([step.sound for step in self.taken]).tolist()
        for step, is_sound in zip(self.taken, sound, strict=True):
            if is_sound:
                continue
            if self.left_out.more == 0:
                raise FloatingPointError(f"{self._message(step)}. {self._remedy()}")
            self.left_out.more -= 1
            self.left_out.warn(
                f"{self._message(step)}: the step is left out, {self.left_out.more} more may be"
            )
        self.taken, self.broken = [], None
        return sound

    def _remedy(self):
        """What may help; the weights are looked at first, because no file is to blame for theirs."""
        broken = [
            f"{key}.{name}"
            for key, module in self.state.modules.items()
            for name, value in module.state_dict().items()
            if value.is_floating_point() and not value.isfinite().all()
        ]
        if broken:
            return (
                f"Nothing was updated. The cause is no file: of the weights {', '.join(broken[:4])} was not finite "
                "before this step; start from another checkpoint, or lower the stage's learning rate"
            )
        before = "" if self.left_out.warn is None else "as many steps as may be were left out before; "
        return f"Nothing was updated; {before}look at these files, or lower the stage's learning rate"

    def _message(self, step):
        """What a user needs to find the cause."""
        values = {term: float(value) for term, value in step.terms.items()}
        what = "loss" if not sum(step.terms.values()).isfinite() else "gradient"
        if what == "gradient":
            values["gradient norm"] = float(step.norm)
        shown = ", ".join(f"{name} = {value}" for name, value in values.items())
        return (
            f"stage {self.state.name!r}, epoch {self.state.epoch}: the {what} is not finite ({shown}) for "
            f"{', '.join(map(str, step.files))}"
        )
