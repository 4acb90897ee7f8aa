"""Evaluate a run (or unadapted CLIP) on a dataset: table, metrics.json, metrics.csv, scores to compare, pictures."""

from collections.abc import Sequence
from typing import Any

from evaluation.run import DEFAULTS, GROUPS, evaluate_run
from files.command import run_main
from run_folder.flags import parse


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    return evaluate_run(parse(__doc__, GROUPS, argv, DEFAULTS))


if __name__ == "__main__":
    run_main(main, several=True)
