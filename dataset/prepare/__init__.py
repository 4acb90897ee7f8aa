"""From a dataset's folder, as published, to metadata rows. Each layout is one function in `dataset.prepare.layouts`."""

import logging
from collections.abc import Callable
from pathlib import Path

from dataset.constants import CLASS_NAMES, DATA_PATH, LABELS_ONLY
from dataset.folders import Scan
from dataset.prepare.layouts import scan_bmad, scan_mvtec, scan_polyps, scan_visa

# Every dataset not listed here, own ones included, is in MVTec's layout.
_SCANNERS: dict[str, Callable[[Scan, list[str]], list[dict]]] = {
    "VisA": scan_visa,
    "Brain": scan_bmad,
    "Liver": scan_bmad,
    "Retina": scan_bmad,
    "Colon_clinicDB": scan_polyps,
    "Colon_colonDB": scan_polyps,
    "Colon_Kvasir": scan_polyps,
    "Colon_cvc300": scan_polyps,
}
# Their masks are part of what is published; own datasets may have image labels only.
_WITH_MASKS = frozenset(DATA_PATH) - frozenset(LABELS_ONLY)


def scan(dataset_name: str, folder: Path, logger: logging.Logger) -> list[dict]:
    """Rows of the dataset's test split, in the order of its classes; paths relative to `folder`.

    Raises FileNotFoundError if the folder is not in the dataset's layout, and ValueError for anomalous images without
    a mask among others with one, naming the places looked at. A folder of anomalous images none of which has a mask
    is read as labels only, except in a dataset that was published with masks. One line of the log says what was read
    and what was left out.
    """
    found = Scan(folder)
    rows = _SCANNERS.get(dataset_name, scan_mvtec)(found, CLASS_NAMES[dataset_name])
    level = logging.WARNING if found.is_remarkable else logging.INFO
    logger.log(level, "%s: %s", folder, found.summary(rows))
    bare = [row["image_path"] for row in rows if row["label"] and "mask_path" not in row]
    if bare and dataset_name in _WITH_MASKS:
        raise ValueError(
            f"{len(bare)} anomalous images of {dataset_name} below {str(folder)!r} have no mask, such as {bare[0]}: "
            "it was published with masks; unpack all of it"
        )
    return rows
