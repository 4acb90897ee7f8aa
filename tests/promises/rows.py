"""A row of the table of promises: its cases are tried one after the other, counted, kept, and gone on with."""

import contextlib
import functools
import hashlib
import itertools
import json
import os
import random
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
CASE_SECONDS = 120  # a case that takes longer hangs
KEEP_EVERY = 20.0  # seconds between two writes of an unfinished row
SHOWN = 20  # failures kept in words
ROWS: dict[str, "Promise"] = {}  # in the order of the table


class Promise(NamedTuple):
    """What a row holds: `run(bench)` yields (name of a case, function that tries it)."""

    words: str
    wanted: str
    run: Callable[["Bench"], Iterator[tuple[str, Callable[[], Any]]]]


@dataclass
class Bench:
    """What a row works with. `counts`: outcomes so far, in words, also of an earlier start of the row."""

    folder: Path
    quick: bool
    counts: Counter

    def size(self, full: int, quick: int) -> int:
        """A number of cases."""
        return quick if self.quick else full


def promise(name: str, words: str, wanted: str):
    """Decorator: enter a row's function into the table under a name for --only."""

    def enter(run):
        ROWS[name] = Promise(words, wanted, run)
        return run

    return enter


@functools.cache
def source_digest() -> str:
    """SHA-256 of the program: results of another one are not gone on with."""
    found = hashlib.sha256()
    for path in sorted(ROOT.glob("*.py")) + sorted(ROOT.glob("[a-z]*/**/*.py")):
        if path.parts[len(ROOT.parts)] not in ("shared", "data", "runs", "ckpt"):
            found.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return found.hexdigest()


def try_row(name: str, file: Path, quick: bool, again: bool = False) -> dict[str, Any]:
    """Try a row's cases that `file` does not have yet, and keep the counts there.

    Every case is numbered and draws from its number alone, so a row goes on where it was stopped.
    """
    words, wanted, run = ROWS[name]
    row = None if again else earlier(file, quick)
    row = row or {
        "promise": words,
        "wanted": wanted,
        "tried": 0,
        "failed": 0,
        "seconds": 0.0,
        "outcomes": {},
        "failures": [],
        "seeds": "a case's number",
        "cases": 0,
        "complete": False,
        "quick": quick,
        "source": source_digest(),
    }
    if row["complete"]:
        return row
    counts, begin, kept = Counter(row["outcomes"]), time.monotonic() - row["seconds"], time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"reliability_{name}_") as folder:
        cases = run(Bench(Path(folder), quick, counts))
        for case, check in itertools.islice(cases, row["cases"], None):
            try_case(row, counts, case, check)
            row["cases"] += 1
            row |= {"outcomes": dict(sorted(counts.items())), "seconds": round(time.monotonic() - begin, 1)}
            if time.monotonic() - kept > KEEP_EVERY:
                keep(file, row)
                kept = time.monotonic()
    row["complete"] = True
    keep(file, row)
    return row


def earlier(file: Path, quick: bool) -> dict[str, Any] | None:
    """What was kept of the same row of the same program; None where there is nothing to go on with."""
    if not file.is_file():
        return None
    row = json.loads(file.read_text(encoding="utf-8"))
    return row if row.get("source") == source_digest() and row.get("quick") == quick else None


def keep(file: Path, row: dict[str, Any]) -> None:
    """Write a row's file in one step."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}")
    temporary.write_text(json.dumps(row, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(file)


def try_case(row: dict[str, Any], counts: Counter, case: str, check: Callable[[], Any]) -> None:
    """Try one case. `check` returns nothing, an outcome in a word, or a Counter of many; it raises where it failed."""
    try:
        with deadline(CASE_SECONDS):
            outcome = check()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        row["tried"] += 1
        row["failed"] += 1
        counts["failed"] += 1
        if len(row["failures"]) < SHOWN:
            while getattr(error, "exceptions", None):  # of several that hypothesis found, the first
                error = error.exceptions[0]
            line = traceback.extract_tb(error.__traceback__)[-1]
            what = f"{type(error).__name__}: {error}"[:400]
            row["failures"].append({"case": case, "what": what, "at": f"{line.name}:{line.lineno}"})
        return
    found = outcome if isinstance(outcome, Counter) else Counter({outcome or "right": 1})
    row["tried"] += sum(found.values())
    counts.update(found)


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """TimeoutError in the block after this time."""

    def stop(*_):
        raise TimeoutError(f"it took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Ended(NamedTuple):
    """How a child ended: its exit code, or minus the signal that killed it, and what it printed."""

    code: int
    text: str
    seconds: float


def start(function: Callable[[], Any], log: Path) -> int:
    """Fork a child that calls a function as a command of its own would run; everything it prints goes to `log`.

    Libraries are imported once, in the parent, which trains nothing itself: a cold start takes seconds, this none.
    An error ends it with code 1 and its traceback in the log, `SystemExit` with its own code.
    """
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        for number in (signal.SIGALRM, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, 0)
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        code = call(function)
    finally:
        os._exit(code)


def call(function: Callable[[], Any]) -> int:
    """The exit code of a command's main function."""
    try:
        function()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code)
    except BaseException:
        traceback.print_exc()
        code = 1
    with contextlib.suppress(Exception):
        import sys

        sys.stdout.flush()
        sys.stderr.flush()
    return code


def wait(child: int, log: Path, seconds: float = CASE_SECONDS) -> Ended:
    """Wait for a child; TimeoutError, and the child killed, if it takes longer."""
    begin = time.monotonic()
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            code = os.waitstatus_to_exitcode(status)
            text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
            return Ended(code, text, time.monotonic() - begin)
        if time.monotonic() - begin > seconds:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise TimeoutError(f"the command took more than {seconds} s")
        time.sleep(0.003)


def run(function: Callable[[], Any], folder: Path, seconds: float = CASE_SECONDS) -> Ended:
    """A command in a child of its own, to its end; its output lies in a file of `folder` only as long as it runs."""
    log = folder / f".output_{random.randrange(16**8):08x}"
    try:
        return wait(start(function, log), log, seconds)
    finally:
        log.unlink(missing_ok=True)


def killed_after(function: Callable[[], Any], seconds: float, folder: Path) -> Ended:
    """A command in a child, killed (SIGKILL) after a time unless it has ended by itself."""
    log = folder / f".output_{random.randrange(16**8):08x}"
    child = start(function, log)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    try:
        return wait(child, log)
    finally:
        log.unlink(missing_ok=True)
