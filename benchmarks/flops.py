"""FLOPs, counted while a computation runs; on the meta device nothing is computed."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


@contextmanager
def counter() -> Iterator[FlopCounterMode]:
    """Counts the FLOPs of matrix products inside; attention as two products, as not every fused kernel is known."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False) as counting, sdpa_kernel(SDPBackend.MATH):
            yield counting
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def flops_of(once: Callable[[], object]) -> int:
    """FLOPs of a call."""
    with counter() as counting:
        once()
    return counting.get_total_flops()


def flops_of_step(loss_of: Callable[[], Tensor], parameters: Iterable[Tensor]) -> int:
    """FLOPs of a loss and of its gradient to those parameters that want one."""
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    return flops_of(lambda: torch.autograd.grad(loss_of(), wanted, allow_unused=True))
