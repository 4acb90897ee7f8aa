"""From a folder in a layout of `layouts` to metadata rows.

Rows have `image_path` and `mask_path` relative to the folder, `label` and `class_name`; a folder of defects without
any mask gives rows without `mask_path`, whose defects are in unknown places. Several masks of one picture are a list.
Images and masks may have any of `dataset.folders.IMAGE_ENDINGS`, in any case, and any size; see
`dataset.folders.masks_of` for the names of masks.
"""

from fnmatch import fnmatchcase
from pathlib import Path

from dataset.folders import IMAGE_ENDINGS, Scan, is_normal, masks_of
from dataset.image_files import opened
from dataset.mask_values import mask_pixels, robust_defect
from dataset.prepare.layouts import BY_PIXELS, Part, Parts, Tree
from files.foreign_paths import composed

_PROBLEMS_SHOWN = 5
NOT_OF_SPLIT = "of another split"


def scan_layout(scan: Scan, classes: list[str], layout: Tree | Parts) -> list[dict]:
    """Rows of the dataset's test split, by class.

    Raises:
        FileNotFoundError: the folder is not in this layout.
        ValueError: a defect without a mask among others with one; two masks of one name.
    """
    if isinstance(layout, Tree):
        _note_other_classes(scan, classes, layout.pictures)
        present = _present_classes(scan, classes, layout.pictures)
        return scan_tree(scan, present, layout)
    return _scan_parts(scan, classes, layout)


def scan_tree(scan: Scan, folders: dict[str, Path], tree: Tree) -> list[dict]:
    """Rows of {class: its folder} in a Tree. Raises as `scan_layout`."""
    rows, without_normal = [], []
    for class_name, own in folders.items():
        base = scan.child(own, tree.pictures)
        for path in scan.pictures(base):
            scan.leave_out(f"beside the folders of {tree.pictures or own.name}", path)
        others = [path for path in (scan.child(own, name) for name in tree.beside) if path.is_dir()]
        for path in others:
            scan.leave_out(NOT_OF_SPLIT, path)
        no_pictures = [*others, *(scan.child(own, name) for name in tree.masks)]
        found = _rows_of_groups(
            scan, base, [scan.child(own, name) for name in tree.masks], no_pictures, class_name
        )
        rows += [row for _, own_rows in found for row in own_rows]
        empty = [
            _relative(scan, group) for group, own_rows in found if not own_rows and not scan.folders(group)
        ]
        if empty:
            scan.notes.append(f"folders without a picture: {', '.join(empty)}")
        if not any(_is_normal_below(base, group) for group, _ in found):
            without_normal.append(class_name)
    if without_normal:
        scan.notes.append(
            f"no folder of normal pictures (good, normal, ok, …) in {', '.join(without_normal)}"
        )
    return _require_rows(rows, scan, f"{_path('<class>', tree.pictures)}/<good or a defect>/*.png")


def _rows_of_groups(scan, base, mask_folders, no_pictures, class_name) -> list[tuple[Path, list[dict]]]:
    """[(folder of a kind, its rows)] of a class, nested kinds behind the one they lie in."""
    groups = [
        group
        for group in scan.below(base)
        if not any(group == path or path in group.parents for path in no_pictures)
    ]
    defects = [group for group in groups if not _is_normal_below(base, group) and scan.pictures(group)]
    found = []
    for group in groups:
        if _is_normal_below(base, group):
            found.append((group, _normal_rows(scan, group, class_name)))
            continue
        masks = _masks_of_kind(scan, mask_folders, group.relative_to(base).as_posix(), len(defects) == 1)
        nested = [path.name for path in scan.folders(group)]
        found.append((group, _anomalous_rows(scan, group, masks, class_name, groups=nested)))
    return found


def _masks_of_kind(scan: Scan, folders: list[Path], kind: str, is_only_kind: bool) -> Path:
    """The folder of a kind's masks: of its name in one of `folders`, or the only kind's masks right in one of them."""
    own = next((path for path in (scan.child(one, kind) for one in folders) if path.is_dir()), None)
    if own is not None:
        return own
    together = next((one for one in folders if scan.pictures(one)), None)
    if together is not None and is_only_kind:
        return together
    for path in scan.pictures(together) if together is not None else ():
        scan.leave_out("masks beside the folders of several kinds", path)
    return folders[0] / kind


def _is_normal_below(base: Path, group: Path) -> bool:
    return any(is_normal(part) for part in group.relative_to(base).parts)


def _scan_parts(scan: Scan, classes: list[str], layout: Parts) -> list[dict]:
    parts = next((one for one in layout.alternatives if _folders(scan, one[0], "*")), layout.alternatives[0])
    if "{class}" in parts[0].images:
        # the first folder below a class: Data, Test
        present = _present_classes(scan, classes, parts[0].images.split("/")[1])
        _note_other_classes(scan, classes, parts[0].images.split("/")[1])
    else:
        present = dict.fromkeys(classes, scan.folder)
    rows = []
    for class_name, own in present.items():
        for part in parts:
            for folder in _folders(scan, part, own.name):
                rows += _rows_of_part(scan, part, folder, own.name, class_name)
    return _require_rows(rows, scan, layout.words)


def _folders(scan: Scan, part: Part, class_folder: str) -> list[Path]:
    """The folders of a part's pictures that are there."""
    found = [scan.folder]
    for name in part.images.replace("{class}", class_folder).split("/"):
        if "*" in name:
            found = [path for one in found for path in scan.folders(one) if fnmatchcase(path.name, name)]
        else:
            found = [scan.child(one, name) for one in found]
    return [path for path in found if path.is_dir()]


def _rows_of_part(scan, part, folder, class_folder, class_name) -> list[dict]:
    if part.label == 0:
        return _normal_rows(scan, folder, class_name)
    masks = folder if part.masks == "" else None
    if part.masks:
        masks = scan.folder
        for name in part.masks.replace("{class}", class_folder).split("/"):
            masks = scan.child(masks, name)
    if part.label == 1:
        return _anomalous_rows(scan, folder, masks, class_name, part.suffix)
    return _rows_by_mask(scan, part, folder, masks, class_name)


def _rows_by_mask(scan: Scan, part: Part, folder: Path, masks: Path, class_name: str) -> list[dict]:
    """Rows of a folder whose masks tell the label."""
    pictures = scan.pictures(folder)
    if masks == folder:
        pictures = [path for path in pictures if not path.stem.endswith(part.suffix)]
        by_stem = {path.stem.removesuffix(part.suffix): path for path in scan.pictures(folder)}
        owned = {path.stem: [by_stem[path.stem]] for path in pictures if by_stem[path.stem] != path}
        lonely = [str(path) for path in pictures if path.stem not in owned]
        if lonely:
            raise ValueError(_missing_masks(lonely, masks, part.suffix))
    else:
        owned = masks_of(scan, masks, [path.stem for path in pictures], part.suffix)
    rows = []
    for picture in pictures:
        own = owned.get(picture.stem, [])
        anomalous = any(map(_has_defect, own)) if part.label == BY_PIXELS else bool(own)
        row = {"image_path": _relative(scan, picture), "label": int(anomalous), "class_name": class_name}
        rows.append(row | (_mask_path(scan, own) if anomalous else {}))
    return rows


def _has_defect(mask: Path) -> bool:
    with opened("mask", str(mask), "scan") as image:
        return bool(robust_defect(mask_pixels(image, str(mask))).any())


def _normal_rows(scan: Scan, images: Path, class_name: str) -> list[dict]:
    return [
        {"image_path": _relative(scan, image), "label": 0, "class_name": class_name}
        for image in scan.pictures(images)
    ]


def _anomalous_rows(
    scan: Scan,
    images: Path,
    masks: Path | None,
    class_name: str,
    suffix: str = "_mask",
    groups: list[str] | None = None,
) -> list[dict]:
    pictures = scan.pictures(images)
    stems = [image.stem for image in pictures]
    _refuse_masks_among(pictures, suffix)
    by_stem = masks_of(scan, masks, stems, suffix, groups or ()) if masks else {}
    rows, without_mask = [], []
    for image in pictures:
        row = {"image_path": _relative(scan, image), "label": 1, "class_name": class_name}
        own = by_stem.get(image.stem, [])
        if by_stem and not own:
            without_mask.append(str(image))
        rows.append(row | _mask_path(scan, own))
    if without_mask:
        raise ValueError(_missing_masks(without_mask, masks, suffix))
    return rows


def _refuse_masks_among(pictures: list[Path], suffix: str) -> None:
    stems = {path.stem for path in pictures}
    beside = [str(path) for path in pictures if path.stem.removesuffix(suffix) in stems - {path.stem}]
    if beside:
        raise ValueError(
            f"{len(beside)} pictures are called as masks of pictures beside them, such as {beside[0]}: move masks into "
            "a folder of their own (ground_truth/<defect>), or rename the pictures"
        )


def _missing_masks(images: list[str], folder: Path, suffix: str) -> str:
    return (
        f"{len(images)} anomalous images have no mask, such as {', '.join(images[:_PROBLEMS_SHOWN])}: "
        f"expected <name>{suffix}.png or <name>.png (any image ending), or a folder of masks of one of these names, "
        f"in {folder}; add it, move the image away, or write rows of your own, without mask_path where nobody knows "
        "the defect's place"
    )


def _mask_path(scan: Scan, masks: list[Path]) -> dict[str, str | list[str]]:
    paths = [_relative(scan, mask) for mask in masks]
    return {"mask_path": paths if len(paths) > 1 else paths[0]} if paths else {}


def _relative(scan: Scan, path: Path) -> str:
    return path.relative_to(scan.folder).as_posix()


def _path(*parts: str) -> str:
    return "/".join(part for part in parts if part)


def _present_classes(scan: Scan, classes: list[str], child: str) -> dict[str, Path]:
    """{class: its folder} of those that have a folder `child`."""
    folders = {name: scan.spelled(scan.folder, name) for name in classes}
    present = {name: own for name, own in folders.items() if scan.child(own, child).is_dir()}
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


def _note_other_classes(scan: Scan, classes: list[str], child: str) -> None:
    known = {composed(name) for name in classes}
    others = [
        path.name
        for path in scan.folders(scan.folder)
        if composed(path.name) not in known and (path / child).is_dir()
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
