"""Values that are not finite: no step on them, no file of them, and the file they came from is named."""

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from files.digests import content_digests, leaves
from files.tensors import DIGESTS, load_tensors
from promises.kills import Victim, victims
from promises.rows import Bench, promise, run
from promises.world import World, assert_done, assert_refused, error_of, make_world

BAD = {"NaN": float("nan"), "inf": float("inf"), "-inf": float("-inf")}
OPTIMISERS = ("text_optimizer", "image_optimizer")


@promise(
    "finite", "non-finite values: never trained on, saved or tested; the file is named", "0 of them saved"
)
def finite(bench: Bench) -> Iterator[tuple[str, Callable]]:
    world = make_world(bench.folder / "world")
    trained = bench.folder / "trained"
    assert_done(run(world.training("train.py", trained), bench.folder))
    for name in list(BAD)[: bench.size(3, 1)]:
        for tensor in bench_tensors(world)[: bench.size(3, 1)]:
            yield f"{name} in the backbone's {tensor}", partial(in_backbone, world, tensor, BAD[name])
        for file, key in (("image_adapter.pth", "image_adapter"), ("text_adapter.pth", "text_adapter")):
            yield f"test.py: {name} in {file}", partial(in_checkpoint, world, trained, file, key, BAD[name])
            yield f"resume: {name} in {file}", partial(in_resume, world, trained, file, key, BAD[name])
        for file, key in (("image_adapter.pth", OPTIMISERS[1]), ("text_adapter.pth", OPTIMISERS[0])):
            yield f"resume: {name} in {key}", partial(in_resume, world, trained, file, key, BAD[name])
    for victim in victims(bench.folder)[: bench.size(4, 2)]:
        for where in ("loss", "gradient"):
            for step in range(bench.size(4, 1)):
                yield (
                    f"{victim.name}: {where} of step {step + 1}",
                    partial(in_training, victim, where, step, bench.folder),
                )


def bench_tensors(world: World) -> list[str]:
    """Names of some of the backbone's tensors."""
    names = sorted(name for name, value in load_file(world.weights).items() if value.is_floating_point())
    return [names[0], names[len(names) // 2], names[-1]]


def in_backbone(world: World, tensor: str, value: float) -> str:
    path = world.folder / "bad.safetensors"
    state = load_file(world.weights)
    state[tensor].reshape(-1)[0] = value
    save_file(state, path)
    place = world.folder / "run"
    ended = run(world.training("train.py", place, "--clip_weights", str(path)), world.folder)
    assert not list(place.glob("*.pth")), "files were written"
    return assert_refused(ended, path.name)


def spoilt_run(trained: Path, file: str, key: str, value: float) -> Path:
    """A copy of a run whose file holds such a value, with digests that are right."""
    place = trained.with_name("spoilt")
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(trained, place)
    content = dict(load_tensors(place / file))
    tensors = [one for _, one in leaves(content[key]) if torch.is_tensor(one) and one.dim()]
    tensors[0].reshape(-1)[0] = value
    torch.save(content | {DIGESTS: content_digests(content)}, place / file)  # the program would not write it
    return place


def in_checkpoint(world: World, trained: Path, file: str, key: str, value: float) -> str:
    place = spoilt_run(trained, file, key, value)
    outcome = assert_refused(run(world.testing(place), place), file)
    assert not (place / "metrics.json").exists(), "numbers were written"
    return outcome


def in_resume(world: World, trained: Path, file: str, key: str, value: float) -> str:
    """Going on refuses, or goes on from an earlier file that is sound; nothing that is not finite is saved."""
    place = spoilt_run(trained, file, key, value)
    bad = (place / file).read_bytes()
    ended = run(world.training("train.py", place, "--image_epoch", "3"), place)
    assert file in ended.text, f"{file} is not named: {ended.text[-300:]}"
    for path in place.glob("*.pth"):
        if path.read_bytes() != bad:
            assert_finite(load_tensors(path), path.name)
    return "refused" if ended.code else "gone on from an earlier one"


def assert_finite(content: Any, name: str) -> None:
    """Raises where a tensor of a file is not finite."""
    bad = [
        place
        for place, value in leaves(content)
        if torch.is_tensor(value) and value.is_floating_point() and not value.isfinite().all()
    ]
    assert not bad, f"{name} holds values that are not finite: {bad[:3]}"


def in_training(victim: Victim, where: str, step: int, folder: Path) -> str:
    """A step whose loss or gradient is NaN ends the run or is left out; every file is finite."""
    place = folder / f"{where}_{victim.name}_{step}"
    place.mkdir()
    ended = run(spoiling(victim.command(place), where, step), place)
    for path in place.rglob("*.pth"):
        assert_finite(load_tensors(path), path.name)
    for path in place.rglob("*.safetensors"):
        assert_finite(load_file(path), path.name)
    shutil.rmtree(place)
    error = error_of(ended.text)
    assert ended.code > 0 and ("not finite" in error or "nan" in error), (
        f"exit {ended.code}: {ended.text[-300:]}"
    )
    return "stopped"


def spoiling(command: Callable, where: str, step: int) -> Callable:
    """A command whose n-th backward pass gives NaN, in the gradient alone or from a loss that is NaN."""

    def spoilt():
        backward, count = torch.Tensor.backward, 0

        def counted(loss, *arguments, **named):
            nonlocal count
            count += 1
            if count == step + 1 and where == "loss":
                loss.data.fill_(float("nan"))  # as if it had been so: what is read later sees it
                return backward(loss * float("nan"), *arguments, **named)
            if count == step + 1:
                loss = loss * 1.0
                loss.register_hook(lambda gradient: gradient * float("nan"))
            return backward(loss, *arguments, **named)

        torch.Tensor.backward = counted
        command()

    return spoilt
