"""How often a computation waits for a GPU: CUDA tells where there is one; fake tensors show most of it where not.

The backward pass of fake CUDA tensors needs a driver, so without a GPU the loss and the optimiser are looked at, and
torch's own gradients are taken not to wait.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

FROM_NUMBERS = (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor)
INDEXING = (Tensor.__getitem__, Tensor.__setitem__)
MOVING = ("to", "cuda", "cpu")


def waits_of(once: Callable[[], Any], device: torch.device) -> int:
    """How often a call waits for its CUDA device, as CUDA's synchronisation debugging sees it."""
    torch.cuda.synchronize(device)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            once()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(one.message) for one in caught)


class WaitCounter(TorchFunctionMode):
    """Notes in `found` what waits for a CUDA device although fake tensors let it pass: copies that are waited for.

    What needs a value (`item`, a boolean mask) fake tensors refuse themselves, as they do with two devices in one sum.

    Args:
        kind: of the device, "cuda" for fake tensors; "meta" also has a backward pass where there is no GPU.
    """

    def __init__(self, kind: str = "cuda"):
        super().__init__()
        self.kind = kind
        self.found: list[str] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        wait = wait_in(function, args, kwargs, result, self.kind)
        if wait is not None:
            self.found.append(wait)
        return result


def wait_in(function: Callable, args: tuple, kwargs: dict, result: Any, kind: str = "cuda") -> str | None:
    """What a call that gave `result` waits for on a device of this kind, or None."""
    there = partial(is_on, kind)
    name = getattr(function, "__name__", str(function))
    given = args[1] if function is Tensor.new_tensor else args[0] if args else None
    if function in FROM_NUMBERS and there(result) and not there(given):
        return f"{name}: numbers of Python copied to the device"
    if function in INDEXING and there(args[0]) and any(map(_waits_as_index, _parts(args[1]))):
        return f"{name}: an index {args[1]} that has to be copied to the device"
    if not isinstance(result, Tensor) or not isinstance(given, Tensor) or name not in MOVING:
        return None
    if there(given) and not there(result):
        return f"{name}: a result read from the device"
    if there(result) and not there(given) and not kwargs.get("non_blocking"):
        return f"{name}: a copy to the device that is waited for"
    return None


def is_on(kind: str, value: Any) -> bool:
    """Whether it is a tensor on a device of this kind, or a fake one."""
    return isinstance(value, Tensor) and value.device.type == kind


def _parts(index):
    return index if isinstance(index, tuple) else (index,)


def _waits_as_index(index):
    """Lists and CPU tensors travel to the device, and a mask's size comes back from it."""
    if isinstance(index, Tensor):
        return index.device.type == "cpu" or index.dtype == torch.bool
    return isinstance(index, list | range)
