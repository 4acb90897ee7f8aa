"""Damaged files through the real readers: refused by name, or read to the last bit; never anything else."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from damaged_files import CONTENT, Tower, flipped, is_content, member_marked_as_directory, mutated
from semantic_fill_world import CONFIG, parameters_of, tiny_system

from files.tensors import DamagedFile, load_tensors, save_tensors
from model.weights_file import read_state_dict
from promises.rows import Bench, promise, run
from promises.world import assert_done, assert_refused, bits, make_world
from run_folder.loaded_run import load_run
from synthesis.weights import load_optimizer, load_system, save_system

CHUNK = 250  # files of a case
RUN_FILES = {  # of the runs that are spoilt: script -> files that testing reads
    "train.py": ("image_adapter.pth", "text_adapter.pth"),
    "train_cross_attention.py": ("image_adapter_cross_attn.pth", "text_adapter_cross_attn.pth"),
    "train_cross_attention_feedback.py": ("final_model.pth",),
}


def content_file(kind: str, path: Path) -> bytes:
    """The bytes of CONTENT as this project writes it ("ours"), as AA-CLIP does, or as torch did before 1.6 ("old")."""
    if kind == "ours":
        save_tensors(path, CONTENT)
    else:
        torch.save(CONTENT, path, _use_new_zipfile_serialization=kind != "old")
    return path.read_bytes()


def outcomes(
    files: Iterable[bytes], path: Path, read: Callable[[Path], Any], is_right: Callable[[Any], bool]
) -> Counter:
    """Counter of "refused" and "right"; raises where a file was used silently, or not refused by its name."""
    counts = Counter()
    for number, content in enumerate(files):
        path.write_bytes(content)
        try:
            right = is_right(read(path))
        except DamagedFile as error:
            assert path.name in str(error), f"file {number}: refused without its name: {error}"
            counts["refused"] += 1
            continue
        assert right, f"file {number} was used silently"
        counts["right"] += 1
    return counts


def chunks(total: int) -> Iterator[range]:
    """Numbers 0 .. total - 1 in ranges of CHUNK."""
    return (range(begin, min(begin + CHUNK, total)) for begin in range(0, total, CHUNK))


def damaged(
    name: str, data: bytes, total: int, try_files: Callable, change=lambda data, n: mutated(data, n)[0]
):
    """Cases of damaged copies of a file: the name, the numbers, and `try_files` of their bytes."""
    for numbers in chunks(total):
        yield (
            f"{name}, {numbers.start} to {numbers.stop - 1}",
            partial(lambda numbers: try_files(change(data, number) for number in numbers), numbers),
        )


@promise(
    "corrupt", "corrupt checkpoint never used silently", "≥ 1,000 damaged files; every bit of a small one"
)
def corrupt(bench: Bench) -> Iterator[tuple[str, Callable]]:
    path = bench.folder / "a.pth"
    for kind in ("ours", "AA-CLIP's"):
        data = content_file(kind, path)
        read = partial(outcomes, path=path, read=load_tensors, is_right=is_content)
        yield (
            f"{kind}: a member marked as a directory",
            partial(read, [member_marked_as_directory(data)]),
        )
        yield from damaged(f"{kind}: bits", data, bench.size(8 * len(data), 100), read, flipped)
        yield from damaged(f"{kind}: files", data, bench.size(1500, 60), read)
    yield from corrupt_runs(bench)


def corrupt_runs(bench: Bench) -> Iterator[tuple[str, Callable]]:
    """Real runs' files through `load_run`, and through test.py, which must write no number."""
    world = make_world(bench.folder / "world")
    for script, files in RUN_FILES.items():
        whole = bench.folder / script
        assert_done(run(world.training(script, whole), bench.folder))
        wanted = run_bits(whole)
        for name in files:
            data = (whole / name).read_bytes()
            spoilt = shutil.copytree(whole, bench.folder / f"spoilt_{name}")
            read = partial(
                outcomes,
                path=spoilt / name,
                read=lambda path: run_bits(path.parent),
                is_right=lambda found, wanted=wanted: found == wanted,
            )
            step = bench.size(25, 5)
            for numbers in (range(begin, begin + step) for begin in range(0, bench.size(10, 1) * step, step)):
                yield f"load_run: {name}, {numbers}", partial(try_some, read, data, numbers)
            for number in range(bench.size(5, 1)):
                yield (
                    f"test.py: {name}, bit {number}",
                    partial(test_refuses, world, spoilt, name, data, number, wanted),
                )


def try_some(read: Callable, data: bytes, numbers: range) -> Counter:
    """`read` of the files of some numbers."""
    return read(mutated(data, number)[0] for number in numbers)


def test_refuses(
    world: Any, folder: Path, name: str, data: bytes, number: int, wanted: dict[str, bytes]
) -> str:
    """test.py of a run with one bit flipped inside a tensor names the file and leaves no metrics.json; a bit that
    nothing reads leaves the `wanted` tensors."""
    at = data.index(b"/data/0") + 64 + number  # inside the first tensor's record or its padding
    middle = flipped(data, 8 * (at + len(data) // 3))
    (folder / name).write_bytes(middle)
    try:
        load_tensors(folder / name)
    except DamagedFile:
        ended = run(world.testing(folder), folder)
        assert not (folder / "metrics.json").exists(), "numbers were written"
        return assert_refused(ended, name)
    assert run_bits(folder) == wanted, "it was used silently"
    return "right"


def run_bits(folder: Path) -> dict[str, bytes]:
    """{tensor: bytes} of what a run's folder loads into its model."""
    model = load_run(folder, device="cpu").model
    modules = model.text_modules | model.image_modules
    return {
        f"{key}.{name}": bits(value).numpy().tobytes()
        for key, module in modules.items()
        for name, value in module.state_dict().items()
    }


@promise("old_pth", "old (non-zip) .pth never used silently", "all refused, with the way to convert")
def old_pth(bench: Bench) -> Iterator[tuple[str, Callable]]:
    path = bench.folder / "a.pth"
    data = content_file("old", path)

    refused = partial(outcomes, path=path, read=load_tensors, is_right=lambda found: False)
    yield "whole", partial(refused_with_remedy, path, data)
    yield from damaged("files", data, bench.size(2500, 100), refused)


def refused_with_remedy(path: Path, data: bytes) -> str:
    """An intact old file is refused with a command, and what the command makes is read."""
    path.write_bytes(data)
    try:
        load_tensors(path)
    except DamagedFile as error:
        command = str(error).split('python -c "')[1].split('"')[0]
        exec(command, {})  # the very words a user is told to type
        assert is_content(load_tensors(path.with_name("a_zip.pth")))
        return "refused"
    raise AssertionError("it was read")


@promise("backbone", "a damaged backbone file is refused", "0 silent")
def backbone(bench: Bench) -> Iterator[tuple[str, Callable]]:
    path = bench.folder / "a.pt"
    torch.manual_seed(0)
    tower = Tower().half()
    for kind in ("TorchScript", "state dict"):
        torch.jit.script(tower).save(path) if kind == "TorchScript" else torch.save(tower.state_dict(), path)
        data, wanted = path.read_bytes(), read_state_dict(path)
        read = partial(
            outcomes,
            path=path,
            read=read_state_dict,
            is_right=lambda found, wanted=wanted: is_state(found, wanted),
        )
        yield from damaged(f"{kind}: files", data, bench.size(1500, 60), read)
        bits_tried = bench.size(8 * len(data) // 17, 100)
        yield from damaged(
            f"{kind}: every 17th bit", data, bits_tried, read, lambda data, n: flipped(data, 17 * n)
        )


def is_state(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    """Whether a state dict is another to the last bit."""
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


@promise("fill", "semantic fill's checkpoints are never used silently when damaged", "0 silent")
def fill(bench: Bench) -> Iterator[tuple[str, Callable]]:
    system = tiny_system(scale=0.5)
    optimizer = torch.optim.AdamW(system.trainable())
    folder = save_system(bench.folder / "run", 1, system, CONFIG, optimizer)
    wanted = fill_bits(folder)
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        read = partial(
            outcomes,
            path=path,
            read=lambda path: fill_bits(path.parent),
            is_right=lambda found, wanted=wanted: found == wanted,
        )
        total = bench.size(60, 3)
        for number in range(total):
            yield f"{path.name}, file {number}", partial(try_one, read, mutated, data, number)
            bit = 5 + number * (8 * len(data) // total | 1) % (8 * len(data))
            yield f"{path.name}, bit {bit}", partial(try_one, read, flipped, data, bit)
        yield f"{path.name} is whole again", partial(restored, path, data, wanted)


def restored(path: Path, data: bytes, wanted: dict[str, bytes]) -> None:
    """Put the whole file back: it is read."""
    path.write_bytes(data)
    assert fill_bits(path.parent) == wanted


def try_one(read: Callable, change: Callable, data: bytes, number: int) -> Counter:
    """One damaged copy."""
    changed = change(data, number)
    return read([changed[0] if isinstance(changed, tuple) else changed])


def fill_bits(folder: Path) -> dict[str, bytes]:
    """{tensor: bytes} of what a checkpoint of semantic fill loads, its optimiser read too."""
    system, config = load_system("tiny", folder)
    load_optimizer(torch.optim.AdamW(system.trainable()), folder)
    found = {name: bits(value).numpy().tobytes() for name, value in parameters_of(system).items()}
    return found | {"config": repr(sorted(config.items())).encode()}
