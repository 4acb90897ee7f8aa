"""Rows from YOLO's folders images/ and labels/, masks from its polygons."""

from pathlib import Path

from dataset.folders import Scan, is_normal
from dataset.prepare.annotations import (
    Outlines,
    Own,
    chosen_split,
    header_or_none,
    note_unknown_places,
    outlined_row,
    points_of,
)
from dataset.prepare.pictures import PicturesBelow
from dataset.prepare.polygons import polygon_mask
from dataset.prepare.reading import NOT_OF_SPLIT
from files.text import counted, read_mapping, read_text, shown


def yolo_rows(scan: Scan, pictures: PicturesBelow, labels: Path, own: Own) -> list[dict]:
    """Rows of YOLO's folders images/ and labels/, with or without a split below: a line `category x1 y1 x2 y2 …` in
    shares of the picture is a defect's outline, `category x y width height` a box; no line or no file is normal.

    Names of categories stand in data.yaml beside them or in the data set's folder; one with a normal name is no defect.

    Raises:
        FileNotFoundError: no folder images beside the labels.
        ValueError: a line of another form.
    """
    images = scan.child(labels.parent, "images")
    if not images.is_dir():
        raise FileNotFoundError(
            f"{str(labels)!r} has no folder images beside it: expected YOLO's images and labels"
        )
    begin = images.relative_to(scan.folder).as_posix() + "/"
    normal = normal_categories(scan, labels.parent)
    inside = [path.removeprefix(begin) for path in pictures.paths if path.startswith(begin)]
    splits = [path.split("/")[0] for path in inside if "/" in path]
    is_wanted = own.split is not None and labels.parent.name.lower() == own.split.lower()
    split = None if is_wanted else chosen_split(splits, own.split)
    rows, without_file = [], 0
    for name in inside:
        if split is not None and name.split("/")[0].lower() != split:
            scan.leave_out(NOT_OF_SPLIT, images / name)
            continue
        text = (labels / name).with_suffix(".txt")
        without_file += not text.is_file()
        scan.read_beside(text)
        header = header_or_none(scan, begin + name, text)
        if header is None:
            continue
        found = yolo_outlines(text, normal, *header.upright_size) if text.is_file() else Outlines([], 0)
        rows.append(outlined_row(begin + name, found, own))
    if without_file:
        scan.notes.append(f"{counted(without_file, 'picture')} without a file of labels, taken as normal")
    pictures.rest({begin + name for name in inside}, "beside images")
    note_unknown_places(scan, rows)
    return rows


def normal_categories(scan: Scan, folder: Path) -> set[str]:
    """The numbers of categories with a normal name, by the first data.yaml of a folder and the data set's."""
    files = [one / name for one in (folder, scan.folder) for name in ("data.yaml", "dataset.yaml")]
    file = next((path for path in files if path.is_file()), None)
    if file is not None:
        scan.read_beside(file)
    names = read_mapping(file, "YOLO's keys to values").get("names", {}) if file else {}
    numbered = names.items() if isinstance(names, dict) else enumerate(names)
    return {str(number) for number, name in numbered if is_normal(str(name))}


def yolo_outlines(text: Path, normal: set[str], width: int, height: int) -> Outlines:
    """The defects of one picture, by its file of labels."""
    masks, without = [], 0
    for number, line in enumerate(read_text(text).split("\n"), start=1):
        category, *cells = line.split() or [""]
        if not category or category in normal:
            continue
        try:
            values = [float(cell) for cell in cells]
            if not all(-0.01 <= value <= 1.01 for value in values):
                raise ValueError("expected shares of the picture, between 0 and 1")
            if len(values) == 4:
                without += 1
                continue
            masks.append(polygon_mask(points_of(values) * (width, height), width, height))
        except ValueError as error:
            raise ValueError(f"{text}:{number}: {shown(line)}: {error}; correct it") from error
    return Outlines(masks, without)
