"""Look through run folders, compare two, delete what is left over.

python -m run_folder list ckpt                       # every run below: kind, data, epochs, metrics, size
python -m run_folder show ckpt/visa                  # one run: where it comes from, settings, every evaluation
python -m run_folder diff ckpt/visa ckpt/cross       # settings, origin and metrics in which two differ
python -m run_folder clean ckpt --keep_last 3        # says what would go; with --yes it goes
"""

import argparse
from collections.abc import Iterator, Sequence
from logging import Logger
from typing import Any

from files.command import run_main
from files.logs import open_logger
from run_folder import overview as runs
from run_folder.flags import HelpFormatter, settings_of
from run_folder.leftovers import delete, leftovers
from run_folder.settings import CROSS_ATTENTION_GROUPS, MixSettings

ORIGIN = ("kind", "backbone", "rows", "prompts", "base")  # of a manifest, what two runs are compared in


def build_parser() -> argparse.ArgumentParser:
    """The four actions and their flags."""
    parser = argparse.ArgumentParser(
        prog="python -m run_folder", description=__doc__, formatter_class=HelpFormatter
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, places, about in (
        ("list", 1, "every run at or below a folder"),
        ("show", 1, "one run"),
        ("diff", 2, "what two runs differ in"),
        ("clean", 1, "delete what is left over of every run at or below a folder"),
    ):
        action = actions.add_parser(name, help=about, description=about, formatter_class=HelpFormatter)
        action.add_argument(
            "folders", nargs=places, metavar="DIR", help="run folder, or folder of run folders"
        )
        if name == "clean":
            action.add_argument(
                "--keep_last", type=int, help="numbered checkpoints that stay; default all of them"
            )
            action.add_argument(
                "--begun_epoch",
                action="store_true",
                help="also the state inside an epoch of an unfinished run",
            )
            action.add_argument("--yes", action="store_true", help="delete; without it nothing is")
    return parser


def listed(root: str) -> Iterator[str]:
    """One line per run."""
    rows = [["run", "kind", "data", "epochs", "size", "tested: pixel AUROC/AP · image AUROC/AP"]]
    for folder in runs.run_folders(root):
        try:
            run = runs.overview(folder)
            cells = [run.kind, run.data, run.epochs, runs.in_words(run.size), runs.last_metrics(run)]
        except (ValueError, LookupError, RuntimeError, OSError) as error:
            cells = ["not readable", *[runs.NONE] * 3, str(error)]
        rows.append([str(folder), *cells])
    yield runs.table(rows) if len(rows) > 1 else f"no run at or below {root}"


def shown(folder: str) -> Iterator[str]:
    """All that a run's text files say."""
    run = runs.overview(folder)
    yield f"{run.folder}: {run.kind}, {run.data}, epochs {run.epochs}, {runs.in_words(run.size)}"
    for number, start in enumerate(run.manifest.get("starts", ()), start=1):
        commit = start["git"].get("commit", "no commit known")[:12]
        changed = f" with {len(start['git']['changed'])} changed files" if start["git"].get("changed") else ""
        versions = ", ".join(f"{name} {number}" for name, number in list(start["versions"].items())[:3])
        yield f"start {number}, {start['at']}: {start['program']} {' '.join(start['flags'])}"
        yield f"  {commit}{changed}; {versions}; {start['machine']['device']}, {start['threads']} threads"
    for key in ORIGIN[1:]:
        if run.manifest.get(key):
            yield f"{key}: {runs.told(run.manifest[key])}"
    usual = settings_of(CROSS_ATTENTION_GROUPS | {"mix": MixSettings}, {}).record()
    moved = [
        f"--{key} {run.settings[key]}" for key in usual if run.settings.get(key, usual[key]) != usual[key]
    ]
    yield "settings that are not the default: " + (" ".join(moved) or "none")
    others = [
        f"--{key} {value}" for key, value in run.settings.items() if key not in usual and value is not None
    ]
    if others:
        yield "settings that its command alone has: " + " ".join(others)
    for data, entries in run.metrics.items():
        rows = [[f"on {data}", *runs.METRICS]]
        rows += [
            [file, *(runs.percent(mean.get(key)) for key in runs.METRICS)] for file, mean in entries.items()
        ]
        yield runs.table(rows)


def compared(first: str, second: str) -> Iterator[str]:
    """Settings, origin and metrics in which two runs differ."""
    one, other = runs.overview(first), runs.overview(second)
    rows = [["", str(one.folder), str(other.folder)]]
    rows += [
        [f"--{key}", *(_cell(run.settings, key) for run in (one, other))]
        for key in dict.fromkeys([*one.settings, *other.settings])
        if _cell(one.settings, key) != _cell(other.settings, key)
    ]
    for key in ORIGIN:
        rows += runs.differing(key, *(run.manifest.get(key, runs.NONE) for run in (one, other)))
    rows += [["epochs", one.epochs, other.epochs]] * (one.epochs != other.epochs)
    yield runs.table(rows) if len(rows) > 1 else "the same settings and origin"
    for data in one.metrics:
        if data in other.metrics:
            files, means = zip(
                *(runs.last_evaluation(run.metrics[data]) for run in (one, other)), strict=True
            )
            yield f"on {data}: first {files[0]}, second {files[1]}"
            yield runs.table([["on " + data, "first", "second", "difference"], *_differences(*means)])


def _cell(values: dict[str, Any], key: str) -> str:
    return str(values[key]) if key in values else runs.NONE


def _differences(first: dict[str, Any], second: dict[str, Any]) -> Iterator[list[str]]:
    for key in runs.METRICS:
        pair = [first.get(key), second.get(key)]
        change = runs.NONE if None in pair else f"{100 * (pair[1] - pair[0]):+.2f}"
        yield [key, *map(runs.percent, pair), change]


def cleaned(args: argparse.Namespace) -> Iterator[str]:
    """What goes, or would go."""
    total = 0
    for folder in runs.run_folders(args.folders[0]):
        found = leftovers(folder, args.keep_last, args.begun_epoch)
        for one in found:
            yield f"{one.path}: {one.why}, {runs.in_words(one.size)}"
        total += delete(folder, found) if args.yes and found else sum(one.size for one in found)
    yield f"{runs.in_words(total)} " + ("deleted" if args.yes else "would be deleted: say --yes to do it")


def main(argv: Sequence[str] | None = None, logger: Logger | None = None) -> None:
    args = build_parser().parse_args(argv)
    logger = logger or open_logger("run_folder")
    lines = {
        "list": lambda: listed(*args.folders),
        "show": lambda: shown(*args.folders),
        "diff": lambda: compared(*args.folders),
        "clean": lambda: cleaned(args),
    }[args.action]()
    for text in lines:
        for line in text.split("\n"):
            logger.info("%s", line)


if __name__ == "__main__":
    run_main(main)
