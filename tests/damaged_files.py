"""Small checkpoints and archives, and ways to damage or poison them, for the tests of readers."""

import io
import pickle
import pickletools
import random
import zipfile

import torch
from torch import nn

CONTENT = {
    "epoch": 3,
    "text_adapter": {"0.fc.0.weight": torch.arange(6.0).reshape(2, 3) + 0.5},
    "settings": {"lr": 0.1, "name": "x"},
}


def is_content(found):
    """Whether what was read is CONTENT, to the last bit."""
    plain = {key: value for key, value in CONTENT.items() if key != "text_adapter"}
    return (
        {key: value for key, value in found.items() if key != "text_adapter"} == plain
        and list(found["text_adapter"]) == ["0.fc.0.weight"]
        and torch.equal(found["text_adapter"]["0.fc.0.weight"], CONTENT["text_adapter"]["0.fc.0.weight"])
    )


def flipped(data, bit):
    """Bytes with one other bit."""
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << (bit % 8)
    return bytes(changed)


def mutated(data, seed):
    """Bytes damaged in one of the ways disks, networks and editors have, and which way."""
    draw = random.Random(seed)
    changed, at = bytearray(data), draw.randrange(len(data))
    length = draw.randrange(1, 64)
    way = draw.choice(
        ["bits", "zeros", "noise", "cut", "end cut", "grown", "swapped", "repeated", "text mode"]
    )
    if way == "bits":
        for _ in range(draw.randrange(2, 20)):
            changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif way == "zeros":
        changed[at : at + length] = bytes(len(changed[at : at + length]))
    elif way == "noise":
        changed[at : at + length] = draw.randbytes(len(changed[at : at + length]))
    elif way == "cut":
        del changed[at : at + length]
    elif way == "end cut":
        del changed[at:]
    elif way == "grown":
        changed[at:at] = draw.randbytes(length)
    elif way == "swapped":
        half = len(data) // 2
        changed[:half], changed[half:] = changed[half : 2 * half], changed[:half]
    elif way == "repeated":
        changed[at : at + length] = changed[:length]
    else:
        changed = changed.replace(b"\n", b"\r\n")
    return bytes(changed), way


def member_marked_as_directory(data):
    """An archive whose first tensor record has the directory bit in its central entry."""
    at = data.rindex(b"PK\x01\x02", 0, data.rindex(b"/data/0"))
    return data[: at + 38] + bytes([data[at + 38] | 0x10]) + data[at + 39 :]


def rewritten(data, change, compression=zipfile.ZIP_STORED):
    """A zip file with its members changed: `change` {name: bytes} -> {name: bytes}; checksums are right."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = change({name: archive.read(name) for name in archive.namelist()})
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return written.getvalue()


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.proj = nn.Parameter(torch.randn(4, 2))
        self.register_buffer("count", torch.tensor(5))
        self.constant = torch.ones(2)  # no parameter and no buffer: not in the state dict
        self.sizes = [1, 2]
        self.names = {"a": 1.5}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x) @ self.proj + self.constant * self.names["a"] * self.sizes[0]


class Tower(nn.Module):
    """Nested modules, shared tensors, half precision, an integer buffer: a little CLIP as OpenAI saved theirs."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.visual = nn.Sequential(nn.Conv2d(3, 4, 2, bias=False), nn.GELU())
        self.tied = nn.Linear(4, 4)
        self.tied_too = self.tied
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.tied_too(self.tied(self.visual(x).flatten(2).transpose(1, 2)))
        for block in self.blocks:
            x = torch.cat([block(x), block(x)], -1)
        return x * self.logit_scale


class Trap(nn.Module):
    """A module whose archive writes the file `where` as soon as torch.jit.load reads it."""

    def __init__(self, where: str):
        super().__init__()
        self.where = where
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight

    @torch.jit.export
    def __getstate__(self):
        return (self.where, self.weight, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[str, torch.Tensor, bool]):
        self.where = state[0]
        self.weight = state[1]
        self.training = state[2]
        torch.save(state[1], self.where)


class WithTrap(nn.Module):
    def __init__(self, where: str):
        super().__init__()
        self.trap = Trap(where)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.trap(x)


CALLS = [  # what a pickle can be made to call; the argument is a path or a command that would leave a file
    ("builtins", "open", "({path}, 'w')"),
    ("io", "open", "({path}, 'w')"),
    ("os", "system", "({touch},)"),
    ("posix", "system", "({touch},)"),
    ("os", "mkdir", "({path},)"),
    ("subprocess", "getoutput", "({touch},)"),
    ("subprocess", "check_output", "(['touch', {path}],)"),
    ("builtins", "exec", "({code},)"),
    ("builtins", "eval", "({code},)"),
    ("builtins", "__import__", "('os',)"),
    ("pathlib", "Path", "({path},)"),
    ("runpy", "run_path", "({path},)"),
    ("importlib", "import_module", "('antigravity',)"),
    ("torch", "save", "(1, {path})"),
    ("torch", "load", "({path},)"),
    ("torch.jit", "load", "({path},)"),
    ("torch.hub", "load_state_dict_from_url", "('file:' + {path},)"),
    ("torch.storage", "_load_from_bytes", "(b'',)"),
    ("torch._utils", "_rebuild_parameter_with_state", "(1, 2, 3, 4)"),
    ("numpy", "load", "({path},)"),
    ("numpy", "savetxt", "({path}, [1])"),
    ("shutil", "copyfile", "('/etc/hostname', {path})"),
    ("webbrowser", "open", "({path},)"),
    ("operator", "attrgetter", "('system',)"),
    ("functools", "partial", "(print,)"),
]
FRAMES = ["REDUCE", "NEWOBJ", "INST", "OBJ", "BUILD", "state", "list item", "dict key", "STACK_GLOBAL", "EXT"]


def payloads(path):
    """(name, pickle) of CALLS in every frame of FRAMES; run by pickle.load they would leave `path` or import code."""
    texts = {
        "path": repr(str(path)),
        "touch": repr(f"touch {path}"),
        "code": repr(f"open({str(path)!r}, 'w')"),
    }
    for module, name, pattern in CALLS:
        arguments = eval(pattern.format(**texts))  # a literal of this file
        for frame in FRAMES:
            yield f"{module}.{name} {frame}", payload(module, name, arguments, frame)


def payload(module, name, arguments, frame):
    """One pickle of protocol 2 (4 for STACK_GLOBAL) that calls module.name(*arguments)."""
    called = f"c{module}\n{name}\n".encode()
    values = body(arguments)
    call = called + values + b"R"
    match frame:
        case "REDUCE":
            inner = call
        case "NEWOBJ":
            inner = called + values + b"\x81"
        case "INST":
            inner = b"(" + b"".join(body(one) for one in arguments) + f"i{module}\n{name}\n".encode()
        case "OBJ":
            inner = b"(" + called + b"".join(body(one) for one in arguments) + b"o"
        case "BUILD":
            inner = b"ccollections\nOrderedDict\n)R" + b"}" + body("x") + call + b"sb"
        case "state":
            inner = called + b"}" + body("__setstate__") + called + b"sb"
        case "list item":
            inner = b"](" + call + b"e"
        case "dict key":
            inner = b"}(" + call + body(1) + b"u"
        case "STACK_GLOBAL":
            inner = body(module) + body(name) + b"\x93" + values + b"R"
        case "EXT":
            inner = b"\x82\x01" + values + b"R"
    return b"\x80\x04" + inner + b"." if frame == "STACK_GLOBAL" else b"\x80\x02" + inner + b"."


def body(value):
    """The opcodes that push a plain value."""
    data = pickletools.optimize(pickle.dumps(value, 2))
    return data[2:-1]


def torch_file(data_pkl):
    """A file of torch.save with this data.pkl."""
    written = io.BytesIO()
    torch.save({"a": torch.zeros(1)}, written)
    return rewritten(written.getvalue(), lambda members: members | {"archive/data.pkl": data_pkl})


def torchscript_file(archive, data_pkl):
    """A TorchScript archive with this data.pkl."""

    def change(members):
        (name,) = [name for name in members if name.endswith("/data.pkl")]
        return members | {name: data_pkl}

    return rewritten(archive, change)
