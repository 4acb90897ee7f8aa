"""Write a dataset's metadata: python -m dataset.prepare MVTec --root DATA.

A built-in set is checked against its published layout and counts. Any other name is a set of your own: --root is its
folder, in nearly any layout (docs/own-data.md), and beside its rows lies the entry for --dataset_config. ELPV and
Textile come inside pip packages (requirements-datasets.txt): their pictures are unpacked to --root first.
"""

import argparse
import json
import logging
from pathlib import Path

from dataset import METADATA_FOLDER
from dataset.constants import CLASS_NAMES, DATA_PATH
from dataset.custom import load_dataset_config, register_dataset
from dataset.few_shot import select
from dataset.folders import Scan
from dataset.jsonl import check_rows, write_rows
from dataset.paths import DataFolder, make_data_root, resolve_data_root
from dataset.prepare import log_scan, scan
from dataset.prepare.annotations import Own
from dataset.prepare.own import entry_of, own_rows
from dataset.prepare.packages import PACKAGES, unpack
from dataset.prepare.published import check_published, say_counts
from files.atomic import write_text
from files.command import run_main
from files.logs import open_logger
from files.nearest import do_you_mean

OWN_FLAGS = ("annotations", "class_name", "domain", "split")  # of sets that are not built in


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    names = [name for name in (args.name, args.dataset) if name is not None]
    if len(set(names)) != 1:
        raise ValueError(f"{len(names)} names of a dataset, {', '.join(names) or 'none'}: give one")
    args.dataset = names[0]
    _write(args, open_logger("dataset.prepare"))


def build_parser() -> argparse.ArgumentParser:
    """The flags of this command."""
    parser = argparse.ArgumentParser(
        prog="python -m dataset.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "name",
        nargs="?",
        help=f"one of {', '.join(DATA_PATH)}, one of --dataset_config, or a new name for a folder of your own",
    )
    parser.add_argument("--dataset", help="the same, as a flag")
    parser.add_argument("--root", help="the folder that holds all datasets, or this dataset's own folder")
    parser.add_argument(
        "--data_root", help="folder that holds all datasets (default: $AACLIP_DATA, else ./data)"
    )
    parser.add_argument("--dataset_config", help="JSON or YAML file that declares datasets of your own")
    parser.add_argument(
        "--out",
        help="writes OUT/<dataset>/full-shot.jsonl (default: this project's metadata; ELPV, Textile: the data root)",
    )
    parser.add_argument(
        "--shot",
        type=int,
        nargs="+",
        default=[],
        help="also write <shot>-shot.jsonl, one or several (default: none)",
    )
    parser.add_argument("--seed", type=int, default=111, help="choice of the few-shot images (%(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there already")
    parser.add_argument("--strict", action="store_true", help="refuse a set that is not as published")
    own = parser.add_argument_group("a folder of your own")
    own.add_argument(
        "--annotations",
        help="CSV of images and masks, COCO's JSON, or YOLO's folder labels (default: looked for)",
    )
    own.add_argument("--class_name", help="what a set without folders of classes shows (default: its name)")
    own.add_argument(
        "--domain", choices=("Industrial", "Medical"), help="decides the blur of test maps (Industrial)"
    )
    own.add_argument(
        "--split", help="take this split's pictures (default: test where there is one, else all)"
    )
    return parser


def _write(args: argparse.Namespace, logger: logging.Logger) -> None:
    declared = load_dataset_config(args.dataset_config) if args.dataset_config else []
    is_own = args.dataset not in DATA_PATH and args.root is not None
    given = [f"--{flag}" for flag in OWN_FLAGS if getattr(args, flag) is not None]
    if given and not is_own:
        raise ValueError(
            f"{', '.join(given)}: for a folder of your own, with a new name and --root FOLDER; {args.dataset} is "
            + ("declared in --dataset_config" if args.dataset in declared else "built in")
        )
    same = [name for name in DATA_PATH if name.casefold() == args.dataset.casefold() and is_own]
    if same:
        raise ValueError(
            f"{args.dataset!r} is {same[0]!r} in other capitals: write that, or choose another name"
        )
    packaged = args.dataset in PACKAGES
    root = args.root or args.data_root
    out = Path(args.out or (make_data_root(root) if packaged else METADATA_FOLDER)) / args.dataset
    shots = sorted({shot for shot in args.shot if shot})
    names = ["full-shot.jsonl", *(f"{shot}-shot.jsonl" for shot in shots)]
    present = [str(out / name) for name in names if (out / name).exists()]
    if present and not args.overwrite:
        raise ValueError(
            f"{', '.join(present)} exists: add --overwrite to replace it, or choose another --out"
        )
    if packaged:
        rows = unpack(args.dataset, make_data_root(root) / DATA_PATH[args.dataset], logger)
    else:
        rows = _own_set(args, out, logger) if is_own else _known_set(args, logger)
    say_counts(rows, logger)
    if not is_own:
        check_published(args.dataset, rows, args.strict, logger)
    labelled = [row for row in rows if row.get("label") is not None]
    contents = [rows, *(select(labelled, shot, args.seed) for shot in shots)]
    for name, content in zip(names, contents, strict=True):
        _write_file(out / name, content, logger)
    if is_own:
        _say_how_to_use(args, out, logger)


def _known_set(args: argparse.Namespace, logger: logging.Logger) -> list[dict]:
    """Checked rows of a built-in or declared set. Raises ValueError, FileNotFoundError."""
    given = Path(args.root) if args.root is not None else None
    if given is not None and args.dataset in DATA_PATH and not (given / DATA_PATH[args.dataset]).is_dir():
        if not given.is_dir():
            raise FileNotFoundError(
                f"--root {args.root!r} is not a folder: name the dataset's, or one around it"
            )
        logger.info(
            "%s: %s is read as the dataset's own folder; other commands look for it at DATA_ROOT/%s: link or move it",
            args.dataset,
            given,
            DATA_PATH[args.dataset],
        )
        data = DataFolder(args.dataset, given.resolve().parent, folder=given)
    else:
        data = DataFolder(args.dataset, given or resolve_data_root(args.data_root))
    rows = scan(args.dataset, data.folder, logger)
    _check(rows, args.dataset, data, logger)
    return rows


def _own_set(args: argparse.Namespace, out: Path, logger: logging.Logger) -> list[dict]:
    """Checked rows of any folder; its entry for --dataset_config and masks from outlines are written beside them."""
    folder = Path(args.root).resolve()
    near = do_you_mean(args.dataset, DATA_PATH)
    logger.info("%s: no built-in set%s: %s is read as a folder of your own", args.dataset, near, folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"--root {args.root!r} is not a folder: name the one that holds the pictures")
    found = Scan(folder)
    annotations = None if args.annotations is None else Path(args.annotations).resolve()
    if annotations is not None and not annotations.exists():
        inside = Path(args.root) / args.annotations
        hint = f"; do you mean {inside}?" if inside.exists() else ""
        raise FileNotFoundError(
            f"--annotations {args.annotations!r}: there is no such file or folder in {Path.cwd()}{hint}"
        )
    own = Own(args.class_name or args.dataset, annotations, args.split, out / "masks")
    rows = own_rows(found, own)
    log_scan(found, rows, logger)
    classes = list(dict.fromkeys(row["class_name"] for row in rows))
    entry = entry_of(folder.name, args.domain or "Industrial", classes)
    register_dataset(args.dataset, *(entry[key] for key in ("path", "domain", "classes")))
    _check(rows, args.dataset, DataFolder(args.dataset, folder.parent, beside=out), logger)
    write_text(out / "dataset.json", json.dumps({args.dataset: entry}, indent=1, ensure_ascii=False) + "\n")
    return rows


def _check(rows: list[dict], dataset: str, data: DataFolder, logger: logging.Logger) -> None:
    """What a command that reads the rows would refuse is not written."""
    source = f"scan of {data.folder}"
    numbered = [(f"{source}, row {number}", row) for number, row in enumerate(rows, start=1)]
    check_rows(numbered, CLASS_NAMES[dataset], data, source, logger)


def _write_file(path: Path, rows: list[dict], logger: logging.Logger) -> None:
    write_rows(rows, path)
    anomalous = [row for row in rows if row.get("label")]
    bare = sum("mask_path" not in row for row in anomalous)
    without = f", {bare} of them without a mask" if bare else ""
    logger.info("%s: %d rows, %d anomalous%s", path, len(rows), len(anomalous), without)


def _say_how_to_use(args: argparse.Namespace, out: Path, logger: logging.Logger) -> None:
    logger.info(
        "%s: what the classes are called in prompts; reword it. Then: python test.py --dataset %s --dataset_config %s "
        "--data_root %s",
        out / "dataset.json",
        args.dataset,
        out / "dataset.json",
        Path(args.root).resolve().parent,
    )


if __name__ == "__main__":
    run_main(main)
