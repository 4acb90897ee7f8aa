"""Published sets whose test split and labels stand in a table beside the pictures: VisA, Real-IAD, Head CT."""

from collections.abc import Callable
from pathlib import Path

from dataset.folders import Scan
from files.text import read_json, read_table

REAL_IAD_PICTURES = ("realiad_1024", "realiad_512", "realiad_256", "realiad_raw", ".")


def visa_rows(scan: Scan, classes: list[str]) -> list[dict] | None:
    """The test rows of split_csv/1cls.csv (columns object, split, label, image, mask), VisA's own split; else None."""
    table = scan.folder / "split_csv" / "1cls.csv"
    if not table.is_file():
        scan.notes.append(f"{table} is missing: all of VisA's images are used, not its test split")
        return None
    rows = []
    for _, line in read_table(table, {"object", "split", "label", "image", "mask"}):
        if line["split"] != "test":
            continue
        row = {
            "image_path": line["image"],
            "label": int(line["label"] != "normal"),
            "class_name": line["object"],
        }
        rows.append(row | ({"mask_path": line["mask"]} if row["label"] else {}))
    if not rows:
        raise FileNotFoundError(f"{table} has no row with split 'test': unpack VisA as it was published")
    # Classes nobody knows sort last and are reported, with their lines, when the rows are checked.
    order = {class_name: position for position, class_name in enumerate(classes)}
    return sorted(rows, key=lambda row: order.get(row["class_name"], len(order)))


def real_iad_rows(scan: Scan, classes: list[str]) -> list[dict] | None:
    """The test entries of realiad_jsons/<class>.json: meta (prefix, normal_class) and test, a list of objects with
    anomaly_class, image_path and, for defects, mask_path.

    Raises:
        FileNotFoundError: no such file for any class.
        ValueError: a file has another form.
    """
    folder = scan.child(scan.folder, "realiad_jsons")
    tables = {name: folder / f"{name}.json" for name in classes}
    absent = [name for name, table in tables.items() if not table.is_file()]
    if len(absent) == len(classes):
        raise FileNotFoundError(
            f"{str(folder)!r} holds no <class>.json: expected one or more of {', '.join(classes)}, and the pictures "
            f"in {' or '.join(REAL_IAD_PICTURES[:-1])}; unpack Real-IAD as it was published"
        )
    if absent:
        scan.notes.append(f"no realiad_jsons/<class>.json for {', '.join(absent)}: left out")
    rows = []
    for name, table in tables.items():
        if table.is_file():
            rows += _real_iad_class(scan, name, table)
    return rows


def _real_iad_class(scan: Scan, class_name: str, table: Path) -> list[dict]:
    content = read_json(table)
    try:
        prefix, normal = content["meta"]["prefix"], content["meta"]["normal_class"]
        entries = [(one["anomaly_class"], one["image_path"], one.get("mask_path")) for one in content["test"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{table}: expected meta with prefix and normal_class, and test, a list of objects with anomaly_class, "
            f"image_path and mask_path; {type(error).__name__}: {error}; unpack Real-IAD as it was published"
        ) from error
    base = next(
        (
            Path(name, prefix)
            for name in REAL_IAD_PICTURES
            if entries and (scan.folder / name / prefix / entries[0][1]).is_file()
        ),
        Path(REAL_IAD_PICTURES[0], prefix),
    )
    rows = []
    for kind, image, mask in entries:
        row = {
            "image_path": (base / image).as_posix(),
            "label": int(kind != normal),
            "class_name": class_name,
        }
        rows.append(row | ({"mask_path": (base / mask).as_posix()} if row["label"] and mask else {}))
    return rows


def head_ct_rows(scan: Scan, classes: list[str]) -> list[dict] | None:
    """labels.csv with the columns id and hemorrhage (0 or 1), pictures NNN.png in head_ct.

    Raises:
        FileNotFoundError, ValueError: there is no such table, or no picture of a line's number.
    """
    table = scan.folder / "labels.csv"
    if not table.is_file():
        raise FileNotFoundError(
            f"no file {str(table)!r}: expected labels.csv with the columns id and hemorrhage beside head_ct/NNN.png; "
            "unpack the dataset there as it was published"
        )
    outer = scan.child(scan.folder, "head_ct")
    folder = scan.child(outer, "head_ct") if not scan.pictures(outer) else outer
    pictures = {int(path.stem): path for path in scan.pictures(folder) if path.stem.isdecimal()}
    rows = []
    for place, line in read_table(table, {"id", "hemorrhage"}):
        number, label = line["id"].strip(), line["hemorrhage"].strip()
        if label not in ("0", "1") or not number.isdecimal() or int(number) not in pictures:
            raise ValueError(
                f"{place}: id {number!r}, hemorrhage {label!r}: expected a picture's number in {folder}, and 0 or 1"
            )
        path = pictures.pop(int(number)).relative_to(scan.folder).as_posix()
        rows.append({"image_path": path, "label": int(label), "class_name": classes[0]})
    for path in pictures.values():
        scan.leave_out("without a line in labels.csv", path)
    return rows


# {set: function (scan, classes) -> rows, or None where its layout of folders is to be read instead}
TABLES: dict[str, Callable[[Scan, list[str]], list[dict] | None]] = {
    "VisA": visa_rows,
    "RealIAD": real_iad_rows,
    "HeadCT": head_ct_rows,
}
