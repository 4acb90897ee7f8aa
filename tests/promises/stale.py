"""Numbers and pictures of before: recomputed or refused when what they came from has changed."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader

import compare
from files.atomic import sha256
from promises.rows import Bench, promise, run
from promises.world import (
    World,
    assert_done,
    assert_refused,
    copied,
    error_of,
    make_world,
    read_rows,
    write_rows,
)

CHANGES = ("test image", "mask", "label", "fewer rows", "retrained", "nothing")


@promise("stale", "stale artefacts: every number carries the hashes of what it came from", "0 used")
def stale(bench: Bench) -> Iterator[tuple[str, Callable]]:
    world = make_world(bench.folder / "world")
    for number, rate in enumerate(("5e-4", "1e-3"), start=1):  # two arms of one seed
        place = bench.folder / "world" / f"run_{number}"
        assert_done(run(world.training("train.py", place, "--image_lr", rate), bench.folder))
        assert_done(run(world.testing(place), bench.folder))
    one = bench.folder / "world" / "run_1"
    yield "metrics.json has the hash of every file it came from", partial(hashes_kept, one)
    for change in CHANGES[:: bench.size(1, 5)]:
        yield f"compare.py after: {change}", partial(compared_after, world, change, bench.folder)
    yield "training replaces the file that is being tested", partial(replaced_meanwhile, world, one)
    yield "--all with another run's epoch", partial(mixed_epochs, world, one)
    yield "pictures of images that are no longer there", partial(old_pictures, world, bench.folder)


def hashes_kept(place: Path) -> str:
    """metrics.json says which files the numbers are of."""
    text = json.dumps(json.loads((place / "metrics.json").read_text(encoding="utf-8")))
    found = set(re.findall(r"[0-9a-f]{64}", text))
    for name in ("image_adapter.pth", "text_adapter.pth"):
        assert sha256(place / name) in found, f"metrics.json does not have the hash of {name}"
    return "kept"


def compared_after(world: World, change: str, folder: Path) -> str:
    """compare.py recomputes or refuses what is older than its data or checkpoint; without a change it reuses."""
    place = folder / f"compare_{change}"
    other = copied(world, place)
    before = scores_of(other)
    own = other.data / "own"
    if change == "test image":
        path = own / "bottle" / "good0.png"
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    elif change == "mask":
        path = own / "bottle" / "bad0_mask.png"
        Image.fromarray(np.roll(np.asarray(Image.open(path)), 5, axis=0)).save(path)
    elif change == "label":
        rows = read_rows(other.rows)
        write_rows(other.rows, [*rows[:-1], {**rows[0], "image_path": rows[-1]["image_path"]}])
    elif change == "fewer rows":
        write_rows(other.rows, read_rows(other.rows)[1:])
    elif change == "retrained":
        more = ("--image_lr", "5e-4", "--image_epoch", "3")
        assert_done(run(other.training("train.py", other.folder / "run_1", *more), place))
    flags = ["--baseline", str(other.folder / "run_1"), "--runs", f"x={other.folder / 'run_2'}"]
    flags += ["--datasets", "Own", "--data_root", str(other.data), "--dataset_config", str(other.config)]
    flags += ["--out", str(place / "out"), "--replicates", "100", "--", "--device", "cpu"]
    ended = run(partial(compare.main, flags), place)
    after = scores_of(other)
    renewed = {name for name, when in after.items() if before.get(name) != when}
    shutil.rmtree(place)
    if change == "nothing":
        return "reused" if ended.code == 0 and not renewed else fail(f"exit {ended.code}, {renewed}")
    if ended.code:
        error = error_of(ended.text)
        said = ("ValueError", "RuntimeError", "FileNotFoundError", "compare.py")
        assert error.startswith(said), f"it failed otherwise: {error[:300]}"
        return "refused"
    wanted = {name for name in before if change != "retrained" or name.startswith("run_1")}
    assert wanted <= renewed, f"of before: {sorted(wanted - renewed)}"
    return "recomputed"


def fail(text: str) -> Any:
    raise AssertionError(text)


def scores_of(world: World) -> dict[str, int]:
    """{file: time of writing} of the scores kept of both runs."""
    return {
        str(path.relative_to(world.folder)): path.stat().st_mtime_ns
        for run_folder in world.folder.glob("run_*")
        for path in run_folder.glob("scores/Own/*.npz")
    }


def replaced_meanwhile(world: World, one: Path) -> str:
    """The hashes beside the numbers are of what was loaded, not of what lies there when they are written."""
    place = Path(shutil.copytree(one, one.with_name("replaced")))
    shutil.rmtree(place / "scores")
    (place / "metrics.json").unlink()
    file, other = place / "image_adapter.pth", one.with_name("run_2") / "image_adapter.pth"
    loaded, later = sha256(file), sha256(other)

    def replaced():
        iterate = DataLoader.__iter__

        def replacing(loader):
            shutil.copy(other, file)
            return iterate(loader)

        DataLoader.__iter__ = replacing
        world.testing(place)()

    assert_done(run(replaced, place))
    assert sha256(file) == later, "it was not replaced"
    kept = (place / "metrics.json").read_text(encoding="utf-8")
    for path in place.glob("scores/Own/*.npz"):
        with np.load(path) as scores:
            kept += "".join(str(scores[name]) for name in scores.files if scores[name].dtype.kind in "US")
    assert later not in kept, "the numbers carry the hash of a file they are not of"
    assert loaded in kept, "the numbers carry no hash of their file"
    shutil.rmtree(place)
    return "kept"


def mixed_epochs(world: World, one: Path) -> str:
    """An epoch's file of another run in the folder is no epoch of this run."""
    place = Path(shutil.copytree(one, one.with_name("mixed")))
    shutil.copy(one.with_name("run_2") / "image_adapter_1.pth", place)
    (place / "metrics.json").unlink()
    return assert_refused(run(world.testing(place, "--all"), place), "image_adapter_1.pth")


def old_pictures(world: World, folder: Path) -> str:
    """--visualize leaves pictures of what was evaluated alone."""
    other = copied(world, folder / "pictures")
    place = other.folder / "run_1"
    assert_done(run(other.testing(place, "--visualize"), folder))
    rows = read_rows(other.rows)
    write_rows(other.rows, rows[1:])
    assert_done(run(other.testing(place, "--visualize"), folder))
    pictures = [path for path in place.glob("visualization/**/*.png")]
    assert len(pictures) == len(rows) - 1, f"{len(pictures)} pictures of {len(rows) - 1} images"
    return "renewed"
