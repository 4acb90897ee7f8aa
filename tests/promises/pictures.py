"""Images and masks that are not what they seem: `dataset.check` lists them, training and test name them, none is
read as something else."""

import io
import json
import os
import runpy
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from promises.rows import Bench, promise, run
from promises.world import SIZE, World, copied, make_world, read_rows

GOOD, BAD, MASK = "bottle/good0.png", "bottle/bad0.png", "bottle/bad0_mask.png"


def picture(value: int = 90, size: int = SIZE) -> Image.Image:
    return Image.fromarray(np.full((size, size, 3), value, np.uint8))


def mask(*boxes: int, size: int = SIZE, value: int = 255) -> np.ndarray:
    """A mask with one square from boxes[0] to boxes[1]."""
    array = np.zeros((size, size), np.uint8)
    if boxes:
        array[boxes[0] : boxes[1], boxes[0] : boxes[1]] = value
    return array


def saved(image: Image.Image | np.ndarray, **how) -> bytes:
    file = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(file, **({"format": "PNG"} | how))
    return file.getvalue()


def bomb() -> bytes:
    """A PNG whose header says 40,000 x 40,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def turned() -> bytes:
    """A portrait by its EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(picture().resize((SIZE, SIZE // 2)), exif=exif)


WHOLE = saved(picture())
UNREADABLE = {  # nothing reads these: train and test name the file and stop
    "empty": b"",
    "text": b"no picture",
    "cut in the middle": WHOLE[: len(WHOLE) // 2],
    "header alone": WHOLE[:33],
    "a byte changed": WHOLE[:60] + bytes([WHOLE[60] ^ 255]) + WHOLE[61:],
    "a JPEG cut": saved(picture(), format="JPEG")[:200],
    "a bomb": bomb(),
    "an HTML page": b"<!DOCTYPE html><html></html>",
    "a pointer of git lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n",
    "zeros": bytes(500),
}
SEEMING = {  # readable, but not what one thinks: (file, content) that dataset.check must list
    "several frames": (GOOD, saved(picture(), save_all=True, append_images=[picture(10)])),
    "16 bits": (GOOD, saved(np.full((SIZE, SIZE), 40_000, np.uint16))),
    "a palette": (GOOD, saved(picture().convert("P"))),
    "an alpha channel in a mask": (MASK, saved(Image.fromarray(mask(4, 9)).convert("LA"))),
    "a JPEG mask": (MASK, saved(mask(4, 20), format="JPEG")),
    "three values in a mask": (MASK, saved(mask(4, 9) + mask(12, 20, value=100))),
    "a mask of another size": (MASK, saved(mask(4, 20, size=SIZE + 2))),
    "an empty mask of a defect": (MASK, saved(mask())),
    "an inverted mask": (MASK, saved(255 - mask(4, 9))),
    "a mask of one pixel in a large picture": (
        MASK,
        {MASK: saved(mask(101, 102, size=8 * SIZE)), BAD: saved(picture(size=8 * SIZE))},
    ),
    "orientation in EXIF": (GOOD, turned()),
    "the same content in both labels": (GOOD, None),
}


@promise("pictures", "images and masks: misreadings named by dataset.check, never a substitute", "0 silent")
def pictures(bench: Bench) -> Iterator[tuple[str, Callable]]:
    world = make_world(bench.folder / "world")
    for number, (what, content) in enumerate(list(UNREADABLE.items())[: bench.size(len(UNREADABLE), 2)]):
        for name in (GOOD, MASK)[: bench.size(2, 1)]:
            arguments = (world, bench.folder / f"unreadable_{number}_{name[7:11]}", name, content)
            yield f"{what} as {name}: train", partial(stops, "train", *arguments)
            yield f"{what} as {name}: test", partial(stops, "test", *arguments)
            yield f"{what} as {name}: check", partial(listed, *arguments)
    for number, (what, (name, content)) in enumerate(list(SEEMING.items())[: bench.size(len(SEEMING), 2)]):
        yield f"{what}: check", partial(listed, world, bench.folder / f"seeming_{number}", name, content)
    yield "nothing wrong: check", partial(nothing_listed, world, bench.folder / "control")
    yield "several problems at once: check", partial(all_listed, world, bench.folder / "all")


def spoilt(world: World, folder: Path, name: str, content: bytes | dict[str, bytes] | None) -> World:
    """A copy of the world with one other file, or several; None: the content of a defective picture."""
    other = copied(world, folder)
    own = other.data / "own"
    content = (own / BAD).read_bytes() if content is None else content
    for file, data in (content if isinstance(content, dict) else {name: content}).items():
        (own / file).write_bytes(data)
    return other


def stops(command: str, world: World, folder: Path, name: str, content: bytes) -> str:
    """A command names the file and leaves no number of it."""
    other = spoilt(world, folder.with_name(f"{folder.name}_{command}"), name, content)
    place = other.folder / "run"
    training, testing = other.training("train.py", place), other.testing(place, "--raw_clip")
    ended = run(training if command == "train" else testing, other.folder)
    assert ended.code > 0, f"exit 0: {ended.text[-200:]}"
    assert Path(name).name in ended.text, f"the file is not named: {ended.text[-300:]}"
    return "named"


def check(world: World) -> str:
    """What `python -m dataset.check` says of a world, words and JSON files together."""
    place = world.folder / "checked"
    place.mkdir(exist_ok=True)
    words = [
        "--dataset",
        "Own",
        "--data_root",
        world.data,
        "--dataset_config",
        world.config,
        "--img_size",
        SIZE,
    ]

    def command():
        os.chdir(place)
        sys.argv = ["dataset.check", *map(str, words)]
        runpy.run_module("dataset.check", run_name="__main__", alter_sys=True)

    ended = run(command, world.folder)
    assert "Traceback" not in ended.text, ended.text[-400:]
    reports = [path.read_text(encoding="utf-8") for path in place.rglob("*.json")]
    for text in reports:
        json.loads(text)
    return "\n".join([ended.text, *reports])


def listed(world: World, folder: Path, name: str, content: bytes | dict[str, bytes] | None) -> str:
    """dataset.check lists a file, or the picture it is the mask of."""
    text = check(spoilt(world, folder, name, content))
    shown = {Path(name).name, Path(name).name.replace("_mask", "")}
    assert any(one in text for one in shown), f"{name} is not listed"
    return "listed"


def nothing_listed(world: World, folder: Path) -> str:
    """The control: nothing is wrong with the untouched world."""
    other = copied(world, folder)
    text = check(other)
    shown = [row["image_path"] for row in read_rows(other.rows) if Path(row["image_path"]).name in text]
    assert not shown, f"listed: {shown}: {text[-300:]}"
    return "nothing listed"


def all_listed(world: World, folder: Path) -> str:
    """All problems in one go."""
    other = copied(world, folder)
    names = [row["image_path"] for row in read_rows(other.rows)]
    for name in names:
        (other.data / "own" / name).write_bytes(b"no picture")
    text = check(other)
    missing = [name for name in names if Path(name).name not in text]
    assert not missing, f"not listed: {missing}"
    return "listed"
