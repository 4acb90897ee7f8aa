"""What semantic fill is given: pipes, links out of the folder and broken pictures are refused by name, at once."""

import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from semantic_fill_world import flags, triptychs, write_folders, write_model_folder

from promises.rows import Bench, promise, run
from promises.world import assert_done, assert_refused
from synthesis import sample, train_semantic_fill
from synthesis.data import INDEX, PANELS

SOON = 30.0  # seconds: a reader that waits on a pipe never comes back


@promise("fill_files", "semantic fill: pipes do not hang it, links do not lead it out", "0")
def fill_files(bench: Bench) -> Iterator[tuple[str, Callable]]:
    data = write_folders(bench.folder / "data", triptychs(3))
    trained, model = bench.folder / "run", write_model_folder(bench.folder / "model")
    assert_done(run(partial(train_semantic_fill.main, flags(data, trained, 1)), bench.folder))
    shutil.copy(data / "visible" / "000.png", bench.folder / "secret.png")
    for number, panel in enumerate(PANELS[: bench.size(3, 1)]):
        for fault in (as_pipe, as_link_out, as_dangling_link, as_folder, as_text):
            place = bench.folder / f"{panel}_{fault.__name__}"
            yield f"{fault.__name__} {panel}: train", partial(train_refuses, data, place, panel, fault)
            if number < 2:
                yield (
                    f"{fault.__name__} {panel}: sample",
                    partial(sample_refuses, trained, data, place / "sampled", panel, fault),
                )
    yield "index links out", partial(index_out, data, bench.folder / "index")
    checkpoint = next(path for path in trained.iterdir() if path.name.startswith("checkpoint-"))
    for path in sorted(checkpoint.iterdir()):
        for fault in (as_pipe, as_folder):
            yield (
                f"{fault.__name__} {path.name}: resume, sample",
                partial(checkpoint_refuses, trained, data, path.name, fault, bench.folder),
            )
    for name in ("model_index.json", "vae/config.json", "transformer/config.json"):
        yield f"pipe {name} in the model's folder", partial(model_refuses, model, data, name, bench.folder)


def as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def as_link_out(path: Path) -> None:
    path.unlink()
    path.symlink_to(next(one / "secret.png" for one in path.parents if (one / "secret.png").exists()))


def as_dangling_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere.png")


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def as_text(path: Path) -> None:
    path.write_text("no picture")


def train_refuses(data: Path, place: Path, panel: str, fault: Callable) -> str:
    shutil.copytree(data, place)
    fault(place / panel / "001.png")
    command = partial(train_semantic_fill.main, flags(place, place / "run", 2))
    return assert_refused(run(command, place, SOON), "001")


def sample_refuses(trained: Path, data: Path, place: Path, panel: str, fault: Callable) -> str:
    shutil.copytree(data, place)
    fault(place / panel / "001.png")
    words = ["--checkpoint", trained, "--visible", place / "visible", "--semantic", place / "semantic"]
    words += ["--target", place / "target", "--out", place / "out", "--steps", "1", "--device", "cpu"]
    return assert_refused(run(partial(sample.main, list(map(str, words))), place, SOON), "001")


def index_out(data: Path, place: Path) -> str:
    shutil.copytree(data, place)
    (place.parent / "rows.jsonl").write_text("{}\n")
    (place / INDEX).symlink_to(place.parent / "rows.jsonl")
    command = partial(train_semantic_fill.main, flags(place, place / "run", 2))
    return assert_refused(run(command, place, SOON), INDEX)


def checkpoint_refuses(trained: Path, data: Path, name: str, fault: Callable, folder: Path) -> str:
    place = Path(shutil.copytree(trained, folder / f"{fault.__name__}_{name}"))
    (checkpoint,) = place.glob("checkpoint-*")
    fault(checkpoint / name)
    command = partial(train_semantic_fill.main, flags(data, place, 2))
    outcome = assert_refused(run(command, folder, SOON), name)
    if name != "optimizer.pth":  # which sampling does not need
        words = ["--checkpoint", place, "--visible", data / "visible" / "000.png", "--out", place / "a.png"]
        words += ["--semantic", data / "semantic" / "000.png", "--steps", "1", "--device", "cpu"]
        ended = run(partial(sample.main, list(map(str, words))), folder, SOON)
        assert ended.code > 0, "sampled"
    return outcome


def model_refuses(model: Path, data: Path, name: str, folder: Path) -> str:
    place = Path(shutil.copytree(model, folder / f"model_{name.replace('/', '_')}"))
    as_pipe(place / name)
    command = partial(train_semantic_fill.main, flags(data, folder / "other", 1, "--model", str(place)))
    return assert_refused(run(command, folder, SOON), Path(name).name)
