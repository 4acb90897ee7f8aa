"""Float32 matrix products of ViT-L on a CPU: torch's own against oneDNN's, which `--matmul auto` chooses between.

    python -m benchmarks.matrix_products --out results/performance
    python -m benchmarks.matrix_products --quick

The two take turns in one process; the least processor seconds of several turns count. Writes matrix_products.json and
matrix_products.md into --out, if given, and prints the table.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.report import command_line, finish, machine, said, table
from files.command import run_main
from model.matrix_products import product, timed, why_not
from run_folder.flags import HelpFormatter

MODULE = "benchmarks.matrix_products"
LAYERS = {"queries, keys, values": (1024, 3072), "attention's output": (1024, 1024),
          "MLP in": (1024, 4096), "MLP out": (4096, 1024)}  # fmt: skip
PASSES = ("forward", "gradient to inputs", "gradient to weights")


class Found(NamedTuple):
    """One product: what of; rows, inner, columns; GFLOP per processor second of both ways; how far they are apart."""

    what: str
    sizes: tuple[int, int, int]
    torch: float
    onednn: float
    apart: float


def operands(rows: int, inner: int, columns: int) -> list[tuple[Tensor, Tensor]]:
    """The two factors of a linear layer's products, in the order of PASSES, as torch hands them over."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((rows, inner), (columns, inner), (rows, columns))
    x, weight, gradient = (torch.randn(shape, generator=generator) for shape in shapes)
    return [(x, weight.T), (gradient, weight), (gradient.T, x)]


def measured(what: str, a: Tensor, b: Tensor, turns: int) -> Found:
    """Both ways of one product, in turn."""
    ways, results = {"torch": partial(torch.mm, a, b), "oneDNN": partial(product, a, b)}, {}
    least = dict.fromkeys(ways, float("inf"))
    for _ in range(turns + 1):
        for name, multiply in ways.items():
            results[name], seconds = timed(multiply)
            least[name] = min(least[name], seconds)
    operations = 2 * a.shape[0] * a.shape[1] * b.shape[1] / 1e9
    apart = float((results["oneDNN"] - results["torch"]).norm() / results["torch"].norm())
    speeds = (operations / least[name] for name in ways)
    return Found(what, (*a.shape, b.shape[1]), *speeds, apart)


def markdown(result: dict, found: list[Found]) -> list[str]:
    """The table people read."""
    rows = [
        (
            *(one.what, " × ".join(map(str, one.sizes)), f"{one.torch:.0f}", f"{one.onednn:.0f}"),
            *(f"{one.onednn / one.torch:.2f}", f"{one.apart:.1e}"),
        )
        for one in found
    ]
    header = (
        "product",
        "rows × inner × columns",
        "torch GFLOP/s",
        "oneDNN GFLOP/s",
        "×",
        "relative difference",
    )
    return [
        "# Matrix products",
        "",
        f"{said(result)} Float32, per processor second.",
        "",
        *table(header, rows),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=HelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[514, 2740], help="tokens of a batch")
    parser.add_argument("--turns", type=int, default=5, help="timed turns of each product")
    parser.add_argument("--quick", action="store_true", help="seconds: few rows, two turns")
    parser.add_argument("--out", help="folder for matrix_products.json and .md")
    args = parser.parse_args(argv)
    if reason := why_not("cpu"):
        raise RuntimeError(f"there is nothing to compare: {reason}")
    if args.quick:
        args.rows, args.turns = [64], 2
    found = []
    for rows in args.rows:
        for layer, sizes in LAYERS.items():
            for name, factors in zip(PASSES, operands(rows, *sizes), strict=True):
                found.append(measured(f"{layer}, {name}", *factors, args.turns))
    result = {
        "command": command_line(MODULE, argv),
        **machine(),
        "products": [one._asdict() for one in found],
    }
    finish("matrix_products", result, markdown(result, found), args.out)


if __name__ == "__main__":
    run_main(main)
