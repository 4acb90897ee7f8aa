"""From a dataset's folder, as published, to metadata rows: layouts and counts are tables in this package."""

import logging
from pathlib import Path

from dataset.constants import CLASS_NAMES, DATA_PATH, LABELS_ONLY
from dataset.folders import Scan
from dataset.prepare.layouts import LAYOUTS, MVTEC
from dataset.prepare.reading import scan_layout
from dataset.prepare.split_tables import TABLES

# Their masks are part of what is published; own datasets may have image labels only.
_WITH_MASKS = frozenset(DATA_PATH) - frozenset(LABELS_ONLY)


def scan(dataset_name: str, folder: Path, logger: logging.Logger) -> list[dict]:
    """Rows of the dataset's test split, in the order of its classes; paths relative to `folder`.

    Raises FileNotFoundError if the folder is not in the dataset's layout, and ValueError for anomalous images without
    a mask among others with one, naming the places looked at. A folder of anomalous images none of which has a mask
    is read as labels only, except in a dataset that was published with masks. One line of the log says what was read
    and what was left out.
    """
    found, classes = Scan(folder), CLASS_NAMES[dataset_name]
    converted, rows = is_converted(dataset_name, folder), None
    if dataset_name in TABLES and not converted:
        rows = TABLES[dataset_name](found, classes)
    if rows is None:
        layout = MVTEC if converted else LAYOUTS.get(dataset_name, MVTEC)
        rows = scan_layout(found, classes, layout)
    log_scan(found, rows, logger)
    bare = [row["image_path"] for row in rows if row["label"] and "mask_path" not in row]
    if bare and dataset_name in _WITH_MASKS:
        raise ValueError(
            f"{len(bare)} anomalous images of {dataset_name} below {str(folder)!r} have no mask, such as {bare[0]}: "
            "it was published with masks; unpack all of it"
        )
    return rows


def is_converted(dataset_name: str, folder: Path) -> bool:
    """Whether a copy of a set with another layout was converted to MVTec's."""
    return any((folder / class_name / MVTEC.pictures).is_dir() for class_name in CLASS_NAMES[dataset_name])


def log_scan(found: Scan, rows: list[dict], logger: logging.Logger) -> None:
    """The scan's line in the log, a warning where something was left out that may be missed."""
    level = logging.WARNING if found.is_remarkable else logging.INFO
    logger.log(level, "%s: %s", found.folder, found.summary(rows))
