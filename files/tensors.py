"""Tensor files of torch: written whole, read without running code, damage found before use."""

import pickle
import zipfile
from pathlib import Path

import torch

from files.atomic import replacing

UNREADABLE = (  # what a damaged pickle can raise inside torch's safe unpickler, beside what the readers announce
    RuntimeError,
    OSError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    zipfile.BadZipFile,
    pickle.UnpicklingError,
)


def save_tensors(path: Path | str, content: object) -> None:
    """Write `content` (tensors and plain values) so that `path` always holds a complete file."""
    with replacing(path) as file:
        torch.save(content, file)


def reading_failure(error: BaseException) -> str:
    """Why a file cannot be read; of torch's text for a refused pickle only the cause, not its advice to trust it."""
    if isinstance(error, pickle.UnpicklingError):
        return str(error).rpartition("WeightsUnpickler error:")[2].strip().split(". ")[0].partition("\n")[0]
    return str(error) or type(error).__name__


def load_tensors(path: Path | str, keys: tuple | list = ()) -> dict:
    """Read a file of `save_tensors` to the CPU; tensors and plain values only (`weights_only=True`).

    Args:
        path: the file.
        keys: names it must hold.

    Raises:
        FileNotFoundError: no such file.
        RuntimeError: the file is damaged, is no checkpoint, or lacks a key.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no checkpoint {path}: train first, or give the run's folder with --save_path"
        )
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
        raise RuntimeError(
            f"checkpoint {path} lacks {missing}; it holds {found}: give a file of the right kind"
        )
    return content
