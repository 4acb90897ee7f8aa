"""Nothing steps on a loss or gradient that is not finite, and no step waits for the device to find out."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class StepGuard:
    """Keeps losses and norms on the device until they are asked for; from a non-finite one on, nothing moves."""

    def __init__(self, parameters: Sequence[torch.nn.Parameter]):
        self.parameters = parameters
        self.is_sound = torch.ones((), dtype=torch.bool, device=parameters[0].device)
        self.seen = []  # [loss, gradient norm] of each step, on the device

    @torch.no_grad()
    def step(self, optimizer: torch.optim.Optimizer, loss: Tensor, norm: Tensor) -> None:
        """`optimizer.step()`, taken back on the device where a loss or norm so far was not finite.

        Args:
            loss, norm: scalars on the parameters' device.
        """
        self.is_sound = self.is_sound & loss.isfinite() & norm.isfinite()
        before = [parameter.clone() for parameter in self.parameters]
        optimizer.step()
        for parameter, old in zip(self.parameters, before, strict=True):
            parameter.copy_(torch.where(self.is_sound, parameter, old))
        self.seen.append(torch.stack((loss.detach(), norm.to(loss.dtype))))

    def read(self, last_step: int) -> list[list[float]]:
        """[[loss, gradient norm]] of the steps since `clear`, up to `last_step`; this waits for the device.

        Raises:
            FloatingPointError: one of them is not finite.
        """
        values = torch.stack(self.seen).tolist()
        for step, (loss, norm) in enumerate(values, last_step - len(values) + 1):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise FloatingPointError(
                    f"step {step}: loss {loss}, gradient norm {norm}; lower --lr, or train in float32. "
                    "No parameter has moved since"
                )
        return values

    def clear(self) -> None:
        """Forget the steps that were read."""
        self.seen = []
