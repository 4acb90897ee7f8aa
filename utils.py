"""Run set-up shared by the scripts: seed, device, one logger, one lock per run folder."""

import logging
import os
import random
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from filelock import FileLock, Timeout
from torch import Tensor

from files.atomic import failures_explained
from files.command import Refusal
from files.logs import PROGRAM, open_logger
from files.logs import close_logger as close_logger


def setup_seed(seed: int, fast: bool = False) -> None:
    """Seed Python, NumPy and torch and choose kernels; call it before CUDA is used.

    Args:
        fast: any kernel. By default those that round alike in every run, and an operation without one is refused; only
            when it is refused does torch run the backward of its fused attention so (`warn_only` would not).
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it once, when CUDA starts
    os.environ["PYTHONHASHSEED"] = str(seed)
    seed_generators(seed)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = not fast, fast
    torch.backends.cuda.enable_cudnn_sdp(fast)  # the one fused attention without a deterministic backward
    torch.use_deterministic_algorithms(not fast)
    allow_tf32(False)  # cuDNN's convolutions would use it unasked
    torch.utils.deterministic.fill_uninitialized_memory = (
        False  # a debugging aid that costs a pass per tensor
    )


def allow_tf32(allowed: bool) -> None:
    """Whether CUDA may round the factors of float32 products and convolutions to TF32, 10 bits of mantissa."""
    # Not by torch's newer names for it, after whose use reading the older ones, as libraries do, is an error.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def seed_generators(seed: int) -> None:
    """Seed Python, NumPy and torch, and leave torch's kernels as they are."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def choose_device(name: str | None = None) -> torch.device:
    """The torch device of a run: `name` if given, else CUDA, else CPU.

    Raises:
        ValueError: torch does not know the device or cannot reach it.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name}: torch cannot use it ({error}); try cpu or cuda") from error
    return device


def get_logger(save_path: Path | str, file_name: str) -> logging.Logger:
    """The logger of a run, writing to the console and to `save_path`/`file_name` (appended)."""
    return open_logger(PROGRAM, Path(save_path) / file_name)


def lock_run(save_path: Path | str) -> FileLock:
    """Lock a run folder for this process; release with `.release()` or by ending the process.

    Raises:
        RuntimeError: another process is working in the folder.
        OSError: it cannot be written.
    """
    folder = Path(save_path)
    lock = FileLock(folder / ".lock", timeout=0)
    with failures_explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout as error:
            raise Refusal(
                f"another process is working in {save_path}: wait for it, or give this run its own --save_path"
            ) from error
    return lock


def cos_sim(a: Tensor, b: Tensor, eps: float = 1e-8) -> Tensor:
    """Cosine of every row of one tensor with every row of another: [..., n, E] and [..., m, E] -> [..., n, m].

    Args:
        eps: the least norm that is divided by; a row of zeros has cosine 0 with everything.
    """
    return F.normalize(a, dim=-1, eps=eps) @ F.normalize(b, dim=-1, eps=eps).mT


def on_terminal() -> bool:
    """Whether progress bars make sense: standard error is a terminal, and no other process draws them."""
    return sys.stderr.isatty() and os.environ.get("RANK", "0") == "0"
