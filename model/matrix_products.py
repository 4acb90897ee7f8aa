"""Float32 matrix products on a CPU by the faster of two libraries: torch's own choice, or oneDNN (`--matmul auto`).

torch multiplies float32 matrices by MKL, which on processors of other makers than its own leaves half of their speed
unused; oneDNN, which torch brings too, does not. The two round differently.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from logging import Logger
from typing import NamedTuple

import torch
from torch import Tensor

MATMULS = ("default", "auto")  # values of --matmul
SMALL = (
    2**20
)  # multiplications up to which a product is left to torch: a call of oneDNN's costs some 10 us more
CLOSE = 1e-6  # relative difference (Frobenius norm) of the two libraries' products that is taken for rounding
WORTH_IT = 1.2  # times that oneDNN has to be faster
CHECKED = ((257, 1024, 1024), (257, 4096, 1024))  # rows, inner, columns: of one image in ViT-L at 224 px
TURNS = 3
_in_use: list[
    torch.library.Library
] = []  # what is registered now: torch keeps operators for the whole process


class Comparison(NamedTuple):
    """oneDNN's products against torch's: times faster, and the largest relative difference."""

    faster: float
    apart: float


@contextmanager
def matrix_products(
    which: str,
    device: torch.device | str,
    logger: Logger,
    agreed: Callable[[Comparison], Comparison] = lambda found: found,
) -> Iterator[bool]:
    """Float32 products of this process by oneDNN where `which` is "auto", they agree and it is faster.

    What was chosen and why is logged; with "default" nothing is looked at, changed or said.

    Args:
        agreed: of several processes, each with a Comparison of its own, gives all of them one: they must not round
            differently.

    Yields:
        whether they are oneDNN's.

    Raises:
        ValueError: another word.
    """
    if which not in MATMULS:
        raise ValueError(f"--matmul {which}: expected one of {', '.join(MATMULS)}")
    if which == "default":
        yield False
        return
    reason = why_not(device)
    found = None if reason else agreed(compare_products())
    if found is not None and not found.apart < CLOSE:
        reason = f"oneDNN's are {found.apart:.1e} apart from torch's, more than rounding ({CLOSE:.0e})"
    elif found is not None and found.faster < WORTH_IT:
        reason = (
            f"oneDNN's are {found.faster:.2f} times as fast as torch's, {WORTH_IT} is the least that counts"
        )
    if reason:
        logger.info(f"--matmul auto: torch's own matrix products: {reason}")
        yield False
        return
    logger.info(
        f"--matmul auto: matrix products by oneDNN, {found.faster:.2f} times as fast as torch's and "
        f"{found.apart:.1e} apart from them"
    )
    with onednn_products():
        yield True


def why_not(device: torch.device | str) -> str | None:
    """Why products cannot be oneDNN's, or None."""
    if torch.device(device).type != "cpu":
        return f"the device is {torch.device(device).type}, oneDNN is for CPUs"
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return "this torch was built without oneDNN"
    return None


def compare_products() -> Comparison:
    """Compare the products of a linear layer's forward and backward pass, of random matrices in turn."""
    generator, seconds, apart = torch.Generator().manual_seed(0), {"torch": 0.0, "oneDNN": 0.0}, 0.0
    draw = partial(torch.randn, generator=generator)
    for rows, inner, columns in CHECKED:
        x, weight, gradient = draw(rows, inner), draw(columns, inner), draw(rows, columns)
        for a, b in ((x, weight.T), (gradient, weight), (gradient.T, x)):
            ways = {"torch": partial(torch.mm, a, b), "oneDNN": partial(product, a, b)}
            results, least = {}, dict.fromkeys(ways, float("inf"))
            for _ in range(TURNS):
                for name, multiply in ways.items():
                    results[name], needed = timed(multiply)
                    least[name] = min(least[name], needed)
            seconds = {name: seconds[name] + least[name] for name in ways}
            difference = (results["oneDNN"] - results["torch"]).norm() / results["torch"].norm()
            apart = max(apart, float(difference))
    return Comparison(seconds["torch"] / seconds["oneDNN"], apart)


def timed(function: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """(its result, processor seconds, which a busy machine changes less than the clock's)"""
    begin = time.process_time()
    return function(), time.process_time() - begin


@contextmanager
def onednn_products() -> Iterator[None]:
    """Every float32 product of two matrices on the CPU by oneDNN, in forward and backward passes; then as before.

    The two operators that all linear layers end in, `aten::mm` and `aten::addmm`, get another kernel for the whole
    process. What torch.compile makes of them goes past it.
    """
    library = torch.library.Library("aten", "IMPL")
    library.impl("mm", mm, "CPU")
    library.impl("addmm", addmm, "CPU")
    _in_use.append(library)
    try:
        yield
    finally:
        _in_use.remove(library)
        library._destroy()


def by_onednn() -> bool:
    """Whether products are oneDNN's now."""
    return bool(_in_use)


def mm(a: Tensor, b: Tensor) -> Tensor:
    """[m, k] @ [k, n] -> [m, n]"""
    if is_for_onednn(a, b):
        return product(a, b)
    return torch.ops.aten.mm.out(a, b, out=a.new_empty(a.shape[0], b.shape[1]))


def addmm(bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """beta * bias + alpha * [m, k] @ [k, n] -> [m, n]"""
    if is_for_onednn(a, b) and bias.shape == b.shape[1:] and alpha == beta == 1:
        return product(a, b, bias)
    out = a.new_empty(a.shape[0], b.shape[1])
    return torch.ops.aten.addmm.out(bias, a, b, beta=beta, alpha=alpha, out=out)


def is_for_onednn(a: Tensor, b: Tensor) -> bool:
    """Whether the product of [m, k] and [k, n] is one of float32 and large enough."""
    sizes = a.shape[0] * a.shape[1] * b.shape[1]
    return a.dtype == b.dtype == torch.float32 and sizes > SMALL and a.shape[1] == b.shape[0]


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """[m, k] @ [k, n] (+ bias [n]) -> [m, n] by oneDNN."""
    return torch.ops.mkldnn._linear_pointwise(dense(a), dense(b).t(), bias, "none", [], "")


def dense(matrix: Tensor) -> Tensor:
    """A matrix that lies in one piece, as it is or transposed; a copy of one that is part of a larger one.

    oneDNN multiplies parts, such as a head's share of all queries, by its reference loops: some 800 times slower.
    """
    is_whole = matrix.is_contiguous() or matrix.t().is_contiguous()
    return matrix if is_whole else matrix.contiguous()
