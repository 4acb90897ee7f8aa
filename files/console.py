"""Console commands: `aaclip-train` runs train.py, `aaclip-test` runs test.py, and so on, with the same words."""

import runpy
import sys
from pathlib import Path

PREFIX = "aaclip-"
ROOT = Path(__file__).parent.parent


def run_script() -> None:
    """Run the script that this process's command is named after.

    By its path, because a module called `test` is Python's own.
    """
    name = Path(sys.argv[0]).stem.removeprefix(PREFIX).replace("-", "_")
    runpy.run_path(str(ROOT / f"{name}.py"), run_name="__main__")
