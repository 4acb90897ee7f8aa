"""An optimiser step that the device takes or leaves by itself, and how many of a run may be left out."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MOST_LEFT_OUT = 10  # steps that a run may leave out with --on_nan skip


@dataclass
class LeftOut:
    """Steps a run leaves out because they are not finite: how many more it may, and who is told of each.

    Without somebody to tell (`--on_nan stop`) there are none.
    """

    more: int = 0
    warn: Callable[[str], None] | None = None

    def before(self, history: list[dict[str, Any]]) -> None:
        """Count those of epochs that are done, `history` of TrainState."""
        self.more = max(0, self.more - sum(entry.get("steps_left_out", 0) for entry in history))


@torch.no_grad()
def step_where(optimizer: torch.optim.Optimizer, sound: Tensor) -> None:
    """`optimizer.step()` where `sound`, a boolean scalar on the device, is true; else parameters and state stay.

    Any optimiser is guarded, at the price of a copy of what it moves (for Adam three times the trained parameters) and
    of two small kernels per tensor. Step counters that an optimiser keeps on the CPU count every call. A fused Adam
    takes or leaves its step by itself, without a copy, and counts those it takes.
    """
    if all(group.get("fused") for group in optimizer.param_groups):
        step_fused_where(optimizer, sound)
        return
    before = {key: value.clone() for key, value in moving(optimizer, sound.device)}
    optimizer.step()
    for key, now in moving(optimizer, sound.device):
        # A state that this step has made starts at zero, as Adam's moments do.
        old = before.get(key)
        torch.where(sound, now, torch.zeros_like(now) if old is None else old, out=now)


def step_fused_where(optimizer: torch.optim.Optimizer, sound: Tensor) -> None:
    """`step_where` of a fused Adam, by the two attributes through which torch.amp's GradScaler tells it to leave out a
    step: the gradients' scale (none) and whether they are infinite."""
    optimizer.grad_scale, optimizer.found_inf = None, (~sound).float()
    try:
        optimizer.step()
    finally:
        del optimizer.grad_scale, optimizer.found_inf


def moving(optimizer: torch.optim.Optimizer, device: torch.device) -> Iterator[tuple[tuple, Tensor]]:
    """((parameter's number, name in the state), tensor) of all a step may change on a device."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, parameter in enumerate(parameters):
        yield (number, "parameter"), parameter
        for name, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor) and value.device == device:
                yield (number, name), value
