"""Tensors that can be made again, kept on disk: bounded, shared by processes, never half written or silently wrong."""

import json
import os
import zlib
from collections.abc import Iterator
from logging import Logger
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from files.atomic import CannotWrite, failures_explained, replacing, sweep
from files.logs import quiet_logger
from files.tensors import UNREADABLE, reading_failure

GB = 10**9  # bytes
RECOUNT = 0.05  # share of the limit a process writes until it looks at what others wrote
NAMED = 5  # damaged entries a process names


class TensorCache:
    """Entries {name: tensor} by key, each a safetensors file that is mapped into memory when it is read.

    Several processes may share the folder: an entry is written under another name and then renamed, so that it is there
    whole or not at all, and two that write one key write the same. Nothing is ever deleted but what is damaged: a cache
    that is full takes no more. A process counts the others' entries now and then; each may exceed the limit by
    RECOUNT of it.

    Args:
        folder: made if it is missing.
        limit_gb: 10^9 bytes its entries may have together.
        name: the flag that names the folder, for messages.

    Raises:
        ValueError: the limit is not above 0.
        OSError: the folder cannot be made.
    """

    def __init__(
        self, folder: Path | str, limit_gb: float, name: str = "cache", logger: Logger | None = None
    ):
        if not limit_gb > 0:
            raise ValueError(
                f"--{name}_gb {limit_gb}: expected more than 0; leave --{name} away to keep nothing"
            )
        self.folder, self.limit, self.name = Path(folder), limit_gb * GB, name
        self.logger = logger or quiet_logger()
        with failures_explained(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self.closed = False  # full, or cannot be written
        self.damaged: set[str] = set()
        self.bytes, self._since_count = self._count(), 0

    def path(self, key: str) -> Path:
        """Where a key's entry lies; a folder holds 1/256 of them."""
        return self.folder / key[:2] / f"{key}.safetensors"

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The entry of a key (hexadecimal), mapped and not to be written to; None if there is none.

        One that is damaged counts as none and is named in the log; the next `put` replaces it.
        """
        path = self.path(key)
        try:
            with safe_open(path, framework="pt") as file:
                said = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except FileNotFoundError:
            return None
        except UNREADABLE as error:
            return self._none_of(path, reading_failure(error))
        if said.get("key") != key:
            return self._none_of(path, "it is the entry of another key")
        if said.get("checksums") != checksums(tensors):
            return self._none_of(path, "its checksum differs")
        return tensors

    def put(self, key: str, tensors: dict[str, Tensor]) -> bool:
        """Keep an entry (on the CPU), unless the cache is full or cannot be written; whether it was kept."""
        if self.closed:
            return False
        tensors = {name: value.contiguous() for name, value in tensors.items()}
        content = save(tensors, {"key": key, "checksums": checksums(tensors)})
        if self._since_count > RECOUNT * self.limit or self.bytes + len(content) > self.limit:
            self.bytes, self._since_count = self._count(), 0
        if self.bytes + len(content) > self.limit:
            self._close(
                f"is full ({self.bytes / GB:.2f} of {self.limit / GB:g} GB): what it lacks is computed each time; "
                f"raise --{self.name}_gb, or delete the folder if it holds other backbones or pictures"
            )
            return False
        path = self.path(key)
        try:
            # After a power cut the file may be damaged, which its next reader sees.
            with replacing(path, len(content), durable=False) as file:
                file.write(content)
        except CannotWrite as error:
            self._close(f"takes no more entries: {str(error).partition('. Make room')[0]}")
            return False
        self.damaged.discard(key)
        self.bytes += len(content)
        self._since_count += len(content)
        return True

    def _none_of(self, path: Path, reason: str) -> None:
        key = path.stem
        if key not in self.damaged and len(self.damaged) < NAMED:
            more = "; further ones are not named" if len(self.damaged) == NAMED - 1 else ""
            self.logger.warning(
                f"--{self.name}: {path} is damaged ({reason}); it is computed again and replaced{more}"
            )
        self.damaged.add(key)

    def _close(self, reason: str) -> None:
        self.closed = True
        self.logger.warning(f"--{self.name}: {self.folder} {reason}")

    def _count(self) -> int:
        """Bytes of all entries; what killed processes left unfinished is deleted."""
        total = 0
        for shard in subfolders(self.folder):
            sweep(shard)
            with os.scandir(shard) as entries:
                total += sum(size_of(entry) for entry in entries if entry.name.endswith(".safetensors"))
        return total


def subfolders(folder: Path) -> Iterator[str]:
    """Paths of a folder's own folders of two letters."""
    with os.scandir(folder) as entries:
        yield from (entry.path for entry in entries if len(entry.name) == 2 and entry.is_dir())


def size_of(entry: os.DirEntry) -> int:
    """Bytes of a file; 0 if another process took it away meanwhile."""
    try:
        return entry.stat().st_size
    except FileNotFoundError:
        return 0


def checksums(tensors: dict[str, Tensor]) -> str:
    """Type, shape and CRC-32 of every tensor, as text."""
    return json.dumps(
        {
            name: [str(value.dtype), list(value.shape), zlib.crc32(bytes_of(value))]
            for name, value in sorted(tensors.items())
        }
    )


def bytes_of(tensor: Tensor) -> memoryview:
    """A contiguous CPU tensor's bytes, not copied."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())
