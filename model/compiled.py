"""`--compile`: the parts of a step that torch.compile takes whole, each a region without a graph break.

Regions are the blocks of both towers and of the surgery model (one graph serves all blocks of a tower), the adapters
between them, the projections behind them, and the losses. What lies between regions stays eager: cross-attention, whose
dropout would draw other numbers, and the choice of which rows attend to what.
"""

import sysconfig
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

BACKEND = "inductor"
# Shapes, types and gradients that one region may be compiled for: text batches change their size, all towers share one.
VARIANTS = 64


def region(function: Callable) -> Callable:
    """The function, compiled when it is called; a graph break in it is an error."""
    return torch.compile(function, fullgraph=True, backend=BACKEND)


def compile_blocks(*towers: nn.Module) -> None:
    """Compile the residual blocks of some towers (with `resblocks`) in place; names and weights stay."""
    torch._dynamo.config.recompile_limit = max(VARIANTS, torch._dynamo.config.recompile_limit)
    for tower in towers:
        for block in tower.resblocks:
            block.compile(fullgraph=True, backend=BACKEND)


def compile_adapters(model: nn.Module) -> None:
    """Compile what a model.adapter.AdaptedCLIP computes between and behind the blocks."""
    model._mix, model.embed_levels = region(model._mix), region(model.embed_levels)


def check_compiler(device: torch.device | str) -> None:
    """Refuse `--compile` where torch has nothing to compile with.

    Raises:
        RuntimeError: what is missing, and what helps.
    """
    missing = missing_compiler(torch.device(device).type)
    if missing:
        raise RuntimeError(f"--compile: {missing}, or leave the flag away")


def missing_compiler(kind: str) -> str | None:
    """What torch.compile lacks on a "cpu" or "cuda" device, with a remedy, or None."""
    if not torch._dynamo.is_dynamo_supported():
        return "torch.compile does not know this version of Python; use another"
    if kind == "cuda":
        from torch.utils._triton import has_triton

        return None if has_triton() else "triton is missing or does not know this GPU; pip install triton"
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception as error:  # torch has a class of its own for each platform
        return f"there is no C++ compiler ({type(error).__name__}); install g++, or set CXX to one"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        return "Python's headers (Python.h) are missing; install python3-dev"
    return None
