"""Checkpoints of a run: adapters loaded strictly, with everything a resume needs beside them."""

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from torch import nn

from files.tensors import load_tensors, save_tensors

PARALLEL = "module."  # what DataParallel puts before every key
save_checkpoint, load_checkpoint = save_tensors, load_tensors  # a checkpoint is a tensor file like any other


def load_modules(
    path: Path | str,
    modules: dict[str, nn.Module],
    keys: tuple | list = (),
    check: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Load a checkpoint's weights into modules, strictly.

    Args:
        modules: {checkpoint key: module}.
        keys: further names the file must hold.
        check: called with the file's content before any weight is loaded; raises where the file is of another run.

    Returns:
        the file's content.

    Raises:
        FileNotFoundError, RuntimeError: as `load_checkpoint` and `load_module`.
    """
    content = load_checkpoint(path, keys=[*modules, *keys])
    if check is not None:
        check(content)
    for key, module in modules.items():
        load_module(module, content[key], path)
    return content


def settings_in(path: Path | str, keys: tuple | list = ()) -> dict[str, Any] | None:
    """The settings a checkpoint was trained with; None in files of AA-CLIP, which carry none."""
    return load_checkpoint(path, keys=keys).get("settings")


def load_module(module: nn.Module, state: dict[str, torch.Tensor], path: Path | str) -> None:
    """Load a state dict strictly into an adapter; DataParallel's prefix, if all its keys have it, is taken off.

    Raises:
        RuntimeError: names the keys and shapes that differ, and the flags that usually explain them.
    """
    want = module.state_dict()
    if state and all(key.startswith(PARALLEL) for key in state):
        state = {key.removeprefix(PARALLEL): value for key, value in state.items()}
    problems = [f"{key} is missing" for key in want if key not in state]
    problems += [f"{key} is not expected" for key in state if key not in want]
    problems += [
        f"{key} is {tuple(state[key].shape)}, expected {tuple(want[key].shape)}"
        for key in want
        if key in state and state[key].shape != want[key].shape
    ]
    if problems:
        raise RuntimeError(
            f"checkpoint {path} was made with other adapter settings: {'; '.join(sorted(problems)[:6])}. "
            "Give the flags it was trained with (--model_name, --relu, --text_adapt_until, --image_adapt_until)"
        )
    module.load_state_dict(state)


def versions() -> dict[str, str]:
    """Versions of the libraries that decide a run's numbers."""
    # torch's version is an object of its own kind, which a safe load refuses
    return {"torch": str(torch.__version__), "open_clip": open_clip.__version__, "numpy": np.__version__}


def rng_state() -> dict[str, Any]:
    """The state of every random generator, as values a safe load accepts."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [kind, keys.tolist(), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_rng(state: dict[str, Any]) -> None:
    """Put every random generator back to a saved state; GPUs that are not there now are left out."""
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def numbered_checkpoints(folder: Path | str, prefix: str = "image_adapter_") -> list[tuple[int, Path]]:
    """[(n, path)] of `prefix`{n}.pth files in a run folder, by number."""
    found = []
    for path in Path(folder).glob(f"{prefix}*.pth"):
        match = re.fullmatch(re.escape(prefix) + r"(\d+)\.pth", path.name)
        if match:
            found.append((int(match.group(1)), path))
    return sorted(found)
