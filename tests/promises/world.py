"""What the rows work in: a tiny random CLIP, a folder of pictures, the commands at their smallest size."""

import json
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from cross_attention_world import MODEL, write_world
from PIL import Image

import test as test_script
import train
import train_cross_attention
import train_cross_attention_feedback
from files.tensors import load_tensors

SIZE = 32  # pixels; 16 patches
CLASSES = ("bottle", "screw")
TEXTS = (".json", ".jsonl")
MOVES = {"seconds", "save_path", "digests"}  # keys of a checkpoint that two equal runs need not share
ONE_EPOCH = "--text_epoch 1 --image_epoch 2".split()
SCRIPTS: dict[str, tuple[Callable, list[str]]] = {
    "train.py": (train.main, ONE_EPOCH),
    "train_cross_attention.py": (train_cross_attention.main, [*ONE_EPOCH, "--cross_attn_heads", "4"]),
    "train_cross_attention_feedback.py": (
        train_cross_attention_feedback.main,
        "--num_feedback_loops 2 --text_epoch 1 --image_epoch 1 --warmup_epochs 0 --plateau_patience 0 "
        "--cross_attn_heads 4".split(),
    ),
}


class World(NamedTuple):
    """Files of a world: `rows` are those of an own dataset, `config` declares it as Own."""

    folder: Path
    weights: Path
    data: Path
    rows: Path
    config: Path

    def flags(self, save_path: Path | str, dataset: str = "Own") -> list[str]:
        """Command line of any command on the tiny CLIP."""
        own = {
            "--model_name": MODEL,
            "--clip_weights": self.weights,
            "--img_size": SIZE,
            "--text_adapt_until": 2,
            "--image_adapt_until": 2,
            "--dataset": dataset,
            "--data_root": self.data,
            "--dataset_config": self.config,
            "--save_path": save_path,
            "--device": "cpu",
        }
        return [str(part) for pair in own.items() for part in pair]

    def train_flags(self, save_path: Path | str) -> list[str]:
        """The same for a training command: all images, two steps an epoch."""
        batches = "--training_mode full_shot --text_batch_size 4 --image_batch_size 4 --text_lr 1e-3".split()
        return [*self.flags(save_path), "--surgery_until_layer", "3", *batches]

    def training(self, script: str, save_path: Path | str, *more: str) -> Callable[[], None]:
        """A training command, to be called in a child."""
        main, own = SCRIPTS[script]
        return partial(main, [*self.train_flags(save_path), *own, *more])

    def testing(self, save_path: Path | str, *more: str) -> Callable[[], Any]:
        """test.py of a run."""
        return partial(test_script.main, [*self.flags(save_path), *more])


def make_world(folder: Path) -> World:
    """Write a world: two classes, two good and two defective pictures each, rows and the file that declares them."""
    folder.mkdir(parents=True, exist_ok=True)
    weights, data = write_world(folder), folder / "data"
    rows = [
        write_picture(data / "own", class_name, number, label)
        for class_name in CLASSES
        for number in range(2)
        for label in (0, 1)
    ]
    write_rows(data / "own" / "rows.jsonl", rows)
    entry = {
        "path": "own",
        "domain": "Industrial",
        "classes": {name: name for name in CLASSES},
        "metadata": "data/own/rows.jsonl",
    }
    (folder / "own.json").write_text(json.dumps({"Own": entry}), encoding="utf-8")
    return World(folder, weights, data, data / "own" / "rows.jsonl", folder / "own.json")


def write_picture(root: Path, class_name: str, number: int, label: int) -> dict[str, Any]:
    """One picture, with a mask where it is defective; its row."""
    draw = np.random.default_rng([number, label, CLASSES.index(class_name)])
    pixels = draw.integers(60, 120, (SIZE, SIZE, 3), dtype=np.uint8)
    name = f"{class_name}/{'bad' if label else 'good'}{number}"
    row = {"image_path": f"{name}.png", "label": label, "class_name": class_name}
    (root / class_name).mkdir(parents=True, exist_ok=True)
    if label:
        mask = np.zeros((SIZE, SIZE), np.uint8)
        mask[8 : 20 + 2 * CLASSES.index(class_name), 6 + number : 24] = 255
        pixels[mask > 0] = (220, 30, 30)
        Image.fromarray(mask).save(root / f"{name}_mask.png")
        row["mask_path"] = f"{name}_mask.png"
    Image.fromarray(pixels).save(root / f"{name}.png")
    return row


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """A metadata file, written plainly: the rows are not the program's."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a metadata file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def copied(world: World, to: Path) -> World:
    """The same world elsewhere, to be spoilt."""
    shutil.copytree(world.folder, to)
    inside = (to / Path(path).relative_to(world.folder) for path in world[1:])
    return World(to, *inside)


def check_files(folder: Path) -> int:
    """Raises where a file of a run's folder is not whole; returns how many were read."""
    read = 0
    for path in sorted(folder.rglob("*")):
        if path.name.startswith(".") or not path.is_file():
            continue
        if path.suffix == ".pth" or path.name.endswith(".pth.previous"):
            load_tensors(path)
            read += 1
        elif path.suffix in TEXTS:
            text = path.read_text(encoding="utf-8")
            [json.loads(line) for line in (text.splitlines() if path.suffix == ".jsonl" else [text])]
            read += 1
        elif path.suffix == ".png":
            with Image.open(path) as image:
                image.load()
            read += 1
    return read


def checkpoints(folder: Path) -> dict[str, Any]:
    """{file: content} of a run's checkpoints, without the run's own random name."""
    found = {path.name: dict(load_tensors(path)) for path in sorted(folder.glob("*.pth"))}
    for content in found.values():
        if isinstance(content.get("identity"), dict):
            content["identity"] = {key: value for key, value in content["identity"].items() if key != "run"}
    return found


def differing(one: Any, other: Any, place: str = "") -> list[str]:
    """Places where two contents differ in a bit; what names times and folders is left out."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape
        return [] if same and torch.equal(bits(one), bits(other)) else [place]
    if isinstance(one, dict) and isinstance(other, dict):
        missing = [f"{place}/{key} is in one alone" for key in one.keys() ^ other.keys() if key not in MOVES]
        both = [key for key in one if key in other and key not in MOVES]
        return missing + [
            found for key in both for found in differing(one[key], other[key], f"{place}/{key}")
        ]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        if len(one) != len(other):
            return [f"{place} has {len(one)} and {len(other)} entries"]
        pairs = zip(one, other, strict=True)
        return [found for number, pair in enumerate(pairs) for found in differing(*pair, f"{place}/{number}")]
    return [] if type(one) is type(other) and (one == other or one != one) else [place]


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's bytes: a NaN equals itself, 0 and -0 differ."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def assert_same_run(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Raises unless two runs' checkpoints are the same files with the same bits."""
    assert one.keys() == other.keys(), f"files {sorted(one)} and {sorted(other)}"
    found = differing(one, other)
    assert not found, f"{len(found)} differences: {found[:4]}"


def assert_refused(ended: Any, *words: str) -> str:
    """Raises unless a command ended with an error that has all these words; returns "refused"."""
    assert ended.code > 0, f"it went on (exit {ended.code}): {ended.text[-300:]}"
    error = error_of(ended.text)
    missing = [word for word in words if str(word) not in error]
    assert not missing, f"refused, but not in these words {missing}: {error[-400:]}"
    return "refused"


def error_of(text: str) -> str:
    """The error that a command's output ends with, without what was logged before: from the last `Kind: ` on."""
    begins = [found.start() for found in re.finditer(r"^[\w.]+: ", text, re.MULTILINE)]
    return text[begins[-1] :] if begins else text[-1000:]


def assert_done(ended: Any) -> str:
    """Raises unless a command ended well; returns "done"."""
    assert ended.code == 0, f"exit {ended.code}: {ended.text[-500:]}"
    return "done"
