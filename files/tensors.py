"""Tensor files of torch: written whole, read without running code, damage found before use."""

import copy
import hashlib
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from files.archive import check_tensor_archive, is_legacy
from files.atomic import BLOCK, replacing, sha256_of, unchanged
from files.command import Refusal
from files.digests import content_digests, differences, leaves

DIGESTS = "digests"  # key of a checkpoint's digests of itself
UNREADABLE = (  # what a damaged file can raise inside zipfile and torch's safe unpickler
    RuntimeError,
    OSError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    MemoryError,
    SyntaxError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    pickle.UnpicklingError,
    SafetensorError,
)


class DamagedFile(ValueError, RuntimeError):
    """A file that cannot be what it was when it was written; nothing of it was used."""


class TensorFile(dict):
    """The content of a tensor file; `sha256` of the very bytes it was read from."""

    sha256: str = ""


def save_tensors(path: Path | str, content: dict[str, Any]) -> None:
    """Write `content` (tensors and plain values) with its digests so that `path` always holds a complete file.

    Raises:
        OSError: it cannot be written; the message says what is intact and how to go on.
        TypeError: it holds something that could not be read again.
        FloatingPointError: a tensor is not finite; what was at `path` before is still there.
    """
    content = on_cpu(content)
    broken = not_finite(content)
    if broken:
        raise FloatingPointError(
            f"{path} is not written, because it would hold values that are not finite: {broken}. The training has "
            "diverged: start again from the last checkpoint with a lower learning rate"
        )
    sealed = {**content, DIGESTS: content_digests(content)}
    needed = sum(value.nbytes for _, value in leaves(content) if isinstance(value, Tensor))
    with replacing(path, needed) as file:
        torch.save(sealed, file)


def on_cpu(value: Any) -> Any:
    """Nested containers with their tensors on the CPU, moved once for digests and file; others are left as they are."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        moved = copy.copy(value)
        for key, inner in value.items():
            moved[key] = on_cpu(inner)
        return moved
    if type(value) in (list, tuple):
        return type(value)(on_cpu(inner) for inner in value)
    return value


def not_finite(content: Any) -> str:
    """Places of a content's tensors that hold NaN or infinity, with their number; "" where all are finite."""
    found = []
    for place, value in leaves(content):
        if isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex()):
            value = value.float() if value.element_size() == 1 else value  # no test of its own in 8 bits
            broken = 0 if _all_finite(value) else value.numel() - int(value.isfinite().sum())
            if broken:
                found.append(f"{place} ({broken} of {value.numel()})")
    more = f" and {len(found) - 4} tensors more" if len(found) > 4 else ""
    return ", ".join(found[:4]) + more


def _all_finite(value):
    """Whether a floating-point tensor's extremes are finite: without memory, unlike a test of every value."""
    return not value.is_complex() and value.numel() > 0 and all(map(torch.isfinite, value.aminmax()))


def reading_failure(error: BaseException) -> str:
    """Why a file cannot be read; of torch's text for a refused pickle only the cause, not its advice to trust it."""
    if isinstance(error, pickle.UnpicklingError) and "WeightsUnpickler error:" in str(error):
        return str(error).rpartition("WeightsUnpickler error:")[2].strip().split(". ")[0].partition("\n")[0]
    return str(error).partition("\n")[0] or type(error).__name__


def load_tensors(path: Path | str, keys: tuple | list = ()) -> TensorFile:
    """Read a file of `save_tensors` to the CPU; tensors and plain values only (`weights_only=True`).

    Files of AA-CLIP, which have no digests, are taken by their zip checksums.

    Args:
        path: the file.
        keys: names it must hold.

    Raises:
        FileNotFoundError: no such file.
        DamagedFile: the file is damaged or no checkpoint, or a tensor in it is not finite.
        RuntimeError: it lacks a key.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no checkpoint {path}: train first, or give the run's folder with --save_path"
        )
    with unchanged(path) as file, damage_named(f"checkpoint {path}", path, "or not a checkpoint"):
        digest = sha256_of(file)
        content = read_archive(file, path)
        if isinstance(content, dict) and DIGESTS in content:
            wrong = differences(content, content.pop(DIGESTS))
            if wrong:
                raise ValueError(
                    f"digests differ: {', '.join(wrong[:4])}; if you changed it yourself, delete its key {DIGESTS!r}"
                )
    missing = [key for key in keys if not isinstance(content, dict) or key not in content]
    if missing or not isinstance(content, dict):
        found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise Refusal(f"checkpoint {path} lacks {missing}; it holds {found}: give a file of the right kind")
    broken = not_finite(content)
    if broken:
        raise DamagedFile(
            f"checkpoint {path} holds values that are not finite: {broken}. The training had diverged when it was "
            "written, or somebody changed it; the images are not the cause. Use an earlier one: training goes on from "
            "it by itself, testing takes --checkpoint"
        )
    content = TensorFile(content)
    content.sha256 = digest
    return content


def read_archive(file: IO[bytes], path: Path | str) -> Any:
    """What an open file of torch.save holds, on the CPU, after a check of every byte; `path` for the message.

    Raises:
        ValueError: it is of torch before 1.6 (no checksums); the message has the way to convert it.
        One of UNREADABLE: it is damaged.
    """
    if is_legacy(file):
        new = Path(path).with_name(f"{Path(path).stem}_zip{Path(path).suffix}")
        raise ValueError(
            "a file of torch.save before torch 1.6, which has no checksums, so that damage would not be seen; if you "
            f'trust it, convert it: python -c "import torch; torch.save(torch.load({str(path)!r}, '
            f"map_location='cpu', weights_only=True), {str(new)!r})\""
        )
    check_tensor_archive(file)
    file.seek(0)
    return torch.load(file, map_location="cpu", weights_only=True)


def load_safetensors(path: Path | str) -> TensorFile:
    """Tensors of a .safetensors file, on the CPU, each in memory of its own.

    Its format has no checksums: compare the digest, taken of the very bytes that the tensors are made of, with one that
    was stored.

    Raises:
        One of UNREADABLE: it is damaged, or another file took its name meanwhile.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path}")
    state, digest = TensorFile(), hashlib.sha256()
    # safetensors checks the header and says what lies where; its mapped tensors are looked at for type and shape alone,
    # because a file that is written to later would change them.
    with unchanged(path, same_name=True) as file, safe_open(path, framework="pt") as described:
        digest.update(begin := file.read(8))
        digest.update(file.read(int.from_bytes(begin, "little")))
        for name in described.offset_keys():
            mapped = described.get_tensor(name)
            state[name] = torch.empty(mapped.shape, dtype=mapped.dtype)
            _fill(state[name], file, digest)
    state.sha256 = digest.hexdigest()
    return state


def _fill(tensor, file, digest):
    """The next bytes of a file as a tensor's values, each block hashed while it is still in the processor's cache."""
    values = memoryview(tensor.reshape(-1).view(torch.uint8).numpy())
    for start in range(0, len(values), BLOCK):
        block = values[start : start + BLOCK]
        if file.readinto(block) != len(block):
            raise EOFError("it ends inside a tensor")
        digest.update(block)


@contextmanager
def damage_named(what: str, path: Path | str, kind: str) -> Iterator[None]:
    """Turns every way in which reading can fail into one DamagedFile that names the file and what to do.

    Args:
        what: the file in words.  kind: what else it may be.
    """
    try:
        yield
    except UNREADABLE as error:
        raise DamagedFile(
            f"{what} ({Path(path).stat().st_size} bytes) is damaged {kind} ({reading_failure(error)}); copy it again, "
            "or use an earlier one: training goes on from it by itself, testing takes --checkpoint"
        ) from error
