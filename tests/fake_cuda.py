"""A CUDA device that is none (benchmarks.fake), on which a wait is an error."""

import torch

from benchmarks import fake, waits


class NoWaits(waits.WaitCounter):
    """Refuses what waits for a CUDA device although fake tensors let it pass."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = super().__torch_function__(function, types, args, kwargs)
        if self.found:
            raise AssertionError(self.found[-1])
        return result


def fake_cuda(monkeypatch):
    """Tensors made inside are fake and may lie on "cuda"; nothing that is patched for it is left to `monkeypatch`."""
    return fake.fake_cuda()


def built_on_cuda():
    """While open, modules are made on the fake device: `Module.to` cannot move fake parameters."""
    return torch.device("cuda")
