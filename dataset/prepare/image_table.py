"""Rows from a CSV or TSV file of images, masks, labels and classes."""

from collections.abc import Sequence
from pathlib import Path

from dataset.folders import Scan, is_normal
from dataset.prepare.annotations import Own, chosen_split
from dataset.prepare.pictures import PicturesBelow
from dataset.prepare.reading import NOT_OF_SPLIT
from files.cells import NUMBER
from files.text import read_table

COLUMNS = {  # what a column of a table may be called
    "image": ("image", "image_path", "img_path", "image_file", "file", "file_name", "filename", "path"),
    "mask": ("mask", "mask_path", "mask_file", "ground_truth"),
    "label": ("label", "anomaly", "is_anomaly", "anomalous", "defect", "defective", "target"),
    "class": ("class", "class_name", "object", "category", "product"),
    "split": ("split", "set", "subset"),
}


def is_table(path: Path) -> bool:
    """Whether a file is a table with a column of images."""
    try:
        names = {name.strip().lower() for name in read_table(path, set())[0][1]}
    except (ValueError, IndexError):
        return False
    return not names.isdisjoint(COLUMNS["image"])


def table_rows(scan: Scan, pictures: PicturesBelow, table: Path, own: Own) -> list[dict]:
    """Rows of a CSV: columns image and, where there are, mask, label, class, split (further names: COLUMNS).

    A label is 0, 1, or a word, of which those of normal folders are 0. Without the column a picture with a mask is
    anomalous and one without is normal; several lines of one picture unite their masks.

    Raises:
        ValueError: no column of images, or a picture's lines contradict each other.
    """
    lines = read_table(table, set())
    columns = columns_of(table, [line for _, line in lines])
    split = chosen_split(
        [line[columns["split"]] for _, line in lines] if "split" in columns else [], own.split
    )
    rows: dict[str, dict] = {}
    for place, line in lines:
        cells = {kind: line[name].strip() for kind, name in columns.items()}
        if split is not None and cells["split"].lower() != split:
            scan.leave_out(NOT_OF_SPLIT, scan.folder / cells["image"])
            continue
        path = pictures.find(cells["image"], table.parent)
        if path is None:
            continue
        masks = [pictures.find(cells["mask"], table.parent)] if cells.get("mask") else []
        if None in masks:
            raise ValueError(
                f"{place}: mask {cells['mask']!r} is no picture below {scan.folder}: correct the path"
            )
        label = label_of(cells["label"], place) if "label" in cells else int(bool(masks))
        row = {"image_path": path, "class_name": cells.get("class") or own.class_name}
        row |= {} if label is None else {"label": label}
        before = rows.setdefault(path, row | {"masks": []})
        if any(before.get(key) != row.get(key) for key in ("label", "class_name")):
            raise ValueError(f"{place}: {path} stands there twice with another label or class: keep one line")
        before["masks"] += masks
    masks = {mask for row in rows.values() for mask in row["masks"]}
    pictures.rest({*rows, *masks}, "without a line in the table")
    return [with_masks(row) for row in rows.values()]


def columns_of(table: Path, lines: Sequence[dict[str, str]]) -> dict[str, str]:
    """{kind of COLUMNS: the table's own name of that column}. Raises ValueError without one of images."""
    names = list(lines[0]) if lines else []
    by_lower = {name.lower(): name for name in names}
    found = {
        kind: by_lower[name]
        for kind, known in COLUMNS.items()
        for name in reversed(known)
        if name in by_lower
    }
    if "image" not in found:
        raise ValueError(f"{table}: columns are {names}: expected one of {', '.join(COLUMNS['image'])}")
    return found


def label_of(text: str, place: str) -> int | None:
    """0, 1 or None (empty) of a label's cell; `place` for the message. Raises ValueError for another number."""
    known = {"": None, "0": 0, "0.0": 0, "false": 0, "no": 0, "1": 1, "1.0": 1, "true": 1, "yes": 1}
    if text.lower() in known:
        return known[text.lower()]
    if NUMBER.fullmatch(text):
        raise ValueError(
            f"{place}: label is {text}: expected 0 (normal), 1 (anomalous), a word, or nothing; correct it"
        )
    return int(not is_normal(text))


def with_masks(row: dict) -> dict:
    """A row of `table_rows` as metadata has it."""
    masks = list(dict.fromkeys(row.pop("masks")))
    return row | ({"mask_path": masks if len(masks) > 1 else masks[0]} if masks and row.get("label") else {})
