"""Files of another run, backbone, data or prompts in the right one's place: refused by name before they are used."""

import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from promises.rows import Bench, promise, run
from promises.world import (
    World,
    assert_done,
    assert_refused,
    check_files,
    checkpoints,
    copied,
    differing,
    make_world,
    read_rows,
    write_rows,
)

OTHERS = {  # runs whose text_adapter.pth is not this run's
    "another seed": ("train.py", ["--seed", "7"]),
    "--relu": ("train.py", ["--relu"]),
    "another residual weight": ("train.py", ["--text_adapt_weight", "0.3"]),
    "another learning rate": ("train.py", ["--text_lr", "1e-2"]),
    "cross-attention": ("train_cross_attention.py", []),
}
AACLIPS_KEYS = ("epoch", "text_adapter", "image_adapter", "text_optimizer", "image_optimizer")


@promise("wrong_inputs", "wrong inputs refused before anything is trained, tested or compared", "0 accepted")
def wrong_inputs(bench: Bench) -> Iterator[tuple[str, Callable]]:
    world = make_world(bench.folder / "world")
    runs = {"own": bench.folder / "own"}
    assert_done(run(world.training("train.py", runs["own"]), bench.folder))
    for name, (script, more) in list(OTHERS.items())[: bench.size(5, 2)]:
        runs[name] = bench.folder / name
        assert_done(run(world.training(script, runs[name], *more), bench.folder))
    yield "the run itself is tested", partial(accepted, world, runs["own"])
    for name in list(runs)[1:]:
        text = next(path for path in runs[name].glob("text_adapter*.pth"))
        yield f"test.py: text file of {name}", partial(test_refuses, world, runs["own"], text)
        yield f"resume: text file of {name}", partial(resume_refuses, world, runs["own"], text)
    yield "test.py: no text file", partial(test_refuses, world, runs["own"], None)
    yield (
        "test.py: the image file in its place",
        partial(test_refuses, world, runs["own"], runs["own"] / "image_adapter.pth"),
    )
    for what in (other_backbone, other_images, fewer_rows, other_prompts):
        yield f"test.py: {what.__name__}", partial(test_elsewhere, world, runs["own"], what)
        yield f"resume: {what.__name__}", partial(resume_elsewhere, world, runs["own"], what)
    yield "more text epochs after stage 2", partial(longer_text_stage, world, runs["own"])
    yield "AA-CLIP's own files", partial(files_of_aaclip, world, runs["own"])


def accepted(world: World, trained: Path) -> str:
    """The control: the same command on the untouched run gives numbers."""
    place = Path(shutil.copytree(trained, trained.with_name("control")))
    assert_done(run(world.testing(place), place))
    assert (place / "metrics.json").is_file()
    return "done"


def with_text(trained: Path, text: Path | None) -> Path:
    """A copy of a run with another text file, or none."""
    place = trained.with_name("spoilt")
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(trained, place)
    (place / "text_adapter.pth").unlink()
    if text is not None:
        shutil.copy(text, place / "text_adapter.pth")
    return place


def test_refuses(world: World, trained: Path, text: Path | None) -> str:
    place = with_text(trained, text)
    outcome = assert_refused(run(world.testing(place), place), "text_adapter.pth")
    assert not (place / "metrics.json").exists(), "numbers were written"
    return outcome


def resume_refuses(world: World, trained: Path, text: Path) -> str:
    """Going on with a run refuses, and leaves every file as it was."""
    place = with_text(trained, text)
    before = {path.name: path.read_bytes() for path in place.glob("*.pth")}
    ended = run(world.training("train.py", place, "--image_epoch", "3"), place)
    outcome = assert_refused(ended, "text_adapter.pth")
    assert before == {path.name: path.read_bytes() for path in place.glob("*.pth")}, "files changed"
    return outcome


def other_backbone(world: World) -> list[str]:
    """Other weights of the same shapes."""
    state = load_file(world.weights)
    save_file({name: value + 0.01 for name, value in state.items()}, world.folder / "other.safetensors")
    return ["--clip_weights", str(world.folder / "other.safetensors")]


def other_images(world: World) -> list[str]:
    """One picture of the training set shows something else."""
    path = world.data / "own" / "bottle" / "good0.png"
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    return []


def fewer_rows(world: World) -> list[str]:
    """A row was taken out."""
    write_rows(world.rows, read_rows(world.rows)[:-1])
    return []


def other_prompts(world: World) -> list[str]:
    """--real_names reworded a class."""
    path = world.folder / "names.json"
    path.write_text(json.dumps({"Own": {"bottle": "a thing of glass"}}), encoding="utf-8")
    return ["--real_names", str(path)]


def elsewhere(world: World, trained: Path, change: Callable) -> tuple[World, Path, list[str]]:
    """A copy of the world where something changed since training, a copy of the run, and the flags that say so."""
    folder = trained.with_name("elsewhere")
    shutil.rmtree(folder, ignore_errors=True)
    other = copied(world, folder)
    place = Path(shutil.copytree(trained, folder / "run"))
    return other, place, change(other)


def test_elsewhere(world: World, trained: Path, change: Callable) -> str:
    """Another backbone or other prompts make other numbers: refused. Test data may be any data."""
    other, place, more = elsewhere(world, trained, change)
    ended = run(other.testing(place, *more), place)
    if change in (other_images, fewer_rows):
        return assert_done(ended)
    return assert_refused(ended, place.name)


def resume_elsewhere(world: World, trained: Path, change: Callable) -> str:
    """A run goes on with what it began with alone."""
    other, place, more = elsewhere(world, trained, change)
    before = checkpoints(place)
    ended = run(other.training("train.py", place, "--image_epoch", "3", *more), place)
    assert not differing(checkpoints(place), before), "files changed"
    return assert_refused(ended, "text_adapter.pth")


def longer_text_stage(world: World, trained: Path) -> str:
    """--text_epoch raised after stage 2: refused before text_adapter.pth is written."""
    place = with_text(trained, trained / "text_adapter.pth")
    before = checkpoints(place)
    ended = run(world.training("train.py", place, "--text_epoch", "3"), place)
    assert not differing(checkpoints(place), before), "the folder holds a mixture"
    check_files(place)
    return assert_refused(ended, "--text_epoch")


def files_of_aaclip(world: World, trained: Path) -> str:
    """Files that carry no identity are accepted, with a warning."""
    place = trained.with_name("aaclip")
    place.mkdir()
    for path in trained.glob("*.pth"):
        content: dict[str, Any] = torch.load(path, weights_only=True)
        torch.save({key: content[key] for key in AACLIPS_KEYS if key in content}, place / path.name)
    ended = run(world.testing(place, "--surgery_until_layer", "3"), place)
    assert_done(ended)
    warnings = [
        line for line in (place / "test.log").read_text(encoding="utf-8").splitlines() if " WARNING " in line
    ]
    assert len(warnings) == 1, f"{len(warnings)} warnings: {warnings}"
    return "accepted with a warning"
