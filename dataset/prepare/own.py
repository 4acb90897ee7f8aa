"""Any folder of pictures: what layout it is in, and its rows.

Looked for are, in this order: annotations (COCO's JSON, YOLO's text files), folders of normal and defective pictures
with or without a folder `test` around and a folder per class above, and a table of images and masks.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from dataset.folders import Scan, is_normal
from dataset.prepare.annotations import TEST, Own, names_split
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
    "(good, normal, ok, … for pictures without defect), images/ and labels/ of YOLO, also in folders of splits, a JSON "
    "file of COCO, or a CSV file with a column image"
)


def own_rows(scan: Scan, own: Own) -> list[dict]:
    """Rows of a folder in whatever layout, masks from polygons written.

    Raises:
        FileNotFoundError: no layout that is known.
        ValueError: several, or one that contradicts itself.
    """
    annotations = own.annotations or found_annotations(scan, own.split)
    if annotations is not None:
        return rows_of_annotations(scan, annotations, own)
    folders, tree = found_tree(scan, own.class_name, own.split)
    if folders:
        return scan_tree(scan, folders, tree)
    tables = [path for path in files_in(scan.folder, ".csv", ".tsv") if is_table(path)]
    if len(tables) == 1:
        return rows_of_annotations(scan, tables[0], own)
    what = f"; {len(tables)} tables are there: name one with --annotations" if tables else ""
    what += f"; --split {own.split} is looked for as a folder of this name" if own.split is not None else ""
    raise FileNotFoundError(f"{str(scan.folder)!r} is in no layout that is known: expected {EXPECTED}{what}")


def rows_of_annotations(scan: Scan, annotations: Path, own: Own) -> list[dict]:
    """Rows by a file or folder of annotations."""
    pictures = PicturesBelow(scan)
    scan.notes.append(f"annotations from {annotations}")
    scan.read_beside(annotations)
    if annotations.is_dir():
        return yolo_rows(scan, pictures, annotations, own)
    if annotations.suffix.lower() == ".json":
        return coco_rows(scan, pictures, annotations, own)
    return table_rows(scan, pictures, annotations, own)


def found_annotations(scan: Scan, split: str | None = None) -> Path | None:
    """COCO's file or YOLO's folder of labels in a data set's folder, or in its folders of splits; of several splits'
    the wanted one's, `test` when None.

    Raises:
        ValueError: several of which none is that split's.
    """
    near = [scan.folder, *scan.folders(scan.folder)]
    coco = [path for folder in near for path in files_in(folder, ".json") if is_coco(path)]
    if coco:
        return _of_split(scan, coco, split, "files of COCO's form")
    labels = [scan.child(folder, "labels") for folder in near]
    return _of_split(
        scan, [path for path in labels if _is_yolo(scan, path)], split, "YOLO's folders of labels"
    )


def _of_split(scan: Scan, found: list[Path], split: str | None, kind: str) -> Path | None:
    """The one that is there, None without any; of several the one whose path names the split."""
    if len(found) < 2:
        return next(iter(found), None)
    own = [path for path in found if names_split(path.relative_to(scan.folder).as_posix(), split or TEST)]
    if len(own) != 1:
        raise ValueError(
            f"{len(found)} {kind}, such as {found[0]} and {found[1]}: name one with --annotations or its --split"
        )
    return own[0]


def _is_yolo(scan: Scan, labels: Path) -> bool:
    texts = labels.is_dir() and any(files_in(folder, ".txt") for folder in (labels, *scan.below(labels)))
    return texts and scan.child(labels.parent, "images").is_dir()


def found_tree(scan: Scan, class_name: str, split: str | None = None) -> tuple[dict[str, Path], Tree]:
    """({class: its folder}, layout below it), {} where there are no folders of normal and defective pictures.

    Args:
        split: folder of pictures to take; None for `test` where there is one, else all.
    """
    inside, of_test, flat = (
        scan.folders(scan.folder),
        Tree(split or TEST, MASK_FOLDERS),
        Tree("", MASK_FOLDERS, OTHER_SPLITS),
    )
    tested = {path.name: path for path in inside if scan.child(path, of_test.pictures).is_dir()}
    if tested or scan.child(scan.folder, of_test.pictures).is_dir():
        folders = tested or {class_name: scan.folder}
        _leave_out(scan, inside if tested else [], tested.values(), f"without a folder {of_test.pictures}")
        for path in folders.values():
            beside = [scan.child(path, name) for name in (of_test.pictures, *MASK_FOLDERS)]
            _leave_out(scan, scan.folders(path), beside, f"beside {of_test.pictures}")
        return folders, of_test
    if split is not None:
        return {}, of_test
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
