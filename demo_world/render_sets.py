"""Renders DemoA, DemoB, DemoC, DemoPhoto and DemoPhotoMed in MVTec's folder layout.

    python -m demo_world.render_sets --name all --out data

    <out>/<dataset>/<class>/train/good/000.png
                           /test/good/000.png, test/<defect>/000.png
                           /ground_truth/<defect>/000_mask.png        0 or 255
                   /full-shot.jsonl, <k>-shot.jsonl                   the test split, and k of it per class

A defective picture is the twin of an undamaged one: same pose, light, texture and noise. Its mask holds the pixels
in which the two differ. The same seed gives the same bytes. "all" leaves DemoC out, which only
`python -m studies.arms --confirm` looks at.
"""

import argparse
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from zlib import crc32

import cv2
import numpy as np
from filelock import FileLock
from tqdm import tqdm

from dataset.few_shot import select
from dataset.jsonl import write_rows
from dataset.prepare import scan
from demo_world.photographs import PHOTO_CLASSES, render_photo
from demo_world.product_pictures import render_line_picture
from demo_world.rendering.product_lines import PRODUCT_LINES
from files.command import run_main
from files.logs import quiet_logger

STAMP = "rendered.json"
RENDER_VERSION = 4  # raised when the same seed draws other pictures
SHOTS = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Counts:
    """Pictures per class; the test split is what AA-CLIP trains and tests on."""

    train_good: int = 8
    test_good: int = 14
    test_defective: int = 14

    def __post_init__(self):
        for field, value in asdict(self).items():
            if value < 0:
                raise ValueError(f"{field} is {value}, expected 0 or more pictures per class.")


DEFAULT_COUNTS = Counts()
OWN_COUNTS = {"DemoC": Counts(test_good=20, test_defective=20)}  # where a set is larger than the others
RESERVED = ("DemoC",)  # rendered by name alone: what everybody renders, somebody looks at


def picture_rng(seed: int, *key: int | str) -> np.random.Generator:
    """The generator of one picture, by its name: independent of how many others are rendered."""
    return np.random.default_rng([seed, *(crc32(str(part).encode()) for part in key)])


Renderer = Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray]]


def plan(classes: dict[str, tuple], counts: Counts) -> Iterator[tuple[str, str, int, str | None]]:
    """(class, folder below the class, number, defect or None) of every picture; defects take turns."""
    for class_name, defects in classes.items():
        for number in range(counts.train_good):
            yield class_name, "train/good", number, None
        for number in range(counts.test_good):
            yield class_name, "test/good", number, None
        for number in range(counts.test_defective):
            defect = defects[number % len(defects)]
            yield class_name, f"test/{defect.replace(' ', '_')}", number // len(defects), defect


def write_dataset(
    name: str,
    root: Path | str,
    classes: dict[str, tuple],
    renderer: Renderer,
    seed: int,
    size: int,
    counts: Counts,
) -> Path:
    """Writes all pictures of a dataset under <root>/<name> and returns that folder.

    `renderer(class_name, size, rng, defect)` gives (picture, twin, mask). A folder that already holds exactly this
    rendering is left as it is; an older rendering is replaced. Raises FileExistsError for a folder of other origin.
    """
    folder = Path(root) / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{name}.lock"):  # studies in several processes share one rendering
        return _write_dataset(name, folder, classes, renderer, seed, size, counts)


def _write_dataset(name, folder, classes, renderer, seed, size, counts):
    """`write_dataset`, alone in its folder."""
    settings = {"name": name, "version": RENDER_VERSION, "seed": seed, "size": size, **asdict(counts)}
    if folder.is_dir() and any(folder.iterdir()):
        if _read_stamp(folder) == {**settings, "complete": True}:
            return folder
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write_stamp(folder, {**settings, "complete": False})
    pictures = list(plan(classes, counts))
    for class_name, place, number, defect in tqdm(
        pictures, desc=f"rendering {name}", unit="image", disable=None
    ):
        rng = picture_rng(seed, name, class_name, place, number)
        picture, _, mask = renderer(class_name, size, rng, defect)
        _write_png(folder / class_name / place / f"{number:03d}.png", picture[..., ::-1])
        if defect is not None:
            truth = folder / class_name / place.replace("test/", "ground_truth/", 1)
            _write_png(truth / f"{number:03d}_mask.png", mask)
    write_metadata(name, folder, counts, seed)
    _write_stamp(folder, {**settings, "complete": True})
    return folder


def write_metadata(name: str, folder: Path, counts: Counts, seed: int) -> None:
    """Write full-shot.jsonl and the k-shot files the classes have pictures for into the dataset's folder."""
    rows = scan(name, folder, quiet_logger())
    write_rows(rows, folder / "full-shot.jsonl")
    for shot in SHOTS:
        if (shot + 1) // 2 <= counts.test_good and shot // 2 <= counts.test_defective:
            write_rows(select(rows, shot, seed), folder / f"{shot}-shot.jsonl")


def _read_stamp(folder: Path) -> dict:
    stamp = folder / STAMP
    try:
        return json.loads(stamp.read_text())
    except (FileNotFoundError, json.JSONDecodeError) as error:
        raise FileExistsError(
            f"{folder} exists and was not rendered by this program (no readable {STAMP} in it); it "
            f"is left alone. Choose another --out or move the folder away."
        ) from error


def _write_stamp(folder: Path, settings: dict) -> None:
    (folder / STAMP).write_text(json.dumps(settings, indent=1) + "\n")


def _write_png(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), np.ascontiguousarray(pixels)):
        raise OSError(f"could not write {path}; is the disk full or the folder read-only?")


def render_demo(
    name: str, root: Path | str, seed: int = 0, size: int = 192, counts: Counts | None = None
) -> Path:
    """Renders one demo dataset under <root>/<name>; `size` is in pixels. Returns the dataset's folder.

    `counts`: pictures per class; None for the set's own.
    Raises ValueError for an unknown name or a size below 64, ImportError for DemoPhoto without scikit-image.
    """
    counts = OWN_COUNTS.get(name, DEFAULT_COUNTS) if counts is None else counts
    if size < 64:
        raise ValueError(f"size is {size}, expected at least 64: smaller pictures hide the defects.")
    if name in PRODUCT_LINES:
        classes = {class_name: line.defects for class_name, line in PRODUCT_LINES[name].items()}
        return write_dataset(name, root, classes, partial(render_line_picture, name), seed, size, counts)
    if name in PHOTO_CLASSES:
        photos_only = replace(counts, train_good=0)
        return write_dataset(
            name, root, PHOTO_CLASSES[name], partial(render_photo, name), seed, size, photos_only
        )
    raise ValueError(f"demo dataset is '{name}', expected one of {', '.join(demo_names())}.")


def demo_names() -> tuple:
    """Every dataset this program renders."""
    return (*PRODUCT_LINES, *PHOTO_CLASSES)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--name",
        default="all",
        choices=("all", *demo_names()),
        help="which dataset to render; all: every one but DemoC",
    )
    parser.add_argument("--out", default="data", help="folder that receives one folder per dataset")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same bytes")
    parser.add_argument("--size", type=int, default=192, help="width and height in pixels, at least 64")
    for field, meaning in (
        ("train_good", "normal pictures per class in train/ (not for photographs)"),
        ("test_good", "normal pictures per class in test/"),
        ("test_defective", "defective pictures per class, shared evenly among its defects"),
    ):
        own = ", ".join(f"{getattr(counts, field)} in {name}" for name, counts in OWN_COUNTS.items())
        usual = getattr(DEFAULT_COUNTS, field)
        parser.add_argument(
            f"--{field}", type=int, default=argparse.SUPPRESS, help=f"{meaning} (default: {usual}, {own})"
        )
    args = parser.parse_args(argv)
    given = {field: vars(args)[field] for field in asdict(DEFAULT_COUNTS) if field in vars(args)}
    every = [name for name in demo_names() if name not in RESERVED]
    for name in every if args.name == "all" else (args.name,):
        counts = replace(OWN_COUNTS.get(name, DEFAULT_COUNTS), **given)
        render_demo(name, args.out, args.seed, args.size, counts)


if __name__ == "__main__":
    run_main(main)
