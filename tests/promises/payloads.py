"""Weights that are programs: hostile pickles, archives and TorchScript in every place a weight file is read."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cross_attention_world import MODEL
from damaged_files import CALLS, Tower, WithTrap, payload, payloads, torch_file, torchscript_file
from semantic_fill_world import CONFIG, tiny_system, write_model_folder

from files.tensors import DamagedFile, load_tensors
from model.clip import create_model
from model.weights_file import read_state_dict
from promises.rows import Bench, promise, run
from promises.world import assert_done, make_world
from run_folder.loaded_run import load_run
from synthesis.backbone import load_backbone, load_prompts
from synthesis.weights import LORA_FILE, OPTIMISER_FILE, load_optimizer, load_weights_into, save_system

FORBIDDEN = ("antigravity", "hostile")  # modules that only a payload imports


@promise("payloads", "weights never execute code", "≥ 250 payloads")
def hostile(bench: Bench) -> Iterator[tuple[str, Callable]]:
    written = bench.folder / "written"
    os.environ["BROWSER"] = "true"  # antigravity opens one
    sys.path.insert(0, str(bench.folder))
    (bench.folder / "hostile.py").write_text(f"open({str(written)!r}, 'w')")
    archive = bench.folder / "tower.pt"
    torch.manual_seed(0)
    torch.jit.script(Tower()).save(archive)
    whole = archive.read_bytes()
    found = list(payloads(written))[:: bench.size(1, 12)]
    found += [(f"unsafe {number}", data) for number, data in enumerate(imports())]
    for name, data in found:
        for form, content in forms(whole, data).items():
            for read in (load_tensors, read_state_dict):
                yield (
                    f"{name}, {form}, {read.__name__}",
                    partial(refused, read, bench.folder / "payload.pt", content, written),
                )
    some = found[:: bench.size(10, 10)]
    yield from through_commands(bench, some, whole, written)
    yield from through_fill(bench, some, whole, written)
    yield from traps(bench, written)


def forms(whole: bytes, data: bytes) -> dict[str, bytes]:
    """{form: file} of a hostile pickle: as it is, in a file of torch.save, in a TorchScript archive."""
    return {"bare": data, "in a zip": torch_file(data), "in TorchScript": torchscript_file(whole, data)}


def imports() -> Iterator[bytes]:
    """Pickles that need no call: importing the module is the harm."""
    for module in FORBIDDEN:
        for name in ("x", "__doc__", "fly"):
            yield f"c{module}\n{name}\n.".encode()
            yield payload(module, name, (), "STACK_GLOBAL")


def refused(read: Callable, path: Path, content: bytes, written: Path) -> str:
    """Reading a hostile file is refused by its name, and nothing of it ran."""
    path.write_bytes(content)
    return refuses(partial(read, path), path.name, written)


def refuses(read: Callable[[], Any], name: str, written: Path, error: Any = DamagedFile) -> str:
    """Reading is refused by a file's name, and nothing ran."""
    try:
        read()
    except error as refusal:
        assert name in str(refusal), f"refused without its name: {refusal}"
    else:
        raise AssertionError("it was read")
    finally:
        ran = written.exists()
        written.unlink(missing_ok=True)
        imported = [module for module in FORBIDDEN if sys.modules.pop(module, None)]
        assert not ran and not imported, f"it ran: wrote {ran}, imported {imported}"
    return "refused"


def through_commands(bench: Bench, some: list, whole: bytes, written: Path) -> Iterator[tuple[str, Callable]]:
    """In a run's folder and in the backbone's place."""
    world = make_world(bench.folder / "world")
    trained = bench.folder / "run"
    assert_done(run(world.training("train.py", trained), bench.folder))
    for name, data in some:
        for form, content in forms(whole, data).items():
            for file in ("image_adapter.pth", "text_adapter.pth"):
                spoilt = partial(in_run, trained, file, content, written)
                yield f"{name}, {form}, load_run {file}", spoilt
            yield (
                f"{name}, {form}, --clip_weights",
                partial(
                    as_backbone,
                    bench.folder / ("b.pt" if form != "bare" else "b.safetensors"),
                    content,
                    written,
                ),
            )


def in_run(trained: Path, file: str, content: bytes, written: Path) -> str:
    """A run's folder with one hostile file."""
    whole = (trained / file).read_bytes()
    (trained / file).write_bytes(content)
    try:
        return refuses(lambda: load_run(trained, device="cpu"), file, written)
    finally:
        (trained / file).write_bytes(whole)


def as_backbone(path: Path, content: bytes, written: Path) -> str:
    """A hostile file as CLIP's weights."""
    path.write_bytes(content)
    create = partial(create_model, MODEL, 32, "openai", clip_weights=path)
    return refuses(create, path.name, written)


def through_fill(bench: Bench, some: list, whole: bytes, written: Path) -> Iterator[tuple[str, Callable]]:
    """In semantic fill's checkpoints and in the folder of its model."""
    system = tiny_system()
    optimizer = torch.optim.SGD(system.trainable())
    folder = save_system(bench.folder / "fill", 1, system, CONFIG, optimizer)
    model = write_model_folder(bench.folder / "model")
    for name, data in some:
        for form, content in forms(whole, data).items():
            yield (
                f"{name}, {form}, optimiser",
                partial(in_fill, folder, OPTIMISER_FILE, content, written),
            )
            yield f"{name}, {form}, LoRA", partial(in_fill, folder, LORA_FILE, content, written)
    for part in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        for name, data in some[:5]:
            yield f"{name}, {part}.bin", partial(in_model, model, part, data, written)


def in_fill(folder: Path, file: str, content: bytes, written: Path) -> str:
    """A checkpoint of semantic fill with one hostile file."""
    whole = (folder / file).read_bytes()
    (folder / file).write_bytes(content)
    system = tiny_system()

    def read():
        load_weights_into(system, folder)
        load_optimizer(torch.optim.SGD(system.trainable()), folder)

    try:
        return refuses(read, file, written)
    finally:
        (folder / file).write_bytes(whole)


def in_model(model: Path, part: str, data: bytes, written: Path) -> str:
    """A model's folder with pickled weights in place of a part's safetensors."""
    spoilt = Path(shutil.copytree(model, model.with_name("spoilt"), dirs_exist_ok=True))
    for path in (spoilt / part).glob("*.safetensors"):
        path.unlink()
    for name in ("pytorch_model.bin", "diffusion_pytorch_model.bin"):
        (spoilt / part / name).write_bytes(data)

    def read():
        load_backbone(spoilt)
        load_prompts(spoilt).encode(["a defect"])

    try:
        return refuses(read, "spoilt", written, RuntimeError)
    finally:
        shutil.rmtree(spoilt)


def traps(bench: Bench, written: Path) -> Iterator[tuple[str, Callable]]:
    """TorchScript archives whose `__setstate__` writes a file as soon as torch.jit.load reads them."""
    for number in range(bench.size(10, 2)):
        path = bench.folder / f"trap{number}.pt"
        torch.manual_seed(number)
        torch.jit.script(WithTrap(str(written))).save(path)
        yield f"trap {number}", partial(springs_not, path, written)


def springs_not(path: Path, written: Path) -> str:
    """Reading a trap may give its tensors or refuse it; it writes nothing."""
    try:
        read_state_dict(path)
    except DamagedFile:
        return "refused"
    finally:
        ran = written.exists()
        written.unlink(missing_ok=True)
        assert not ran, "it ran"
    return "read without running"


assert len(CALLS) >= 25  # times the frames: 250 pickles
