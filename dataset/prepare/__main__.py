"""Write a dataset's metadata file: python -m dataset.prepare --dataset MVTec --data_root DATA."""

import argparse
import logging
import sys
from pathlib import Path

from dataset import METADATA_FOLDER
from dataset.constants import DATA_PATH
from dataset.custom import load_dataset_config
from dataset.few_shot import select
from dataset.jsonl import write_rows
from dataset.paths import dataset_folder, resolve_data_root
from dataset.prepare import scan
from files.logs import open_logger

logger = logging.getLogger("dataset.prepare")


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
        default=METADATA_FOLDER,
        help="writes OUT/<dataset>/full-shot.jsonl (default: this project's metadata)",
    )
    parser.add_argument(
        "--shot", type=int, default=0, help="also write <shot>-shot.jsonl (default: 0, do not)"
    )
    parser.add_argument("--seed", type=int, default=111, help="choice of the few-shot images (%(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there already")
    args = parser.parse_args(argv)
    open_logger(logger.name)
    try:
        _write(args)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def _write(args: argparse.Namespace) -> None:
    if args.dataset_config:
        load_dataset_config(args.dataset_config)
    folder = dataset_folder(args.dataset, resolve_data_root(args.data_root))
    rows = scan(args.dataset, folder, logger)
    files = {"full-shot.jsonl": rows}
    if args.shot:
        files[f"{args.shot}-shot.jsonl"] = select(rows, args.shot, args.seed)
    targets = [Path(args.out) / args.dataset / name for name in files]
    present = [str(target) for target in targets if target.exists()]
    if present and not args.overwrite:
        raise ValueError(
            f"{', '.join(present)} exists: add --overwrite to replace it, or choose another --out"
        )
    for target, content in zip(targets, files.values(), strict=True):
        write_rows(content, target)
        logger.info("%s: %d rows, %d anomalous", target, len(content), sum(row["label"] for row in content))


if __name__ == "__main__":
    main()
