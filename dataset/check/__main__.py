"""Read a data set once and list everything that is odd about it: python -m dataset.check --dataset NAME.

Exit status: 0 nothing but notes, 1 problems (the table's first lines), 2 the check could not run (unknown data set,
missing folder).
"""

import argparse
import logging
import os
from pathlib import Path

from dataset import get_dataset
from dataset.check import as_json, check_dataset, duplicates, summary, table
from dataset.constants import DATA_PATH
from dataset.custom import load_dataset_config
from dataset.findings import Finding
from dataset.image_files import Reading
from dataset.mask_values import MASK_READINGS, MEANINGS, mask_reading_of
from dataset.paths import DataFolder, resolve_data_root
from files.atomic import write_text
from files.command import run_main
from files.logs import open_logger

CLEAN, PROBLEMS = 0, 1


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m dataset.check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--dataset",
        required=True,
        nargs="+",
        help=f"of {', '.join(DATA_PATH)}, or of --dataset_config; pictures are also compared across several",
    )
    parser.add_argument(
        "--data_root", help="folder that holds all datasets (default: $AACLIP_DATA, else ./data)"
    )
    parser.add_argument("--dataset_config", help="JSON or YAML file that declares datasets of your own")
    parser.add_argument(
        "--img_size", type=int, default=518, help="side that masks are resized to (%(default)s)"
    )
    parser.add_argument(
        "--mask_reading", choices=MASK_READINGS, help="as in training and testing (default: the data set's)"
    )
    parser.add_argument("--json", help="also write everything that was found to this file")
    parser.add_argument(
        "--workers", type=int, default=min(8, os.cpu_count() or 1), help="files read at once (%(default)s)"
    )
    args = parser.parse_args(argv)
    logger = open_logger("dataset.check")
    return _check(args, logger)


def _check(args: argparse.Namespace, logger: logging.Logger) -> int:
    for option, value in (("--img_size", args.img_size), ("--workers", args.workers)):
        if value < 1:
            raise ValueError(f"{option} is {value}: expected a positive number")
    if args.dataset_config:
        load_dataset_config(args.dataset_config)
    root = resolve_data_root(args.data_root)
    checked, refused = [], []
    for name in args.dataset:
        try:
            sets = get_dataset(name, 1, None, 0, "test", logger, data_root=root, look=False)
        except (ValueError, FileNotFoundError) as error:
            if not hasattr(error, "problems"):
                raise
            refused += [Finding("refused row", source, source, text) for source, text in error.problems]
            continue
        samples = [sample for one in sets.values() for sample in one.samples]
        reading = Reading(mask_reading_of(name, args.mask_reading))
        if any(sample.mask_path for sample in samples):
            logger.info("%s: masks are read %s: %s", name, reading.masks, MEANINGS[reading.masks])
        data = DataFolder(name, root)
        checked.append(check_dataset(name, samples, reading, args.img_size, data, args.workers))
    findings = refused + [one for each in checked for one in each.findings] + duplicates(checked)
    content = summary(checked, findings, args.img_size)
    if args.json:
        write_text(Path(args.json), as_json(content))
    if findings:
        for line in table(findings).split("\n"):
            logger.info("%s", line)
    logger.info(
        "%s: %d images, %d masks, %d problems, %d notes",
        ", ".join(args.dataset),
        sum(one["images"] for one in content["datasets"]),
        sum(one["masks"] for one in content["datasets"]),
        content["problems"],
        content["notes"],
    )
    return PROBLEMS if content["problems"] else CLEAN


if __name__ == "__main__":
    run_main(main)
