"""The published folder layouts: one function each, (scan, classes) -> rows of the test split.

Rows have `image_path` and `mask_path` relative to the folder, `label` and `class_name`; a folder of defects without
any mask gives rows without `mask_path`, whose defects are in unknown places. Several masks of one picture are a list.
Images and masks may have any of `dataset.folders.IMAGE_ENDINGS`, in any case, and any size; see
`dataset.folders.masks_of` for the names of masks.
"""

from pathlib import Path

from dataset.folders import IMAGE_ENDINGS, Scan, is_normal, masks_of
from files.foreign_paths import composed
from files.text import read_table

_PROBLEMS_SHOWN = 5


def scan_mvtec(scan: Scan, classes: list[str]) -> list[dict]:
    """<class>/test/<good or a defect>/NNN.png with <class>/ground_truth/<defect>/NNN_mask.png.

    MVTec AD, MVTec LOCO AD, MPDD and the demo sets; `ok` stands for `good` in BTAD, whose defects are in `ko`. Other
    usual names of folders of normal pictures are known too, see `dataset.folders.is_normal`.
    """
    _note_other_classes(scan, classes)
    rows, empty, without_normal = [], [], []
    for class_name, own in _present_classes(scan, classes, "test").items():
        for path in scan.pictures(own / "test"):
            scan.leave_out("beside the folders of test", path)
        groups = scan.folders(own / "test")
        for group in groups:
            masks = scan.child(own / "ground_truth", group.name)
            found = (
                _normal_rows(scan, group, class_name)
                if is_normal(group.name)
                else _anomalous_rows(scan, group, masks, class_name)
            )
            rows += found
            empty += [] if found else [group.relative_to(scan.folder).as_posix()]
        if not any(is_normal(group.name) for group in groups):
            without_normal.append(class_name)
    if empty:
        scan.notes.append(f"folders without a picture: {', '.join(empty)}")
    if without_normal:
        scan.notes.append(
            f"no folder of normal pictures (good, normal, ok, …) in {', '.join(without_normal)}"
        )
    return _require_rows(rows, scan, "<class>/test/<good or a defect>/*.png")


def scan_visa(scan: Scan, classes: list[str]) -> list[dict]:
    """The test rows of split_csv/1cls.csv (columns object, split, label, image, mask), VisA's own split.

    A copy converted to MVTec's layout is read as such. Without split_csv, every image below
    <class>/Data/Images/{Normal,Anomaly} is taken, with masks in <class>/Data/Masks/Anomaly.
    """
    if any((scan.folder / class_name / "test").is_dir() for class_name in classes):
        return scan_mvtec(scan, classes)
    table = scan.folder / "split_csv" / "1cls.csv"
    if table.is_file():
        return _require_rows(
            _rows_of_split(table, classes), scan, "rows with split 'test' in split_csv/1cls.csv"
        )
    scan.notes.append(f"{table} is missing: all of VisA's images are used, not its test split")
    rows = []
    for class_name, own in _present_classes(scan, classes, "Data").items():
        data = own / "Data"
        rows += _normal_rows(scan, data / "Images" / "Normal", class_name)
        rows += _anomalous_rows(scan, data / "Images" / "Anomaly", data / "Masks" / "Anomaly", class_name)
    return _require_rows(rows, scan, "<class>/Data/Images/{Normal,Anomaly}/*.JPG")


def scan_bmad(scan: Scan, classes: list[str]) -> list[dict]:
    """test/good/img and test/Ungood/{img,label}: the medical sets of BMAD, one class each."""
    (class_name,) = classes
    good, ungood = (scan.child(scan.folder / "test", name) for name in ("good", "ungood"))
    rows = _normal_rows(scan, scan.child(good, "img"), class_name)
    rows += _anomalous_rows(scan, scan.child(ungood, "img"), scan.child(ungood, "label"), class_name)
    return _require_rows(rows, scan, "test/{good,Ungood}/{img,label}/*.png")


def scan_polyps(scan: Scan, classes: list[str]) -> list[dict]:
    """images + masks (CVC-ClinicDB as published: Original + Ground Truth), one class, every image anomalous."""
    (class_name,) = classes
    images, masks = scan.child(scan.folder, "images"), scan.child(scan.folder, "masks")
    if not images.is_dir():
        images, masks = scan.child(scan.folder, "original"), scan.child(scan.folder, "ground truth")
    return _require_rows(
        _anomalous_rows(scan, images, masks, class_name), scan, "images/*.png and masks/*.png"
    )


def _normal_rows(scan: Scan, images: Path, class_name: str) -> list[dict]:
    return [
        {"image_path": image.relative_to(scan.folder).as_posix(), "label": 0, "class_name": class_name}
        for image in _pictures(scan, images)
    ]


def _pictures(scan: Scan, images: Path) -> list[Path]:
    for path in scan.folders(images):
        scan.leave_out("folders among pictures", path)
    return scan.pictures(images)


def _anomalous_rows(scan: Scan, images: Path, masks: Path, class_name: str) -> list[dict]:
    pictures = _pictures(scan, images)
    by_stem = masks_of(scan, masks, [image.stem for image in pictures])
    rows, without_mask = [], []
    for image in pictures:
        row = {"image_path": image.relative_to(scan.folder).as_posix(), "label": 1, "class_name": class_name}
        own = [mask.relative_to(scan.folder).as_posix() for mask in by_stem.get(image.stem, [])]
        if own:
            row["mask_path"] = own if len(own) > 1 else own[0]
        elif by_stem:
            without_mask.append(str(image))
        rows.append(row)
    if without_mask:
        raise ValueError(
            f"{len(without_mask)} anomalous images have no mask, such as {', '.join(without_mask[:_PROBLEMS_SHOWN])}: "
            "expected <name>_mask.png or <name>.png (any image ending), or a folder of masks of one of these names, "
            f"in {masks}; add it, move the image away, or write rows of your own, without mask_path where nobody knows "
            "the defect's place"
        )
    return rows


def _rows_of_split(table: Path, classes: list[str]) -> list[dict]:
    rows = []
    for _, line in read_table(table, {"object", "split", "label", "image", "mask"}):
        if line["split"] != "test":
            continue
        row = {
            "image_path": line["image"],
            "label": int(line["label"] != "normal"),
            "class_name": line["object"],
        }
        if row["label"]:
            row["mask_path"] = line["mask"]
        rows.append(row)
    # Classes nobody knows sort last and are reported, with their lines, when the rows are checked.
    order = {class_name: position for position, class_name in enumerate(classes)}
    return sorted(rows, key=lambda row: order.get(row["class_name"], len(order)))


def _present_classes(scan: Scan, classes: list[str], child: str) -> dict[str, Path]:
    """{class: its folder} of those that have a folder `child`."""
    folders = {name: scan.spelled(scan.folder, name) for name in classes}
    present = {name: own for name, own in folders.items() if (own / child).is_dir()}
    absent = [name for name in classes if name not in present]
    if not present:
        raise FileNotFoundError(
            f"{str(scan.folder)!r} holds no folder <class>/{child}: expected one or more of {', '.join(classes)}; "
            "unpack the dataset there as it was published, or write a metadata file"
        )
    if absent:
        scan.notes.append(f"no folder <class>/{child} for {', '.join(absent)}: left out")
    for own in present.values():
        if own.is_symlink():
            scan.notes.append(f"{own.name} is a link to {own.resolve()}: followed")
    return present


def _note_other_classes(scan: Scan, classes: list[str]) -> None:
    known = {composed(name) for name in classes}
    others = [
        path.name
        for path in scan.folders(scan.folder)
        if composed(path.name) not in known and (path / "test").is_dir()
    ]
    if others:
        scan.notes.append(
            f"{', '.join(others)} are not among the dataset's classes: left out (declare your own dataset with "
            "--dataset_config)"
        )


def _require_rows(rows: list[dict], scan: Scan, layout: str) -> list[dict]:
    if not rows:
        raise FileNotFoundError(
            f"no images found below {str(scan.folder)!r}: expected {layout} "
            f"({', '.join(sorted(IMAGE_ENDINGS))}); {scan.summary(rows)}; unpack the dataset there as it was "
            "published, or write a metadata file"
        )
    return rows
