"""Renders DemoA, DemoB and DemoPhoto in MVTec's folder layout.

    python -m demo_world.render_sets --name all --out data

    <out>/<dataset>/<class>/train/good/000.png
                           /test/good/000.png, test/<defect>/000.png
                           /ground_truth/<defect>/000_mask.png        0 or 255
                   /full-shot.jsonl, <k>-shot.jsonl                   the test split, and k of it per class

A defective picture is the twin of an undamaged one: same pose, light, texture and noise. Its mask holds the pixels
in which the two differ. The same seed gives the same bytes.
"""

import argparse
import json
import logging
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
from demo_world.rendering.defects import apply_defect
from demo_world.rendering.lighting import Camera, compose, expose, sample_light, shade
from demo_world.rendering.product_lines import PRODUCT_LINES, line_pose, line_streams
from demo_world.rendering.render import build_scene
from demo_world.rendering.twins import damage_twin

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


def picture_rng(seed: int, *key: int | str) -> np.random.Generator:
    """The generator of one picture, by its name: independent of how many others are rendered."""
    return np.random.default_rng([seed, *(crc32(str(part).encode()) for part in key)])


def render_line_picture(
    dataset: str, class_name: str, size: int, rng: np.random.Generator, defect: str | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One picture of a product line: (picture, undamaged twin) uint8 [S, S, 3] RGB, and its mask uint8 [S, S].

    Without `defect` the twin is the picture itself and the mask is empty. Raises RuntimeError when no fair defect
    comes out (see twins.py).
    """
    line = PRODUCT_LINES[dataset][class_name]
    state = int(rng.integers(2**62))
    twin = _draw(line, dataset, class_name, size, state)
    if defect is None:
        return twin, twin, np.zeros((size, size), np.uint8)

    def draw(extent, rng):
        damage = partial(_damage, defect, extent, rng)
        return _draw(line, dataset, class_name, size, state, damage)

    picture, mask = damage_twin(twin, draw, rng, f"'{defect}' on {dataset}/{class_name}")
    return picture, twin, mask


def _damage(defect, extent, rng, subject):
    apply_defect(defect, subject, extent, rng)


def _draw(line, dataset, class_name, size, state, damage=None):
    """The picture that `state` stands for; `damage(layers)` changes the subject's layers before it is lit."""
    streams = line_streams(dataset, class_name, np.random.default_rng(state))
    light = sample_light(streams.light, spread=0.35)
    camera = Camera(
        1.0 + streams.light.uniform(-0.06, 0.06),
        1.0 + streams.light.uniform(-0.06, 0.06),
        streams.light.uniform(0.0, 4.0),
        streams.light.uniform(0.006, 0.016),
    )
    front, back = build_scene(line.scene, size, line_pose(line, streams.pose), streams, jitter=0.35)
    subject = back if front is None else front
    if damage is not None:
        damage(subject)
    world = compose(front, back, light)
    add_dust(world.albedo, streams.marks)
    return expose(shade(world, light), camera, streams.sensor)


def add_dust(albedo: np.ndarray, rng: np.random.Generator) -> None:
    """Harmless specks and lint, in normal and defective pictures alike, drawn in place on colours [S, S, 3]."""
    size = albedo.shape[0]
    layer = np.zeros((size, size), np.float32)
    for _ in range(int(rng.integers(0, 4))):
        x, y = rng.uniform(0, size, 2)
        end = (x + rng.normal(0, 0.008 * size), y + rng.normal(0, 0.008 * size))
        points = [tuple(int(16 * value) for value in point) for point in ((x, y), end)]
        cv2.line(layer, points[0], points[1], float(rng.uniform(0.2, 0.5)), 1, cv2.LINE_8, 4)
    layer = cv2.GaussianBlur(layer, (0, 0), max(0.5, size / 320))
    albedo += layer[..., None] * (np.float32(rng.uniform(0.3, 0.9)) - albedo)


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
    rows = scan(name, folder, logging.getLogger(__name__))
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
    name: str, root: Path | str, seed: int = 0, size: int = 192, counts: Counts = DEFAULT_COUNTS
) -> Path:
    """Renders one demo dataset under <root>/<name>; `size` is in pixels. Returns the dataset's folder.

    Raises ValueError for an unknown name or a size below 64, ImportError for DemoPhoto without scikit-image.
    """
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--name", default="all", choices=("all", *demo_names()), help="which dataset to render"
    )
    parser.add_argument("--out", default="data", help="folder that receives one folder per dataset")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same bytes")
    parser.add_argument("--size", type=int, default=192, help="width and height in pixels, at least 64")
    for field, meaning in (
        ("train_good", "normal pictures per class in train/ (not for photographs)"),
        ("test_good", "normal pictures per class in test/"),
        ("test_defective", "defective pictures per class, shared evenly among its defects"),
    ):
        parser.add_argument(f"--{field}", type=int, default=getattr(DEFAULT_COUNTS, field), help=meaning)
    args = parser.parse_args(argv)
    counts = Counts(args.train_good, args.test_good, args.test_defective)
    for name in demo_names() if args.name == "all" else (args.name,):
        render_demo(name, args.out, args.seed, args.size, counts)


if __name__ == "__main__":
    main()
