"""Triptychs [visible | target | semantic] of a dataset's defects, to train semantic fill on.

    python make_triptychs.py --dataset DemoA --data_root data --shot 2 --size 192 --out runs/triptychs

One triptych per anomalous training image: target = the image, semantic = its mask in white on black, visible = what the
image would show without the defect. Only the defective image exists, so that is made up: `--visible inpaint` (default)
fills the defect from its surroundings and is equal to the target everywhere else, `--visible normal` takes a normal
image of the same class, which is real but shows another pose. `--layout` chooses between strips, folders and a
triptych.jsonl; see synthesis/data.py.
"""

import argparse
import logging
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

import options
from dataset import get_dataset
from dataset.image_files import read_image, read_mask
from dataset.jsonl import write_rows
from runs import declare_datasets
from synthesis.data import INDEX, LAYOUTS, PANELS
from synthesis.masks import keyed_rng
from visualization import picture_names, write_png

SPREAD = 0.02  # of the side: how far a defect's light and shadow reach beyond its mask
RADIUS = 5  # pixels of surroundings that inpainting looks at


def build_parser():
    """The dataset's flags and what is written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_data_flags(parser, dataset="DemoA", shot=0)
    parser.add_argument("--seed", type=int, default=111, help="chooses the k shots, as train.py does with this seed")
    parser.add_argument("--out", required=True, help="new or empty folder")
    parser.add_argument("--layout", choices=LAYOUTS, default="strips", help="default strips")
    parser.add_argument("--size", type=int, default=512, help="side of a panel in pixels; default 512")
    parser.add_argument("--visible", choices=["inpaint", "normal"], default="inpaint", help="default inpaint")
    return parser


def training_samples(args, logger):
    """(normal, anomalous) samples that train.py would train on with the same flags."""
    samples = get_dataset(args.dataset, 1, "few_shot", args.shot, "train", logger, data_root=args.data_root,
                          seed=args.seed)[0].samples  # fmt: skip
    return tuple([sample for sample in samples if sample.label == label] for label in (0, 1))


def without_defect(image, mask):
    """RGB bytes [H, W, 3] with the anomalous pixels (bool [H, W]) filled from around them (A. Telea, JGT 2004)."""
    reach = 2 * max(1, round(SPREAD * min(mask.shape))) + 1
    hole = cv2.dilate(mask.astype(np.uint8), np.ones((reach, reach), np.uint8))
    return cv2.inpaint(image, hole, RADIUS, cv2.INPAINT_TELEA)


def normal_of(sample, normal, seed):
    """A normal image of the sample's class, chosen by the seed and the sample's name.

    Raises:
        ValueError: the class has none.
    """
    own = [other for other in normal if other.class_name == sample.class_name]
    if not own:
        raise ValueError(f"--visible normal: class {sample.class_name!r} has no normal image; use --visible inpaint")
    chosen = own[keyed_rng(seed, sample.file_name).integers(len(own))]
    return np.asarray(read_image(chosen.image_path, chosen.source))


def panels_of(sample, normal, args):
    """{"visible", "target", "semantic"}: RGB bytes [S, S, 3] of one anomalous sample."""
    target = read_image(sample.image_path, sample.source)
    mask = read_mask(sample.mask_path, target.size, sample.source)  # bool [H, W]
    target = np.asarray(target)
    is_inpainted = args.visible == "inpaint"
    visible = without_defect(target, mask) if is_inpainted else normal_of(sample, normal, args.seed)
    semantic = np.repeat(mask[..., None], 3, axis=-1).astype(np.uint8) * 255
    panels = {}
    for panel, pixels in zip(PANELS, (visible, target, semantic), strict=True):
        method = Image.Resampling.NEAREST if panel == "semantic" else Image.Resampling.BICUBIC
        panels[panel] = np.asarray(Image.fromarray(pixels).resize((args.size, args.size), method))
    return panels


def write_triptych(panels, out, name, layout):
    """Write one triptych; returns its row of triptych.jsonl."""
    if layout == "strips":
        write_png(out / name, np.concatenate([panels[panel] for panel in PANELS], axis=1))
    else:
        for panel in PANELS:
            write_png(out / panel / name, panels[panel])
    return {"name": Path(name).stem, **{panel: f"{panel}/{name}" for panel in PANELS}}


def main(argv=None):
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # no file: the folder holds triptychs alone
    logger = logging.getLogger("make_triptychs")
    if args.size < 1:
        raise ValueError(f"--size is {args.size}: expected a panel's side in pixels")
    out = Path(args.out)
    if out.is_dir() and any(out.iterdir()):
        raise FileExistsError(f"--out {out} is not empty: nothing is overwritten; name a new folder or empty this one")
    declare_datasets(args)
    normal, anomalous = training_samples(args, logger)
    if not anomalous:
        raise ValueError(f"--dataset {args.dataset} --shot {args.shot} has no anomalous image: use --shot 2 or more")
    names = picture_names([sample.file_name for sample in anomalous])
    rows = [
        write_triptych(panels_of(sample, normal, args), out, name, args.layout)
        for sample, name in zip(anomalous, names, strict=True)
    ]
    if args.layout == "jsonl":
        write_rows(rows, out / INDEX)
    logger.info(
        f"{len(rows)} triptychs of {args.size}x{args.size} panels in {out} ({args.layout}), visible: {args.visible}"
    )


if __name__ == "__main__":
    main()
