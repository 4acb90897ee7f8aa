"""The table of promises: faults injected into everything that is read and written, and how often a promise failed.

    python tests/reliability.py                    every row, or what is missing of them
    python tests/reliability.py --only kills fuzz  these rows
    python tests/reliability.py --quick            a few cases of each, in a minute or two
    python tests/reliability.py --list             the names of the rows

A row is kept in results/reliability/NAME.json while it runs, so that a stopped run goes on where it was; a changed
program starts it anew. results/reliability/table.md is made of these files. Exit code 1: a promise failed.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # first, because the project's `test.py` has a namesake in Python's library
RESULTS = ROOT / "results" / "reliability"


def parse(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="ROW", default=[], help="these rows")
    parser.add_argument("--quick", action="store_true", help="a few cases of each row")
    parser.add_argument("--again", action="store_true", help="start rows anew that are kept")
    parser.add_argument("--list", action="store_true", help="print the names of the rows and end")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    return parser.parse_args(argv)


def in_child(function, log):
    """Run a function in a forked child, which may fork and train as it likes; what it prints goes to `log`."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        function()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def read_rows(folder):
    """{name: row} of the rows kept in a folder."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def table(rows, order):
    """Markdown of some rows."""
    lines = ["| promise | tried | failed | seconds | wanted | outcomes |", "|--|--|--|--|--|--|"]
    for name in [*(one for one in order if one in rows), *sorted(rows.keys() - set(order))]:
        row = rows[name]
        tried = f"{row['tried']:,}" + ("" if row["complete"] else " (unfinished)")
        outcomes = ", ".join(f"{what} {count:,}" for what, count in row["outcomes"].items())
        cells = (
            f"{row['promise']} (`{name}`)",
            tried,
            f"{row['failed']:,}",
            f"{row['seconds']:.0f}",
            row["wanted"],
        )
        lines.append(f"| {' | '.join((*cells, outcomes))} |")
    return "\n".join(lines)


def write_table(folder, rows, order):
    head = (
        "# Promises\n\nMade by `make test-reliability`; what the rows mean: "
        "[docs/reliability.md](../../docs/reliability.md).\n\n"
    )
    (folder / "table.md").write_text(head + table(rows, order) + "\n", encoding="utf-8")


def main(argv=None):
    options = parse(argv)
    from promises import every_row, rows  # every library, once: the rows fork instead of starting anew

    every_row.one_thread()
    order = list(rows.ROWS)
    if options.list:
        print("\n".join(f"{name:12} {rows.ROWS[name].words}" for name in order))
        return 0
    unknown = [name for name in options.only if name not in order]
    if unknown:
        raise SystemExit(f"--only {' '.join(unknown)}: no such row; there are {', '.join(order)}")
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.only or order:
        file = options.out / f"{name}.json"
        if options.again:
            file.unlink(missing_ok=True)
        log = Path(tempfile.gettempdir()) / f"reliability_{name}_{os.getpid()}.log"
        code = in_child(lambda name=name, file=file: rows.try_row(name, file, options.quick), log)
        if code:
            print(f"{name}: the row itself failed, see {log}:\n{log.read_text()[-1500:]}", flush=True)
            crashed(rows, name, file, options.quick)
        else:
            log.unlink(missing_ok=True)
        row = read_rows(options.out).get(name)
        print(f"{name}: {row['tried']:,} tried, {row['failed']:,} failed, {row['seconds']:.0f} s", flush=True)
        for failure in row["failures"][:5]:
            print(f"  {failure['case']}: {failure['what']}", flush=True)
    found = read_rows(options.out)
    write_table(options.out, found, order)
    print("\n" + table({name: found[name] for name in options.only or order if name in found}, order))
    return int(any(found[name]["failed"] for name in options.only or order))


def crashed(rows, name, file, quick):
    """Count a row whose own program failed as failed."""
    with contextlib.suppress(FileNotFoundError):
        row = json.loads(file.read_text(encoding="utf-8"))
    if not file.is_file():
        words, wanted, _ = rows.ROWS[name]
        row = {"promise": words, "wanted": wanted, "tried": 0, "failed": 0, "seconds": 0.0, "outcomes": {}}
        row |= {"failures": [], "cases": 0, "quick": quick, "source": ""}
    row["failed"] += 1
    row |= {"complete": False}
    row["failures"].append({"case": "the row", "what": "its own program failed", "at": ""})
    rows.keep(file, row)


if __name__ == "__main__":
    raise SystemExit(main())
