"""Two commands in one folder at the same time: one works, the other is refused; evaluations lose nothing."""

import json
import random
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from promises.kills import Victim, uninterrupted, victims
from promises.rows import Bench, promise, run, start, wait
from promises.world import World, assert_done, assert_same_run, make_world


@promise("two_runs", "two runs in one folder: the second is refused, nothing is mixed", "stays 0")
def two_runs(bench: Bench) -> Iterator[tuple[str, Callable]]:
    found, wholes = victims(bench.folder), {}
    for number in range(bench.size(5, 1)):
        for victim in found[: bench.size(4, 2)]:
            yield f"{victim.name}, seed {number}", partial(race, victim, number, bench.folder, wholes)
    world = make_world(bench.folder / "tested")
    trained = bench.folder / "trained"
    assert_done(run(world.training("train.py", trained), bench.folder))
    for number in range(bench.size(6, 1)):
        yield f"test.py beside test.py, {number}", partial(two_tests, world, trained, number)


def race(victim: Victim, seed: int, folder: Path, wholes: dict[str, Any]) -> str:
    """Start two; the loser says why, the winner's run is the one nobody disturbed."""
    whole, seconds = uninterrupted(victim, folder, wholes)
    place, logs = folder / f"race_{victim.name}_{seed}", [folder / "one", folder / "other"]
    place.mkdir()
    children = []
    for log in logs:
        children.append(start(victim.command(place), log))
        time.sleep(random.Random(seed).uniform(0, 0.5) * seconds * (seed % 2))
    ended = [wait(child, log) for child, log in zip(children, logs, strict=True)]
    for log in logs:
        log.unlink(missing_ok=True)
    codes = sorted(one.code for one in ended)
    assert codes[0] == 0, f"both failed: {[one.text[-300:] for one in ended]}"
    assert_same_run(victim.read(place), whole)
    shutil.rmtree(place)
    if codes == [0, 0]:
        assert seed % 2, "both worked in the folder at the same time"
        return "one after the other"
    (loser,) = [one for one in ended if one.code]
    assert loser.code > 0 and "another process is working in" in loser.text, loser.text[-300:]
    return "the second refused"


def two_tests(world: World, trained: Path, number: int) -> str:
    """Two checkpoints of a run evaluated at the same time: both are in metrics.json."""
    place = Path(shutil.copytree(trained, trained.with_name(f"tests_{number}")))
    files = ("image_adapter_1.pth", "image_adapter_2.pth")
    logs = [place.with_name(f"{place.name}.{name}") for name in files]
    children = [
        start(world.testing(place, "--checkpoint", str(place / name)), log)
        for name, log in zip(files, logs, strict=True)
    ]
    for child, log in zip(children, logs, strict=True):
        assert_done(wait(child, log))
    kept = json.loads((place / "metrics.json").read_text(encoding="utf-8"))["Own"]
    assert set(files) <= set(kept), sorted(kept)
    shutil.rmtree(place)
    return "both kept"
