"""The published folder layouts: one function each, (folder, classes, logger) -> rows of the test split.

Rows have `image_path` and `mask_path` relative to the folder, `label` and `class_name`; a folder of defects without
any mask gives rows without `mask_path`, whose defects are in unknown places. Images may be PNG, JPEG, BMP
or TIFF in any case and of any size; a mask has its image's stem, or the stem and `_mask`, and any of these endings.
"""

import csv
import logging
from pathlib import Path

IMAGE_ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}
_PROBLEMS_SHOWN = 5


def scan_mvtec(folder: Path, classes: list[str], logger: logging.Logger) -> list[dict]:
    """<class>/test/<good or a defect>/NNN.png with <class>/ground_truth/<defect>/NNN_mask.png.

    MVTec AD, MPDD and the demo sets; `ok` stands for `good` in BTAD, whose defects are in `ko`.
    """
    _warn_of_other_classes(folder, classes, logger)
    rows = []
    for class_name in _present_classes(folder, classes, "test", logger):
        for group in sorted(path for path in (folder / class_name / "test").iterdir() if path.is_dir()):
            if group.name.lower() in ("good", "ok"):
                rows += _normal_rows(folder, group, class_name)
            else:
                masks = folder / class_name / "ground_truth" / group.name
                rows += _anomalous_rows(folder, group, masks, class_name)
    return _require_rows(rows, folder, "<class>/test/<good or a defect>/*.png")


def scan_visa(folder: Path, classes: list[str], logger: logging.Logger) -> list[dict]:
    """The test rows of split_csv/1cls.csv (columns object, split, label, image, mask), VisA's own split.

    A copy converted to MVTec's layout is read as such. Without split_csv, every image below
    <class>/Data/Images/{Normal,Anomaly} is taken, with masks in <class>/Data/Masks/Anomaly.
    """
    if any((folder / class_name / "test").is_dir() for class_name in classes):
        return scan_mvtec(folder, classes, logger)
    table = folder / "split_csv" / "1cls.csv"
    if table.is_file():
        return _require_rows(
            _rows_of_split(table, classes), folder, "rows with split 'test' in split_csv/1cls.csv"
        )
    logger.warning("%s is missing: all of VisA's images are used, not its test split", table)
    rows = []
    for class_name in _present_classes(folder, classes, "Data", logger):
        data = folder / class_name / "Data"
        rows += _normal_rows(folder, data / "Images" / "Normal", class_name)
        rows += _anomalous_rows(folder, data / "Images" / "Anomaly", data / "Masks" / "Anomaly", class_name)
    return _require_rows(rows, folder, "<class>/Data/Images/{Normal,Anomaly}/*.JPG")


def scan_bmad(folder: Path, classes: list[str], logger: logging.Logger) -> list[dict]:
    """test/good/img and test/Ungood/{img,label}: the medical sets of BMAD, one class each."""
    (class_name,) = classes
    good, ungood = (_child(folder / "test", name) for name in ("good", "ungood"))
    rows = _normal_rows(folder, _child(good, "img"), class_name)
    rows += _anomalous_rows(folder, _child(ungood, "img"), _child(ungood, "label"), class_name)
    return _require_rows(rows, folder, "test/{good,Ungood}/{img,label}/*.png")


def scan_polyps(folder: Path, classes: list[str], logger: logging.Logger) -> list[dict]:
    """images + masks (CVC-ClinicDB as published: Original + Ground Truth), one class, every image anomalous."""
    (class_name,) = classes
    images, masks = _child(folder, "images"), _child(folder, "masks")
    if not images.is_dir():
        images, masks = _child(folder, "original"), _child(folder, "ground truth")
    return _require_rows(
        _anomalous_rows(folder, images, masks, class_name), folder, "images/*.png and masks/*.png"
    )


def _normal_rows(folder: Path, images: Path, class_name: str) -> list[dict]:
    return [
        {"image_path": image.relative_to(folder).as_posix(), "label": 0, "class_name": class_name}
        for image in _image_files(images)
    ]


def _anomalous_rows(folder: Path, images: Path, masks: Path, class_name: str) -> list[dict]:
    by_stem: dict[str, Path] = {}
    for mask in _image_files(masks):
        if mask.stem in by_stem:
            raise ValueError(f"two masks of one name, {by_stem[mask.stem]} and {mask}: remove one")
        by_stem[mask.stem] = mask
    rows, without_mask = [], []
    for image in _image_files(images):
        row = {"image_path": image.relative_to(folder).as_posix(), "label": 1, "class_name": class_name}
        mask = by_stem.get(f"{image.stem}_mask") or by_stem.get(image.stem)
        if mask is not None:
            row["mask_path"] = mask.relative_to(folder).as_posix()
        elif by_stem:
            without_mask.append(str(image))
        rows.append(row)
    if without_mask:
        raise ValueError(
            f"{len(without_mask)} anomalous images have no mask, such as {', '.join(without_mask[:_PROBLEMS_SHOWN])}: "
            f"expected <name>_mask.png or <name>.png (any image ending) in {masks}; add it, move the image away, or "
            "write rows of your own, without mask_path where nobody knows the defect's place"
        )
    return rows


def _rows_of_split(table: Path, classes: list[str]) -> list[dict]:
    rows = []
    with table.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = {"object", "split", "label", "image", "mask"}
        if not columns <= set(reader.fieldnames or ()):
            raise ValueError(
                f"{table}: columns are {reader.fieldnames}: expected {', '.join(sorted(columns))}"
            )
        for line in reader:
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


def _present_classes(folder: Path, classes: list[str], child: str, logger: logging.Logger) -> list[str]:
    present = [class_name for class_name in classes if (folder / class_name / child).is_dir()]
    absent = [class_name for class_name in classes if class_name not in present]
    if not present:
        raise FileNotFoundError(
            f"{str(folder)!r} holds no folder <class>/{child}: expected one or more of {', '.join(classes)}; "
            "unpack the dataset there as it was published, or write a metadata file"
        )
    if absent:
        logger.warning("%s: no folder <class>/%s for %s: left out", folder, child, ", ".join(absent))
    return present


def _warn_of_other_classes(folder: Path, classes: list[str], logger: logging.Logger) -> None:
    others = sorted(path.parent.name for path in folder.glob("*/test") if path.parent.name not in classes)
    if others:
        logger.warning(
            "%s: %s are not among the dataset's classes: left out (declare your own dataset with --dataset_config)",
            folder,
            ", ".join(others),
        )


def _image_files(folder: Path) -> list[Path]:
    """Images of a folder, sorted by name; hidden files (macOS leaves ._ copies) are none. A missing folder has none."""
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_ENDINGS and not path.name.startswith(".") and path.is_file()
    )


def _child(folder: Path, name: str) -> Path:
    """The subfolder of this name in whatever case, or the name itself if there is none."""
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if path.is_dir() and path.name.lower() == name:
                return path
    return folder / name


def _require_rows(rows: list[dict], folder: Path, layout: str) -> list[dict]:
    if not rows:
        raise FileNotFoundError(
            f"no images found below {str(folder)!r}: expected {layout} "
            "(PNG, JPEG, BMP or TIFF); unpack the dataset there as it was published, or write a metadata file"
        )
    return rows
