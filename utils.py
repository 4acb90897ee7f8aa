"""Run set-up shared by the scripts: seed, device, one logger, one lock per run folder."""

import logging
import os
import random
import sys
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from files.atomic import failures_explained

LOGGER = "aaclip"


class ConsoleHandler(logging.Handler):
    """Log lines on standard output that do not tear a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)


def setup_seed(seed: int) -> None:
    """Seed Python, NumPy and torch and choose deterministic kernels; call it before CUDA is used."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it once, when CUDA starts
    os.environ["PYTHONHASHSEED"] = str(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = (
        False  # a debugging aid that costs a pass per tensor
    )


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
    """The project's one logger, writing to the console and to `save_path`/`file_name` (appended)."""
    logger = logging.getLogger(LOGGER)
    close_logger(logger)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    path = Path(save_path) / file_name
    with failures_explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        to_file = logging.FileHandler(path, encoding="utf-8")
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    console = ConsoleHandler()
    console.setFormatter(logging.Formatter("%(message)s"))
    logger.handlers = [console, to_file]
    return logger


def close_logger(logger: logging.Logger) -> None:
    """Close and detach a logger's handlers, so that a second run in one process does not write to the first's file."""
    for handler in logger.handlers:
        handler.close()
    logger.handlers = []


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
            raise RuntimeError(
                f"another process is working in {save_path}: wait for it, or give this run its own --save_path"
            ) from error
    return lock


def on_terminal() -> bool:
    """Whether progress bars make sense: standard error is a terminal."""
    return sys.stderr.isatty()
