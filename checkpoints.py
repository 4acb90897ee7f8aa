"""Checkpoint files: written atomically, loaded safely and strictly, with everything a resume needs."""

import os
import pickle
import random
import re
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import open_clip
import torch

UNREADABLE = (  # what a damaged pickle can raise inside torch's safe unpickler, beside what the readers announce
    RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError,
    zipfile.BadZipFile, pickle.UnpicklingError,
)  # fmt: skip


def save_checkpoint(path, content):
    """Write `content` so that `path` always holds a complete file, whenever the process is killed.

    Temporary file in the same folder, flush, fsync, rename, fsync of the folder.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def reading_failure(error):
    """Why a file cannot be read; of torch's text for a refused pickle only the cause, not its advice to trust it."""
    if isinstance(error, pickle.UnpicklingError):
        return str(error).rpartition("WeightsUnpickler error:")[2].strip().split(". ")[0].partition("\n")[0]
    return str(error) or type(error).__name__


def load_checkpoint(path, keys=()):
    """Read a checkpoint to the CPU; tensors and plain values only (`weights_only=True`).

    Args:
        path: the file.
        keys: names it must hold.

    Raises:
        FileNotFoundError: no such file.
        RuntimeError: the file is damaged, is no checkpoint, or lacks a key.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {path}: train first, or give the run's folder with --save_path")
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()  # torch.load does not check the checksums
            if damaged:
                raise RuntimeError(f"bad checksum in {damaged}")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        reason, size = reading_failure(error), path.stat().st_size
        raise RuntimeError(
            f"checkpoint {path} ({size} bytes) is damaged or not a checkpoint ({reason}); "
            "delete it to continue from the one before, or copy it again"
        ) from error
    missing = [key for key in keys if not isinstance(content, dict) or key not in content]
    if missing:
        found = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise RuntimeError(f"checkpoint {path} lacks {missing}; it holds {found}: give a file of the right kind")
    return content


def load_module(module, state, path):
    """Load a state dict strictly into an adapter.

    Raises:
        RuntimeError: names the keys and shapes that differ, and the flags that usually explain them.
    """
    want = module.state_dict()
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


def versions():
    """Versions of the libraries that decide a run's numbers."""
    # torch's version is an object of its own kind, which a safe load refuses
    return {"torch": str(torch.__version__), "open_clip": open_clip.__version__, "numpy": np.__version__}


def rng_state():
    """The state of every random generator, as values a safe load accepts."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [kind, keys.tolist(), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_rng(state):
    """Put every random generator back to a saved state; GPUs that are not there now are left out."""
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def numbered_checkpoints(folder, prefix="image_adapter_"):
    """[(n, path)] of `prefix`{n}.pth files in a run folder, by number."""
    found = []
    for path in Path(folder).glob(f"{prefix}*.pth"):
        match = re.fullmatch(re.escape(prefix) + r"(\d+)\.pth", path.name)
        if match:
            found.append((int(match.group(1)), path))
    return sorted(found)
