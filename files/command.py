"""How a command ends: what it refuses in one message, a bug with its traceback."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from files.cells import plain

DEBUG = "--debug"
HELP = f"{DEBUG} as well: the traceback behind an error"
REFUSED = 2  # exit status


class Refusal(RuntimeError):
    """What was asked for cannot be done; the message says why and what to do, in words for the user."""


# What users meet: wrong values, missing, damaged and unwritable files, a training that diverged, missing packages.
EXPECTED = (ValueError, OSError, FloatingPointError, ModuleNotFoundError, Refusal)


def program() -> str:
    """What the user typed to start this process, as usage and errors name it: `train.py`, `python -m app`."""
    started, module = Path(sys.argv[0]), getattr(sys.modules["__main__"], "__spec__", None)
    if module is None or module.origin != str(started):
        return started.name
    return f"python -m {module.name.removesuffix('.__main__')}"


def processes_started() -> int:
    """How many processes of the command torchrun or accelerate launch started, 1 without them."""
    text = os.environ.get("WORLD_SIZE") or "1"
    if not text.isdecimal() or not int(text):
        raise Refusal(f"the environment variable WORLD_SIZE is {text!r}: expected a number of processes")
    return int(text)


def only_one_process(command: str) -> None:
    """Refuse several processes for what is one process's work."""
    if processes_started() > 1:
        raise Refusal(f"{command} is one process's work: start it with plain python, without torchrun")


def run_main(main: Callable[[], Any], own_debug: bool = False, several: bool = False) -> None:
    """Run a command's `main()` as a script.

    An expected error is printed as `error: …` on standard error, exit status 2; --debug shows its traceback. Everything
    else is a bug and shows it anyway. An integer that `main` returns is the exit status.

    Args:
        own_debug: the command has a flag --debug, which also does something else.
        several: processes may work together on it; it refuses more than one otherwise.
    """
    debug = DEBUG in sys.argv[1:]
    if debug and not own_debug:
        sys.argv = [sys.argv[0], *(word for word in sys.argv[1:] if word != DEBUG)]
    try:
        if not several:
            only_one_process(program())
        status = main()
    except EXPECTED as error:
        if debug:
            raise
        sys.exit(_refuse(error))
    if type(status) is int:
        sys.exit(status)


def _refuse(error: BaseException) -> int:
    # further lines are indented: nothing in a name can pass for a line of its own
    lines = [plain(line) for line in (str(error) or type(error).__name__).split("\n")]
    print("error: " + "\n  ".join(lines), file=sys.stderr)
    return REFUSED
