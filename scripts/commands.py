"""Commands run in this process as a user types them."""

import runpy
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run_command(name: str, argv: Sequence[str]) -> None:
    """Run a command of the repository's root; what it raises is raised here.

    Args:
        name: its file, for instance "train.py".
        argv: the words behind it.
    """
    runpy.run_path(str(ROOT / name))["main"](argv)
