"""The weights of a TorchScript archive, read without running the program it is.

`torch.jit.load` compiles an archive's code and runs the `__setstate__` of its classes. Here its data.pkl is a
description alone: objects of its classes become inert holders of their attributes, tensors are read from their records
with checksums, and code is looked at for nothing but the names of parameters and buffers.
"""

import io
import math
import pickle
import pickletools
import re
import zipfile
from collections import OrderedDict
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor

DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
OPCODES = frozenset(  # what torch's writer uses; none of them but GLOBAL, REDUCE, NEWOBJ and BUILD can call anything
    "PROTO STOP GLOBAL REDUCE NEWOBJ BUILD BINPERSID MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT "
    "BINUNICODE SHORT_BINUNICODE BINSTRING SHORT_BINSTRING EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND "
    "APPENDS EMPTY_DICT SETITEM SETITEMS BINPUT LONG_BINPUT BINGET LONG_BINGET POP".split()
)
LARGEST_TEXT = 64 << 20  # bytes of data.pkl or of one source file; OpenAI's are below 1 MB
MOST_MODULES = 100_000
LISTS = frozenset(f"build_{kind}list" for kind in ("int", "bool", "double", "tensor"))


class Holder:
    """An object of a class of the archive: the state it was written with, and nothing that could run."""

    name = ""  # the class in the archive
    state: Any = None

    def __setstate__(self, state):
        self.state = state


class Weight(NamedTuple):
    """A tensor as data.pkl describes it; `record` is (dtype, key, number of values)."""

    record: tuple
    offset: int
    size: tuple
    stride: tuple


class Reader(pickle.Unpickler):
    """Reads a data.pkl whose opcodes were checked; what it may call is made anew, so that nothing it changes stays."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return type("Holder", (Holder,), {"name": f"{module}.{name}"})
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda record, offset, size, stride, *_: Weight(record, offset, size, stride)
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if module == "torch" and name == "device":
            return str
        if module == "torch.jit._pickle" and name in LISTS:
            return list
        if (module, name) == ("torch.jit._pickle", "restore_type_tag"):
            return lambda value, _: value
        raise ValueError(f"it refers to {module}.{name}, which is no part of a module's weights")

    def persistent_load(self, pid: Any) -> tuple:
        match pid:
            case ("storage", torch.dtype() as dtype, str(key), _, int(count)) if re.fullmatch(r"\d+", key):
                return dtype, key, count
        raise ValueError(f"it refers to {pid!r:.60}, which is no tensor record")


class Archive:
    """An open archive: its tensor records, each read once, and its source files."""

    def __init__(self, file: IO[bytes]):
        self.zip = zipfile.ZipFile(file)
        self.names = self.zip.namelist()
        self.top = self.names[0].partition("/")[0] if self.names else ""
        self.storages: dict[str, bytearray] = {}
        self.sources: dict[str, str] = {}
        if len(set(self.names)) != len(self.names):
            raise ValueError("it has two members of one name")

    def text(self, name: str) -> bytes:
        """A member that is small in every honest archive."""
        size = self.zip.getinfo(f"{self.top}/{name}").file_size
        if size > LARGEST_TEXT:
            raise ValueError(f"{name} has {size} bytes")
        return self.zip.read(f"{self.top}/{name}")

    def tensor(self, weight: Weight) -> Tensor:
        """A described tensor as a view of its record, whose checksum zipfile compares.

        Raises:
            ValueError: it reaches beyond the record.
        """
        dtype, key, count = weight.record
        numbers = (weight.offset, *weight.size, *weight.stride)
        if not all(type(number) is int and number >= 0 for number in (count, *numbers)):
            raise ValueError(f"a tensor of size {weight.size!r:.60} and strides {weight.stride!r:.60}")
        if key not in self.storages:
            self.storages[key] = bytearray(self.zip.read(f"{self.top}/data/{key}"))
        data, length = self.storages[key], math.prod(weight.size)
        if len(data) != count * dtype.itemsize:
            raise ValueError(f"record data/{key} has {len(data)} bytes, not {count} values of {dtype}")
        steps = zip(weight.size, weight.stride, strict=True)
        if length > count or (length and weight.offset + sum((n - 1) * step for n, step in steps) >= count):
            raise ValueError(
                f"a tensor of size {weight.size} at {weight.offset} in a record of {count} values"
            )
        if not length:
            return torch.empty(weight.size, dtype=dtype)
        return torch.frombuffer(data, dtype=dtype).as_strided(weight.size, weight.stride, weight.offset)

    def declared(self, class_name: str) -> set[str] | None:
        """Names of a class's parameters and buffers, by its source; None where the archive is too old to say."""
        module, _, name = class_name.rpartition(".")
        member = f"code/{module.replace('.', '/')}.py"
        if member not in self.sources:
            self.sources[member] = self.text(member).decode()
        _, found, rest = self.sources[member].partition(f"class {name}(Module):\n")
        if not found:
            raise ValueError(f"{member} has no class {name}")
        body = rest.partition("\nclass ")[0]
        lists = [
            re.search(rf"^  {kind} = \[(.*)\]$", body, re.MULTILINE)
            for kind in ("__parameters__", "__buffers__")
        ]
        return (
            {name for found in lists for name in re.findall(r'"([^"]+)"', found[1])} if all(lists) else None
        )


def is_torchscript(file: IO[bytes]) -> bool:
    """Whether an open file is a TorchScript archive; False where it is no zip file."""
    file.seek(0)
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(name.partition("/")[2] == "constants.pkl" for name in archive.namelist())


def read_torchscript(file: IO[bytes]) -> dict[str, Tensor]:
    """The state dict of an open TorchScript archive, on the CPU in the precision it is stored in.

    Raises:
        One of files.tensors.UNREADABLE: it is damaged, or its data is more than a description of weights.
    """
    file.seek(0)
    archive = Archive(file)
    if f"{archive.top}/byteorder" in archive.names and archive.text("byteorder") != b"little":
        raise ValueError("it was written on a big-endian machine")
    data = archive.text("data.pkl")
    check_opcodes(data)
    module = Reader(io.BytesIO(data)).load()
    if not isinstance(module, Holder):
        raise ValueError(f"it holds {type(module).__name__}, no module")
    return {name: archive.tensor(weight) for name, weight in weights_of(module, archive).items()}


def check_opcodes(data: bytes) -> None:
    """Raises ValueError for opcodes that torch's writer does not use, or positions that would fill the memory."""
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name not in OPCODES:
            raise ValueError(f"its data.pkl uses {opcode.name}")
        if opcode.name == "LONG_BINPUT" and argument > len(data):
            raise ValueError(f"its data.pkl stores at {argument}")


def weights_of(module: Holder, archive: Archive) -> dict[str, Weight]:
    """{name: described tensor} of a module's parameters and buffers and those of its children."""
    found, waiting = {}, [("", module)]
    for _ in range(MOST_MODULES):
        if not waiting:
            return found
        prefix, holder = waiting.pop()
        if not isinstance(holder.state, dict):
            raise ValueError(
                f"its class {holder.name} packs its values by code of its own (__getstate__), which is not run"
            )
        declared = archive.declared(holder.name)
        for name, value in holder.state.items():
            if isinstance(value, Weight) and (declared is None or name in declared):
                found[f"{prefix}{name}"] = value
            elif isinstance(value, Holder):
                waiting.append((f"{prefix}{name}.", value))
    raise ValueError(f"it has more than {MOST_MODULES} modules")
