"""Any folder of pictures: what layout it is in, and its rows.

Looked for are, in this order: annotations (COCO's JSON, YOLO's text files), folders of normal and defective pictures
with or without a folder `test` around and a folder per class above, and a table of images and masks.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from dataset.folders import Scan, is_normal
from dataset.prepare.annotations import Own
from dataset.prepare.coco import coco_rows, is_coco
from dataset.prepare.image_table import is_table, table_rows
from dataset.prepare.layouts import Tree
from dataset.prepare.pictures import PicturesBelow
from dataset.prepare.reading import scan_tree
from dataset.prepare.yolo import yolo_rows

MASK_FOLDERS = ("ground_truth", "groundtruth", "gt", "masks", "mask", "labels", "label", "annotations")
OTHER_SPLITS = ("train", "training", "val", "valid", "validation")
EXPECTED = (
    "<class>/test/<good or a defect>/, test/<good or a defect>/, <class>/<good or a defect>/ or <good or a defect>/ "
    "(good, normal, ok, … for pictures without defect), images/ and labels/ of YOLO, a JSON file of COCO, or a CSV "
    "file with a column image"
)


def own_rows(scan: Scan, own: Own) -> list[dict]:
    """Rows of a folder in whatever layout, masks from polygons written.

    Raises:
        FileNotFoundError: no layout that is known.
        ValueError: several, or one that contradicts itself.
    """
    annotations = own.annotations or found_annotations(scan)
    if annotations is not None:
        return rows_of_annotations(scan, annotations, own)
    folders, tree = found_tree(scan, own.class_name)
    if folders:
        return scan_tree(scan, folders, tree)
    tables = [path for path in files_in(scan.folder, ".csv", ".tsv") if is_table(path)]
    if len(tables) == 1:
        return rows_of_annotations(scan, tables[0], own)
    what = f"; {len(tables)} tables are there: name one with --annotations" if tables else ""
    raise FileNotFoundError(f"{str(scan.folder)!r} is in no layout that is known: expected {EXPECTED}{what}")


def rows_of_annotations(scan: Scan, annotations: Path, own: Own) -> list[dict]:
    """Rows by a file or folder of annotations."""
    pictures = PicturesBelow(scan)
    scan.notes.append(f"annotations from {annotations}")
    if annotations.is_dir():
        return yolo_rows(scan, pictures, annotations, own)
    if annotations.suffix.lower() == ".json":
        return coco_rows(scan, pictures, annotations, own)
    return table_rows(scan, pictures, annotations, own)


def found_annotations(scan: Scan) -> Path | None:
    """COCO's file or YOLO's folder in a data set's folder; of several splits' files the test split's.

    Raises:
        ValueError: several files of which none is a test split's.
    """
    near = [scan.folder, *scan.folders(scan.folder)]
    coco = [path for folder in near for path in files_in(folder, ".json") if is_coco(path)]
    of_test = [path for path in coco if re.search(r"(^|[^a-z])test([^a-z]|$)", _below(scan, path))]
    if len(coco) > 1 and len(of_test) != 1:
        raise ValueError(
            f"{len(coco)} files of COCO's form, such as {coco[0]} and {coco[1]}: name one with --annotations"
        )
    if coco:
        return coco[0] if len(coco) == 1 else of_test[0]
    labels = scan.child(scan.folder, "labels")
    texts = labels.is_dir() and any(files_in(folder, ".txt") for folder in (labels, *scan.below(labels)))
    return labels if texts and scan.child(scan.folder, "images").is_dir() else None


def _below(scan: Scan, path: Path) -> str:
    return path.relative_to(scan.folder).as_posix().lower()


def found_tree(scan: Scan, class_name: str) -> tuple[dict[str, Path], Tree]:
    """({class: its folder}, layout below it), {} where there are no folders of normal and defective pictures."""
    inside, of_test, flat = (
        scan.folders(scan.folder),
        Tree(masks=MASK_FOLDERS),
        Tree("", MASK_FOLDERS, OTHER_SPLITS),
    )
    tested = {path.name: path for path in inside if scan.child(path, of_test.pictures).is_dir()}
    if tested or scan.child(scan.folder, of_test.pictures).is_dir():
        folders = tested or {class_name: scan.folder}
        _leave_out(scan, inside if tested else [], tested.values(), "without a folder test")
        for path in folders.values():
            beside = [scan.child(path, name) for name in (of_test.pictures, *MASK_FOLDERS)]
            _leave_out(scan, scan.folders(path), beside, "beside test")
        return folders, of_test
    if any(is_normal(path.name) for path in inside):
        return {class_name: scan.folder}, flat
    found = {path.name: path for path in inside if any(is_normal(one.name) for one in scan.folders(path))}
    _leave_out(scan, inside if found else [], found.values(), "without a folder of normal pictures")
    return found, flat


def _leave_out(scan: Scan, folders: Iterable[Path], taken: Iterable[Path], reason: str) -> None:
    taken = set(taken)
    for path in folders:
        if path not in taken:
            scan.leave_out(reason, path)


def files_in(folder: Path, *endings: str) -> list[Path]:
    """The files of some endings directly in a folder, without hidden ones."""
    found = (
        sorted(path for path in folder.iterdir() if path.suffix.lower() in endings) if folder.is_dir() else []
    )
    return [path for path in found if path.is_file() and not path.name.startswith(".")]


def entry_of(path: str, domain: str, classes: Sequence[str]) -> dict:
    """A data set's entry for --dataset_config, whose rows lie beside it; every class is called by its own name."""
    return {
        "path": path,
        "domain": domain,
        "classes": {one: one.replace("_", " ").strip() or one for one in classes},
        "metadata": "full-shot.jsonl",
    }
