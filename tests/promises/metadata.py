"""Rows and dataset files with mistakes: all of them shown at once, with file and line; no path leads out."""

import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from promises.rows import Bench, promise, run
from promises.world import World, assert_done, assert_refused, copied, make_world, read_rows

ROW = {
    "image_path": "bottle/bad0.png",
    "label": 1,
    "class_name": "bottle",
    "mask_path": "bottle/bad0_mask.png",
}
REFUSED: dict[str, Any] = {  # a line that is added to the rows; text as it is, an object as JSON
    "no JSON": "{image_path: 1}",
    "half a line": json.dumps(ROW)[:40],
    "a list": [1, 2],
    "a number": 3,
    "no image_path": {"label": 1, "class_name": "bottle"},
    "no class_name": {"image_path": "bottle/good0.png", "label": 0},
    "label 2": ROW | {"label": 2},
    "label as text": ROW | {"label": "1"},
    "label true": ROW | {"label": True},
    "label NaN": json.dumps(ROW).replace('"label": 1', '"label": NaN'),
    "an unknown class": ROW | {"class_name": "cup"},
    "a class as list": ROW | {"class_name": ["bottle"]},
    "a path as number": ROW | {"image_path": 7},
    "an empty path": ROW | {"image_path": ""},
    "a missing image": ROW | {"image_path": "bottle/none.png"},
    "a missing mask": ROW | {"mask_path": "bottle/none.png"},
    "a folder as image": ROW | {"image_path": "bottle"},
    "NUL in a path": ROW | {"image_path": "bottle/bad0.png\0.png"},
    "a newline in a path": ROW | {"image_path": "bottle/bad0\n.png"},
    "half a surrogate": json.dumps(ROW).replace("bad0.png", "\\ud800.png", 1),
    "a path upwards": ROW | {"image_path": "../../secret.png"},
    "an absolute path": ROW | {"image_path": "/etc/hostname"},
    "a mask upwards": ROW | {"mask_path": "../../secret.png"},
    "a link out": ROW | {"image_path": "bottle/link.png"},
    "a pipe": ROW | {"image_path": "bottle/pipe.png"},
    "mask = image": ROW | {"mask_path": "bottle/bad0.png"},
    "one image with two labels": {"image_path": "bottle/bad0.png", "label": 0, "class_name": "bottle"},
    "one image in two classes": ROW | {"class_name": "screw"},
    "a key twice": '{"image_path": "bottle/bad1.png", "label": 1, "label": 0, "class_name": "bottle"}',
    "a mask without label": {key: value for key, value in ROW.items() if key != "label"},
    "very deep": "[" * 100_000,
    "no UTF-8": b'{"image_path": "\xff.png"}',
}
ACCEPTED: dict[str, Any] = {
    "a blank line": "   ",
    "label 1.0": {"image_path": "bottle/bad1.png", "label": 1.0, "class_name": "bottle"},
    "another key": {"image_path": "bottle/bad1.png", "label": 1, "class_name": "bottle", "split": "test"},
}
CONFIGS: dict[str, Any] = {  # dataset files that are refused
    "empty": "",
    "a list": "[]",
    "no JSON": "{",
    "no classes": {"Own": {"path": "own", "domain": "Industrial", "classes": {}}},
    "another domain": {"Own": {"path": "own", "domain": "Food", "classes": {"a": "a"}}},
    "a path upwards": {"Own": {"path": "../own", "domain": "Industrial", "classes": {"a": "a"}}},
    "an absolute path": {"Own": {"path": "/", "domain": "Industrial", "classes": {"a": "a"}}},
    "a built-in name": {"MVTec": {"path": "own", "domain": "Industrial", "classes": {"a": "a"}}},
    "an unknown key": {"Own": {"path": "own", "domain": "Industrial", "classes": {"a": "a"}, "x": 1}},
    "a class upwards": {"Own": {"path": "own", "domain": "Industrial", "classes": {"../a": "a"}}},
    "a class with a newline": {"Own": {"path": "own", "domain": "Industrial", "classes": {"a\nb": "a"}}},
    "a class with NUL": {"Own": {"path": "own", "domain": "Industrial", "classes": {"a\0b": "a"}}},
    "a key twice": '{"Own": {"path": "a", "path": "own", "domain": "Industrial", "classes": {"a": "a"}}}',
    "a number": 3,
}


@promise(
    "metadata", "metadata, configuration, traversal: every mistake shown with its line", "0 silent, 0 escapes"
)
def metadata(bench: Bench) -> Iterator[tuple[str, Callable]]:
    world = make_world(bench.folder / "world")
    for what, line in list(REFUSED.items())[:: bench.size(1, 5)]:
        for command in ("test", "train")[: bench.size(2, 1)]:
            yield f"{what}: {command}", partial(line_refused, world, bench.folder, what, line, command)
    for what, line in ACCEPTED.items():
        yield f"{what}: test", partial(line_accepted, world, bench.folder, what, line)
    for what, content in list(CONFIGS.items())[:: bench.size(1, 4)]:
        yield f"dataset file: {what}", partial(config_refused, world, bench.folder, what, content)
    yield "twelve mistakes at once", partial(all_shown, world, bench.folder)
    for newline in ("\r\n", "\n"):
        yield f"line ends {newline!r}, with a mark", partial(text_of_windows, world, bench.folder, newline)


def spoilt(world: World, folder: Path, what: str, *lines: Any) -> World:
    """A copy of the world with lines added to its rows."""
    other = copied(world, folder / what.replace("/", "_").replace(" ", "_"))
    own = other.data / "own" / "bottle"
    (other.folder.parent / "secret.png").write_bytes((own / "good0.png").read_bytes())
    (own / "link.png").symlink_to(other.folder.parent / "secret.png")
    os.mkfifo(own / "pipe.png")
    data = other.rows.read_bytes()
    for line in lines:
        text = line if isinstance(line, str | bytes) else json.dumps(line)
        data += (text if isinstance(text, bytes) else text.encode()) + b"\n"
    other.rows.write_bytes(data)
    return other


def command_of(world: World, command: str) -> Callable:
    """train.py, or test.py of raw CLIP."""
    if command == "train":
        return world.training("train.py", world.folder / "run")
    return world.testing(world.folder / "run", "--raw_clip")


def line_refused(world: World, folder: Path, what: str, line: Any, command: str) -> str:
    """A command names file and line of a mistake, in words."""
    other = spoilt(world, folder, f"{what}_{command}", line)
    number = len(read_rows(world.rows)) + 1
    ended = run(command_of(other, command), folder)
    assert not (other.folder / "run" / "metrics.json").exists(), "numbers were written"
    return assert_refused(ended, f"rows.jsonl:{number}")


def line_accepted(world: World, folder: Path, what: str, line: Any) -> str:
    return assert_done(run(command_of(spoilt(world, folder, what, line), "test"), folder))


def config_refused(world: World, folder: Path, what: str, content: Any) -> str:
    """A dataset file with a mistake is refused by its name."""
    other = copied(world, folder / f"config_{what.replace(' ', '_')}")
    text = content if isinstance(content, str) else json.dumps(content)
    other.config.write_text(text, encoding="utf-8")
    return assert_refused(run(command_of(other, "test"), folder), "own.json")


def all_shown(world: World, folder: Path) -> str:
    """All mistakes are listed, wherever: at the latest in a file that the message names."""
    kinds = [line for line in REFUSED.values() if not isinstance(line, bytes) and len(str(line)) < 500][:12]
    other = spoilt(world, folder, "twelve", *kinds)
    ended = run(command_of(other, "test"), folder)
    begin = len(read_rows(world.rows)) + 1
    missing = [number for number in range(begin, begin + 12) if f"rows.jsonl:{number}" not in ended.text]
    assert ended.code > 0 and not missing, f"lines {missing} are not shown: {ended.text[-300:]}"
    return "refused"


def text_of_windows(world: World, folder: Path, newline: str) -> str:
    """The line ends and the byte order mark of another system change nothing."""
    other = copied(world, folder / f"windows_{len(newline)}")
    text = other.rows.read_text(encoding="utf-8").replace("\n", newline)
    other.rows.write_bytes(b"\xef\xbb\xbf" + text.encode())
    return assert_done(run(command_of(other, "test"), folder))
