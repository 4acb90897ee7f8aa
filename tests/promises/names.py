"""Names that are formulas, markup or log lines: quoted and escaped in everything that people open."""

import csv
import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import compare
from promises.rows import Bench, promise, run
from promises.world import World, assert_done, copied, error_of, make_world, read_rows, write_rows

HOSTILE = (
    '=HYPERLINK("http:x","y")',
    "+1+1",
    "-2+3",
    "@SUM(A1)",
    "<script>alert(1)</script>",
    "{{ 7*7 }}",
    "${x}%n",
    "a,b;c\"d'e",
    "\t=1",
    "\u202egnp.exe",
    "$_{^",
    "bold **x** | cell",
    "../up",
)
FORMULA = re.compile(r"^[\s]*[=+\-@]")
NUMBER = re.compile(r"^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$|^-?(nan|inf)$", re.IGNORECASE)


@promise("names", "hostile names in reports: quoted, escaped", "0 cells, lines or tags of their own")
def names(bench: Bench) -> Iterator[tuple[str, Callable]]:
    world = make_world(bench.folder / "world")
    for number, name in enumerate(HOSTILE[: bench.size(len(HOSTILE), 1)]):
        yield f"class {name!r}", partial(as_class, world, bench.folder / f"class_{number}", name)
        yield f"file {name!r}", partial(as_file, world, bench.folder / f"file_{number}", name)
    yield "a newline that forges a log line", partial(forged_line, world, bench.folder / "forged")


def renamed_class(world: World, folder: Path, name: str) -> World:
    """A copy of the world whose class `bottle` is called otherwise, on disk as before."""
    other = copied(world, folder)
    rows = [
        row | ({"class_name": name} if row["class_name"] == "bottle" else {}) for row in read_rows(other.rows)
    ]
    write_rows(other.rows, rows)
    declared = json.loads(other.config.read_text(encoding="utf-8"))
    declared["Own"]["classes"] = {name: "bottle", "screw": "screw"}
    other.config.write_text(json.dumps(declared), encoding="utf-8")
    return other


def reports(world: World) -> str:
    """Train two arms of one seed, evaluate, compare; "reported", or "refused" where the name is none of a folder's."""
    runs = {world.folder / f"run_{rate}": rate for rate in ("5e-4", "1e-3")}
    for place, rate in runs.items():
        ended = run(world.training("train.py", place, "--image_lr", rate), world.folder)
        error = error_of(ended.text)
        if ended.code and ("cannot be" in error or "rows.jsonl:" in error):
            return "refused"
        assert_done(ended)
        assert_done(run(world.testing(place, "--visualize"), world.folder))
    baseline, other = runs
    flags = ["--baseline", str(baseline), "--runs", f"x={other}", "--datasets", "Own", "--data_root"]
    flags += [str(world.data), "--dataset_config", str(world.config), "--out", str(world.folder / "out")]
    flags += ["--replicates", "100", "--", "--device", "cpu"]
    assert_done(run(partial(compare.main, flags), world.folder))
    return "reported"


def check_reports(world: World, name: str) -> None:
    """Raises where a report holds a formula's cell, a tag, or a line that is none of the log's."""
    for path in sorted(world.folder.rglob("*")):
        if path.suffix == ".csv":
            with path.open(encoding="utf-8", newline="") as file:
                cells = [cell for row in csv.reader(file) for cell in row]
            bad = [cell for cell in cells if FORMULA.match(cell) and not NUMBER.match(cell)]
            assert not bad, f"{path.name} has cells a spreadsheet would run: {bad[:2]}"
        elif path.suffix == ".html":
            text = path.read_text(encoding="utf-8")
            assert "<script>alert(1)" not in text, f"{path.name} has the name's own tag"
            assert "49" not in text or "{{ 7*7 }}" not in name or "{{ 7*7 }}" in text, f"{path.name} ran it"
        elif path.suffix == ".log":
            for line in path.read_text(encoding="utf-8").splitlines():
                assert "\u202e" not in line, f"{path.name}: a sign that turns the line round"


def as_class(world: World, folder: Path, name: str) -> str:
    other = renamed_class(world, folder, name)
    outcome = reports(other)
    check_reports(other, name)
    return outcome


def as_file(world: World, folder: Path, name: str) -> str:
    """A picture of that name."""
    if "/" in name:
        name = name.replace("/", "")
    other = copied(world, folder)
    rows = read_rows(other.rows)
    own = other.data / "own"
    (own / rows[0]["image_path"]).rename(own / f"{name}.png")
    rows[0]["image_path"] = f"{name}.png"
    write_rows(other.rows, rows)
    outcome = reports(other)
    check_reports(other, name)
    return outcome


def forged_line(world: World, folder: Path) -> str:
    """A class's name with a newline is refused, or escaped in the log."""
    forged = "a\n2026-01-01 00:00:00,000 INFO final results: 100.00"
    other = renamed_class(world, folder, forged)
    ended = run(other.testing(other.folder / "run", "--raw_clip"), folder)
    for text in (ended.text, *(path.read_text() for path in other.folder.rglob("*.log"))):
        lines = [line for line in text.splitlines() if line.startswith("2026-01-01 00:00:00,000 INFO final")]
        assert not lines, f"a forged line: {lines[0]}"
    return "refused" if ended.code else "escaped"
