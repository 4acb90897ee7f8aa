"""Rows from COCO's JSON, masks from its polygons and run lengths."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dataset.folders import Scan, is_normal
from dataset.prepare.annotations import (
    Outlines,
    Own,
    header_or_none,
    names_split,
    note_unknown_places,
    outlined_row,
    points_of,
)
from dataset.prepare.pictures import PicturesBelow
from dataset.prepare.polygons import polygon_mask, run_length_mask
from files.text import read_json


def is_coco(path: Path) -> bool:
    """Whether a file is JSON of COCO's form."""
    try:
        content = read_json(path)
    except ValueError:
        return False
    return isinstance(content, dict) and isinstance(content.get("images"), list) and "annotations" in content


def coco_rows(scan: Scan, pictures: PicturesBelow, file: Path, own: Own) -> list[dict]:
    """Rows of COCO's JSON: a picture with an annotation is anomalous, one without is normal; masks are written.

    Annotations of a category with a normal name (good, ok, …) are none.

    Raises:
        ValueError: the file has another form, is of another split, or a segmentation is none.
        ModuleNotFoundError: compressed run lengths, without pycocotools.
    """
    if own.split is not None and not names_split(f"{file.parent.name}/{file.name}", own.split):
        raise ValueError(
            f"--split is {own.split!r}: {file} holds one split, which its name does not say; leave the flag away"
        )
    content = read_json(file)
    try:
        names = {one["id"]: str(one["name"]) for one in content.get("categories", [])}
        images = [
            (one["id"], one["file_name"], int(one["width"]), int(one["height"])) for one in content["images"]
        ]
        by_image: dict[object, list[dict]] = {}
        for one in content["annotations"]:
            if not is_normal(names.get(one["category_id"], "")):
                by_image.setdefault(one["image_id"], []).append(one)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{file}: expected COCO's images (id, file_name, width, height), annotations (image_id, category_id, "
            f"segmentation) and categories (id, name); {type(error).__name__}: {error}"
        ) from error
    rows, named = [], set()
    for number, name, width, height in images:
        path = pictures.find(name, file.parent)
        if path is None:
            continue
        named.add(path)
        header = header_or_none(scan, path, file)
        if header is None:
            continue
        if (width, height) not in (header.size, header.upright_size):
            scan.leave_out("of another size than the annotations say", scan.folder / path)
            continue
        found = coco_outlines(by_image.get(number, []), width, height, f"{file}, {name}")
        rows.append(outlined_row(path, found, own))
    pictures.rest(named, "not in the annotations")
    note_unknown_places(scan, rows)
    return rows


def coco_outlines(annotations: Sequence[dict], width: int, height: int, source: str) -> Outlines:
    """The defects of one picture."""
    masks, without = [], 0
    for one in annotations:
        shape = one.get("segmentation")
        try:
            if isinstance(shape, list) and shape:
                parts = [polygon_mask(points_of(part), width, height) for part in shape]
                masks.append(np.logical_or.reduce(parts))
            elif isinstance(shape, dict) and isinstance(shape.get("counts"), list):
                masks.append(run_length_mask(shape["counts"], width, height))
            elif isinstance(shape, dict):
                masks.append(decoded_run_lengths(shape, width, height))
            else:
                without += 1
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{source}: annotation {one.get('id')}: {error}; correct its segmentation"
            ) from error
    return Outlines(masks, without)


def decoded_run_lengths(shape: dict, width: int, height: int) -> np.ndarray:
    """COCO's compressed run lengths as pixels [height, width] bool, by COCO's own package.

    Raises:
        ModuleNotFoundError: it is not installed.
        ValueError: they are of another size.
    """
    try:
        from pycocotools import mask
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "compressed run lengths are decoded by COCO's own package: pip install pycocotools"
        ) from error
    found = mask.decode(shape).astype(bool)
    if found.shape != (height, width):
        raise ValueError(f"run lengths of size {found.shape} for a picture of {width}x{height}")
    return found
