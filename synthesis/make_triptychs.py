"""Triptychs [visible | target | semantic] of a dataset's defects, to train semantic fill on.

    python make_triptychs.py --dataset DemoA --data_root data --shot 2 --size 192 --out runs/triptychs

One triptych per anomalous training image: target = the image, semantic = its mask in white on black, visible = what the
image would show without the defect. Only the defective image exists, so that is made up: `--visible inpaint` (default)
fills the defect from its surroundings and is equal to the target everywhere else, `--visible normal` takes a normal
image of the same class, which is real but shows another pose. `--layout` chooses between strips, folders and a
triptych.jsonl; see synthesis/data.py.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from dataset import get_dataset
from dataset.image_files import Reading, read_image_of, read_pair
from dataset.jsonl import Sample, write_rows
from files.command import run_main
from files.logs import open_logger
from files.pictures import picture_names, write_png
from model.settings import option
from run_folder.flags import parse
from run_folder.session import declare_datasets
from run_folder.settings import DataSettings
from synthesis.data import INDEX, LAYOUTS, PANELS
from synthesis.masks import keyed_rng

SPREAD = 0.02  # of the side: how far a defect's light and shadow reach beyond its mask
RADIUS = 5  # pixels of surroundings that inpainting looks at


@dataclass(frozen=True)
class TriptychSettings:
    """triptychs"""

    seed: int = option(111, "chooses the k shots, as train.py does with this seed")
    out: str | None = option(None, "new or empty folder", required=True)
    layout: str = option("strips", "how they are kept", choices=LAYOUTS)
    size: int = option(512, "side of a panel in pixels")
    visible: str = option("inpaint", "the image without its defect", choices=["inpaint", "normal"])


GROUPS = {"data": DataSettings, "own": TriptychSettings}
DEFAULTS = {"dataset": "DemoA", "shot": 0}


def training_samples(
    data: DataSettings, seed: int, logger: logging.Logger
) -> tuple[list[Sample], list[Sample], Reading]:
    """(normal, anomalous) samples that train.py would train on with the same flags, and how their files are read; of
    the anomalous ones those whose defect has a mask."""
    images = get_dataset(
        data.dataset,
        1,
        "few_shot",
        data.shot,
        "train",
        logger,
        data_root=data.data_root,
        seed=seed,
        mask_reading=data.mask_reading,
    )[0]
    masked = [sample for sample in images.samples if sample.mask_known]
    if len(masked) < len(images):
        logger.warning(
            f"{len(images) - len(masked)} anomalous images have no mask: nothing is drawn from them"
        )
    normal, anomalous = ([sample for sample in masked if sample.label == label] for label in (0, 1))
    return normal, anomalous, images.reading


def without_defect(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """RGB bytes [H, W, 3] with the anomalous pixels (bool [H, W]) filled from around them (A. Telea, JGT 2004)."""
    reach = 2 * max(1, round(SPREAD * min(mask.shape))) + 1
    hole = cv2.dilate(mask.astype(np.uint8), np.ones((reach, reach), np.uint8))
    return cv2.inpaint(image, hole, RADIUS, cv2.INPAINT_TELEA)


def normal_of(sample: Sample, normal: list[Sample], seed: int, reading: Reading) -> np.ndarray:
    """A normal image of the sample's class as RGB bytes [H, W, 3], chosen by the seed and the sample's name.

    Raises:
        ValueError: the class has none.
    """
    of_class = [other for other in normal if other.class_name == sample.class_name]
    if not of_class:
        raise ValueError(
            f"--visible normal: class {sample.class_name!r} has no normal image; use --visible inpaint"
        )
    chosen = of_class[keyed_rng(seed, sample.file_name).integers(len(of_class))]
    return np.asarray(read_image_of(chosen, reading))


def panels_of(
    sample: Sample, normal: list[Sample], triptych: TriptychSettings, reading: Reading
) -> dict[str, np.ndarray]:
    """{"visible", "target", "semantic"}: RGB bytes [S, S, 3] of one anomalous sample."""
    target, mask = read_pair(sample, reading)  # mask bool [H, W]
    target = np.asarray(target)
    if triptych.visible == "inpaint":
        visible = without_defect(target, mask)
    else:
        visible = normal_of(sample, normal, triptych.seed, reading)
    semantic = np.repeat(mask[..., None], 3, axis=-1).astype(np.uint8) * 255
    panels = {}
    for panel, pixels in zip(PANELS, (visible, target, semantic), strict=True):
        method = Image.Resampling.NEAREST if panel == "semantic" else Image.Resampling.BICUBIC
        panels[panel] = np.asarray(Image.fromarray(pixels).resize((triptych.size, triptych.size), method))
    return panels


def write_triptych(panels: dict[str, np.ndarray], out: Path, name: str, layout: str) -> dict[str, str]:
    """Write one triptych of `panels_of`; returns its row of triptych.jsonl."""
    if layout == "strips":
        write_png(out / name, np.concatenate([panels[panel] for panel in PANELS], axis=1))
    else:
        for panel in PANELS:
            write_png(out / panel / name, panels[panel])
    return {"name": Path(name).stem, **{panel: f"{panel}/{name}" for panel in PANELS}}


def main(argv: Sequence[str] | None = None) -> None:
    settings = parse(__doc__, GROUPS, argv, DEFAULTS)
    triptych, data = settings.own, settings.data
    logger = open_logger("make_triptychs")  # no file: the folder holds triptychs alone
    if triptych.size < 1:
        raise ValueError(f"--size is {triptych.size}: expected a panel's side in pixels")
    out = Path(triptych.out)
    if out.is_dir() and any(out.iterdir()):
        raise FileExistsError(
            f"--out {out} is not empty: nothing is overwritten; name a new folder or empty this one"
        )
    declare_datasets(data)
    normal, anomalous, reading = training_samples(data, triptych.seed, logger)
    if not anomalous:
        raise ValueError(
            f"--dataset {data.dataset} --shot {data.shot} has no anomalous image with a mask: use --shot 2 or more"
        )
    names = picture_names([sample.file_name for sample in anomalous])
    rows = [
        write_triptych(panels_of(sample, normal, triptych, reading), out, name, triptych.layout)
        for sample, name in zip(anomalous, names, strict=True)
    ]
    if triptych.layout == "jsonl":
        write_rows(rows, out / INDEX)
    panel = f"{triptych.size}x{triptych.size}"
    logger.info(
        f"{len(rows)} triptychs of {panel} panels in {out} ({triptych.layout}), visible: {triptych.visible}"
    )


if __name__ == "__main__":
    run_main(main)
