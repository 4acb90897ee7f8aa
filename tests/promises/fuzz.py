"""Random input for everything that reads text or tensors: right, or refused in words; never another error."""

import io
import json
import logging
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from damaged_files import torch_file
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as some

from dataset import CLASS_NAMES, get_dataset, load_dataset_config, load_real_names
from files.tensors import DamagedFile, load_tensors, save_tensors
from model.weights_file import read_state_dict
from promises.rows import Bench, promise
from promises.world import differing, make_world
from synthesis.data import INDEX, Triptychs
from synthesis.weights import CONFIG_FILE, read_config

EXAMPLES = 125  # of a case
CASES = 12  # of a reader
SAID = (ValueError, FileNotFoundError, RuntimeError)  # errors for users
PLAIN = some.none() | some.booleans() | some.integers() | some.floats() | some.text(max_size=20)
VALUES = some.recursive(
    PLAIN,
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
NAMES = some.sampled_from(["bottle/good0.png", "bottle/bad0.png", "bottle/bad0_mask.png", "screw/good1.png"])
PATHS = (
    NAMES | some.sampled_from(["../own.json", "/etc/hostname", "", ".", "bottle", "a\0b", "\ud800"]) | VALUES
)
ROW = some.fixed_dictionaries(
    {},
    optional={
        "image_path": PATHS,
        "label": some.sampled_from([0, 1, 0.0, 1.0]) | VALUES,
        "class_name": some.sampled_from(["bottle", "screw"]) | VALUES,
        "mask_path": PATHS,
        "extra": VALUES,
    },
)
CLASSES = some.dictionaries(some.text(max_size=8), some.text(max_size=8), max_size=3)
ENTRY = some.fixed_dictionaries(
    {},
    optional={
        "path": some.sampled_from(["own", "..", "/", "a/../b"]) | VALUES,
        "domain": some.sampled_from(["Industrial", "Medical"]) | VALUES,
        "classes": CLASSES | VALUES,
        "metadata": VALUES,
    },
)
TENSORS = some.builds(
    lambda kind, shape: torch.arange(torch.Size(shape).numel()).reshape(shape).to(kind),
    some.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]),
    some.lists(some.integers(0, 3), max_size=3),
)
CONTENT = some.dictionaries(
    some.text(max_size=8) | some.integers(),
    some.recursive(
        TENSORS | PLAIN,
        lambda inner: (
            some.lists(inner, max_size=3)
            | some.tuples(inner, inner)
            | some.dictionaries(some.text(max_size=5) | some.integers(), inner, max_size=3)
        ),
        max_leaves=8,
    ),
    max_size=4,
)
EDITS = some.lists(
    some.tuples(some.floats(0, 1, exclude_max=True), some.binary(min_size=0, max_size=8)), max_size=3
)
MEMBERS = some.dictionaries(
    some.sampled_from(
        [f"archive/{name}" for name in ("data.pkl", "byteorder", "version", "data/0", "data/1", "code/a.py")]
    )
    | some.text(min_size=1, max_size=12).filter(lambda name: "\0" not in name),
    some.binary(max_size=40),
    max_size=4,
)


@promise("fuzz", "readers of metadata and checkpoints under random input", "≥ 10,000 hypothesis cases")
def fuzz(bench: Bench) -> Iterator[tuple[str, Callable]]:
    world = make_world(bench.folder / "world")
    readers = {
        "rows": (some.lists(ROW, max_size=4), partial(rows_as_json, world)),
        "lines": (some.lists(some.binary(max_size=60), max_size=4), partial(rows_as_bytes, world)),
        "dataset file": (some.dictionaries(some.text(max_size=8), ENTRY, max_size=3) | VALUES, config),
        "dataset file as bytes": (some.binary(max_size=80) | some.text(max_size=80), config_bytes),
        "real names": (
            some.dictionaries(some.sampled_from(["MVTec", "Own", "x"]), CLASSES | VALUES) | VALUES,
            real_names,
        ),
        "triptychs": (some.lists(TRIPTYCH | VALUES, max_size=3), triptychs),
        "checkpoint": (some.tuples(CONTENT, EDITS), checkpoint),
        "torch's checkpoint": (some.tuples(CONTENT, EDITS), foreign_checkpoint),
        "archive": (MEMBERS, archive),
        "pickle": (some.binary(max_size=60), pickled),
        "fill's config": (some.dictionaries(some.text(max_size=10), VALUES, max_size=3), fill_config),
    }
    for name, (strategy, read) in readers.items():
        for number in range(bench.size(CASES, 1)):
            yield (
                f"{name}, hypothesis seed {number}",
                partial(examples, strategy, read, number, bench.size(EXAMPLES, 10), bench.folder),
            )


TRIPTYCH = some.fixed_dictionaries(
    {}, optional={"visible": PATHS, "target": PATHS, "semantic": PATHS, "name": VALUES}
)


def examples(strategy: Any, read: Callable, number: int, count: int, folder: Path) -> Counter:
    """`read(folder, example)` of some examples of a seed."""
    outcomes = Counter()

    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def one(example):
        outcomes[read(folder, example)] += 1

    one()
    return outcomes


def refused_or(right: Callable[[], Any], *names: str) -> str:
    """ "right", or "refused" by a message that has one of some names; other errors are failures and pass through."""
    try:
        right()
    except SAID as error:
        assert any(name in str(error) for name in names), f"it names none of {names}: {error}"
        return "refused"
    return "right"


def dataset_of(world: Any, path: Path) -> None:
    """Every item of a metadata file's test sets."""
    logger = logging.getLogger("fuzz")
    logger.disabled = True
    load_dataset_config(world.config)
    sets = get_dataset("Own", 32, "full_shot", 0, "test", logger, data_root=world.data, meta_path=path)
    for one in sets.values():
        for number in range(len(one)):
            one[number]


def rows_as_json(world: Any, folder: Path, rows: list) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return refused_or(partial(dataset_of, world, path), "rows.jsonl")


def rows_as_bytes(world: Any, folder: Path, lines: list) -> str:
    path = folder / "rows.jsonl"
    path.write_bytes(b"\n".join(lines))
    return refused_or(partial(dataset_of, world, path), "rows.jsonl")


def config(folder: Path, content: Any) -> str:
    """A dataset file, as JSON and as YAML."""
    outcome = "right"
    for name, text in (("own.json", json.dumps(content)), ("own.yaml", yaml.safe_dump(content))):
        (folder / name).write_text(text, encoding="utf-8", errors="surrogatepass")
        outcome = declared(folder / name)
    return outcome


def declared(path: Path) -> str:
    """A dataset file is registered or refused; what it registered is taken away again."""
    before = set(CLASS_NAMES)
    try:
        return refused_or(partial(load_dataset_config, path), path.name)
    finally:
        for name in set(CLASS_NAMES) - before:
            del CLASS_NAMES[name]


def config_bytes(folder: Path, content: bytes | str) -> str:
    data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    for name in ("own.json", "own.yaml"):
        (folder / name).write_bytes(data)
        outcome = declared(folder / name)
    return outcome


def real_names(folder: Path, content: Any) -> str:
    (folder / "names.json").write_text(json.dumps(content), encoding="utf-8")
    return refused_or(partial(load_real_names, folder / "names.json"), "names.json")


def triptychs(folder: Path, rows: list) -> str:
    place = folder / "world" / "data" / "own"
    (place / INDEX).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def read():
        for item in Triptychs(place, 16):
            assert item["target"].shape == (3, 16, 16)

    return refused_or(read, INDEX, str(place))


def edited(data: bytes, edits: list) -> bytes:
    """Bytes with some replaced, at places given as shares of the length."""
    changed = bytearray(data)
    for share, replacement in edits:
        at = int(share * len(changed))
        changed[at : at + len(replacement)] = replacement
    return bytes(changed)


def checkpoint(folder: Path, example: tuple) -> str:
    """A checkpoint of this project, damaged."""
    content, edits = example
    path = folder / "a.pth"
    save_tensors(path, content)
    return read_again(path, content, edits)


def foreign_checkpoint(folder: Path, example: tuple) -> str:
    """The same written by torch alone."""
    content, edits = example
    path = folder / "a.pth"
    torch.save(content, path)
    return read_again(path, content, edits)


def read_again(path: Path, content: dict, edits: list) -> str:
    """A damaged file is read to the last bit or refused."""
    path.write_bytes(edited(path.read_bytes(), edits))
    try:
        found = load_tensors(path)
    except DamagedFile as error:
        assert edits and path.name in str(error), str(error)
        return "refused"
    wanted = {key: value for key, value in content.items() if key != "digests"}
    assert not differing(dict(found), wanted), "it was used silently"
    return "right"


def archive(folder: Path, members: dict) -> str:
    """A zip file of any members."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as file:
        for name, data in members.items():
            file.writestr(name, data)
    return read_weights(folder, written.getvalue())


def pickled(folder: Path, data: bytes) -> str:
    """Any bytes as a pickle, bare and inside a checkpoint."""
    read_weights(folder, data)
    return read_weights(folder, torch_file(data))


def read_weights(folder: Path, data: bytes) -> str:
    """Both readers of weights."""
    path = folder / "weights.pt"
    path.write_bytes(data)
    outcomes = {refused_or(partial(read, path), path.name) for read in (load_tensors, read_state_dict)}
    return "refused" if "refused" in outcomes else "right"


def fill_config(folder: Path, content: dict) -> str:
    (folder / CONFIG_FILE).write_text(json.dumps(content), encoding="utf-8")
    return refused_or(partial(read_config, folder), CONFIG_FILE)
