"""A CUDA device that is none: fake tensors have shapes, types and a device, and no values to wait for."""

from contextlib import contextmanager

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from forward_utils import upsample

FROM_NUMBERS = (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor)
INDEXING = (Tensor.__getitem__, Tensor.__setitem__)


class NoWaits(TorchFunctionMode):
    """Refuses what waits for a device although tensors without values let it pass: copies that are not asynchronous.

    What needs a value (`item`, a boolean mask) such tensors refuse themselves, as they do with two devices in one sum.

    Args:
        kind: of the device, "cuda" for fake tensors; "meta" also has a backward pass where there is no GPU.
    """

    def __init__(self, kind="cuda"):
        super().__init__()
        self.kind = kind

    def there(self, value):
        return isinstance(value, Tensor) and value.device.type == self.kind

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        name = getattr(function, "__name__", str(function))
        given = args[1] if function is Tensor.new_tensor else args[0] if args else None
        if function in FROM_NUMBERS and self.there(result) and not self.there(given):
            raise AssertionError(f"{name}: numbers of Python copied to the device")
        if function in INDEXING and self.there(args[0]) and any(map(waits_as_index, parts(args[1]))):
            raise AssertionError(f"{name}: an index {args[1]} that has to be copied to the device")
        if (
            isinstance(result, Tensor)
            and args
            and isinstance(args[0], Tensor)
            and name in ("to", "cuda", "cpu")
        ):
            if self.there(args[0]) and not self.there(result):
                raise AssertionError(f"{name}: a result read from the device")
            if self.there(result) and not self.there(args[0]) and not kwargs.get("non_blocking"):
                raise AssertionError(f"{name}: a copy to the device that is waited for")
        return result


def parts(index):
    return index if isinstance(index, tuple) else (index,)


def waits_as_index(index):
    """Lists and CPU tensors travel to the device, and a mask's size comes back from it."""
    if isinstance(index, Tensor):
        return index.device.type == "cpu" or index.dtype == torch.bool
    return isinstance(index, list | range)


@contextmanager
def fake_cuda(monkeypatch):
    """Tensors made inside are fake and may lie on "cuda"; autocast believes in it too."""
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda *_, **__: True)
    kept = upsample.__globals__["_interpolation_matrix"]
    kept.cache_clear()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        kept.cache_clear()  # a fake matrix must not be met by a real map


def built_on_cuda():
    """While open, modules are made on the fake device: `Module.to` cannot move fake parameters."""
    return torch.device("cuda")
