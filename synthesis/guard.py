"""Nothing steps on a loss or gradient that is not finite, and no step waits for the device to find out."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from run_folder.guarded_step import LeftOut, step_where


class StepGuard:
    """Keeps losses and norms on the device until they are asked for; a step that is not finite moves nothing.

    Nor does any step behind it, unless `left_out` lets the run go on.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter], left_out: LeftOut | None = None):
        self.parameters, self.left_out = parameters, left_out or LeftOut()
        self.broken = torch.zeros(
            (), dtype=torch.int64, device=parameters[0].device
        )  # steps since the last read
        self.seen = []  # [loss, gradient norm] of each step, on the device
        self.names: list[Sequence[str]] = []  # of each step's triptychs
        self.told = 0  # of the steps in `seen`, those that were read before

    @torch.no_grad()
    def step(
        self, optimizer: torch.optim.Optimizer, loss: Tensor, norm: Tensor, names: Sequence[str] = ()
    ) -> None:
        """`optimizer.step()`, taken back on the device where a loss or norm is not finite.

        Args:
            loss, norm: scalars on the parameters' device.
            names: of the step's triptychs.
        """
        finite = loss.isfinite() & norm.isfinite()
        self.broken = self.broken + ~finite
        sound = finite & (self.broken <= self.left_out.more)
        if self.left_out.warn is None:
            # The first broken step ends the run without a checkpoint, so the optimiser's state may go with it.
            before = [parameter.clone() for parameter in self.parameters]
            optimizer.step()
            for parameter, old in zip(self.parameters, before, strict=True):
                parameter.copy_(torch.where(sound, parameter, old))
        elif "d" not in optimizer.param_groups[0]:
            step_where(optimizer, sound)
        elif bool(sound):  # Prodigy reads its step size back in every step, so it may as well be asked here
            optimizer.step()
        self.seen.append(torch.stack((loss.detach(), norm.to(loss.dtype))))
        self.names.append(names)

    def read(self, last_step: int) -> list[list[float]]:
        """[[loss, gradient norm]] of the steps since `clear`, up to `last_step`; this waits for the device.

        Those that were left out are not among them.

        Raises:
            FloatingPointError: one of them is not finite and may not be left out.
        """
        values = torch.stack(self.seen).tolist()
        first, finite = last_step - len(values) + 1, []
        for place, (loss, norm) in enumerate(values):
            if math.isfinite(loss) and math.isfinite(norm):
                finite.append([loss, norm])
            elif place >= self.told:
                self._leave_out(first + place, loss, norm, self.names[place])
        self.told = len(values)
        self.broken.zero_()
        return finite

    def _leave_out(self, step, loss, norm, names):
        """Count and say a step that is not finite, or end the run."""
        values = f"loss {loss}, gradient norm {norm}"
        said = f"step {step}: {values}, not finite, of {', '.join(names) or 'unnamed triptychs'}"
        if self.left_out.more == 0:
            raise FloatingPointError(
                f"{said}; lower --lr, or train in float32, or look at these files. No parameter has moved since"
            )
        self.left_out.more -= 1
        self.left_out.warn(f"{said}: the step is left out, {self.left_out.more} more may be")

    def clear(self) -> None:
        """Forget the steps that were read."""
        self.seen, self.names, self.told = [], [], 0
