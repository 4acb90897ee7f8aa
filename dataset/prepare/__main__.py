"""Write a dataset's metadata file: python -m dataset.prepare --dataset MVTec --data_root DATA.

ELPV and Textile come inside pip packages (requirements-datasets.txt): their pictures are unpacked to the data root
first, and their metadata lies beside them.
"""

import argparse
import logging
from pathlib import Path

from dataset import METADATA_FOLDER
from dataset.constants import CLASS_NAMES, DATA_PATH
from dataset.custom import load_dataset_config
from dataset.few_shot import select
from dataset.jsonl import check_rows, write_rows
from dataset.paths import DataFolder, make_data_root, resolve_data_root
from dataset.prepare import scan
from dataset.prepare.packages import PACKAGES, unpack
from files.command import run_main
from files.logs import open_logger


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m dataset.prepare", description=__doc__)
    parser.add_argument(
        "--dataset", required=True, help=f"one of {', '.join(DATA_PATH)}, or one of --dataset_config"
    )
    parser.add_argument(
        "--data_root", help="folder that holds all datasets (default: $AACLIP_DATA, else ./data)"
    )
    parser.add_argument("--dataset_config", help="JSON or YAML file that declares datasets of your own")
    parser.add_argument(
        "--out",
        help="writes OUT/<dataset>/full-shot.jsonl (default: this project's metadata; ELPV, Textile: the data root)",
    )
    parser.add_argument(
        "--shot", type=int, default=0, help="also write <shot>-shot.jsonl (default: 0, do not)"
    )
    parser.add_argument("--seed", type=int, default=111, help="choice of the few-shot images (%(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there already")
    args = parser.parse_args(argv)
    _write(args, open_logger("dataset.prepare"))


def _write(args: argparse.Namespace, logger: logging.Logger) -> None:
    if args.dataset_config:
        load_dataset_config(args.dataset_config)
    packaged = args.dataset in PACKAGES
    root = make_data_root(args.data_root) if packaged else resolve_data_root(args.data_root)
    out = Path(args.out or (root if packaged else METADATA_FOLDER)) / args.dataset
    names = ["full-shot.jsonl", *([f"{args.shot}-shot.jsonl"] if args.shot else [])]
    present = [str(out / name) for name in names if (out / name).exists()]
    if present and not args.overwrite:
        raise ValueError(
            f"{', '.join(present)} exists: add --overwrite to replace it, or choose another --out"
        )
    if packaged:
        rows = unpack(args.dataset, root / DATA_PATH[args.dataset], logger)
    else:
        data = DataFolder(args.dataset, root)
        rows = scan(args.dataset, data.folder, logger)
        source = f"scan of {data.folder}"
        numbered = [(f"{source}, row {number}", row) for number, row in enumerate(rows, start=1)]
        # What a command that reads the rows would refuse is not written.
        check_rows(numbered, CLASS_NAMES[args.dataset], data, source, logger)
    contents = [rows, *([select(rows, args.shot, args.seed)] if args.shot else [])]
    for name, content in zip(names, contents, strict=True):
        write_rows(content, out / name)
        anomalous = [row for row in content if row["label"]]
        bare = sum("mask_path" not in row for row in anomalous)
        logger.info(
            "%s: %d rows, %d anomalous%s",
            out / name,
            len(content),
            len(anomalous),
            f", {bare} of them without a mask" if bare else "",
        )


if __name__ == "__main__":
    run_main(main)
