"""Remake every study's table from the runs kept in results/, each by the command in its own first lines.

    python -m studies.tables

Nothing is rendered or trained: a table follows the runs' JSON files and how they are compared.
"""

import argparse
import importlib
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from files.command import run_main
from studies import pooled, real_images
from studies.arm_runs import ROOT

RESULTS = ROOT / "results"
COMMAND = re.compile(r"^    python -m (studies\.\w+) (.*)$", re.MULTILINE)
DEPTH = {"studies.evidence": 2, "studies.arms": 2}  # folders between --out and the table; one for the others


def remake(table: Path) -> None:
    """Write a table.md again.

    Raises:
        ValueError: it names no study's command.
    """
    command = COMMAND.search(table.read_text(encoding="utf-8"))
    if command is None:
        raise ValueError(
            f'{table}: expected a line "    python -m studies.NAME FLAGS" that made it; write it there, or delete '
            "the table"
        )
    module, flags = command.groups()
    out = table.parents[DEPTH.get(module, 1) - 1]
    importlib.import_module(module).main([*shlex.split(flags), "--out", str(out), "--tables_only"])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args(argv)
    for table in sorted(RESULTS.rglob("table.md")):
        if "reliability" in table.parts:
            continue  # what `make test-reliability` counts
        print(f"\n{table.relative_to(RESULTS)}")
        remake(table)
    evidence = RESULTS / "evidence"
    if (evidence / "pooled.md").is_file():
        pooled.main(["--results", str(evidence)])
    photographs = RESULTS / "real_images"
    if photographs.is_dir():
        real_images.main(["--out", str(photographs), "--tables_only"])


if __name__ == "__main__":
    run_main(main)
