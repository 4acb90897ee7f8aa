"""Labelled synthetic anomalies from a dataset's normal training images, for `train*.py --extra_meta`.

    python generate_anomalies.py --method fill --checkpoint runs/fill --dataset DemoA --data_root data --shot 2 \
        --size 192 --count 16 --out runs/generated
    python generate_anomalies.py --method perlin --masks perlin --dataset DemoA --shot 2 --count 16 --out runs/perlin

Each image starts from a normal one of its class: a mask is drawn, a sample made (`fill`: semantic fill; `perlin`: a
foreign texture, no model), pasted inside the mask, and kept if it passes the gate. Pixels outside the label are the
source's own bytes. `--sham_ratio` adds normal images with label 0 that went through the same codec and the same
pasting, so that a detector cannot tell anomalies by these. Writes --out/full-shot.jsonl, whose rows the detector's
loader takes as they are, images, masks and contact_sheet.png; started again with the same flags it goes on where it
stopped.
"""

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

try:
    from synthesis.generate import Drafter, FillSampler, TextureSampler, make, plan, resized
    from synthesis.latents import FILL_MASKS, check_side
    from synthesis.sampling import load_filler
    from synthesis.weights import find_checkpoint, read_config
except ModuleNotFoundError as error:
    if error.name not in ("diffusers", "peft", "transformers", "tokenizers", "accelerate"):
        raise
    raise SystemExit(f"semantic fill needs {error.name}: pip install -r requirements-synthesis.txt") from error

import options
from dataset.image_files import read_image
from dataset.jsonl import read_rows, write_rows
from evaluation import write_text
from make_triptychs import training_samples
from runs import declare_datasets
from synthesis.compositing import Gate
from synthesis.masks import Area
from utils import choose_device, close_logger, get_logger, lock_run, on_terminal, setup_seed
from visualization import outline, sheet, write_png

ROWS, STAMP, LOG = "full-shot.jsonl", "generated.json", "generate.log"
MAY_DIFFER = {"out", "device", "data_root", "dataset_config", "real_names"}  # flags that change no image
SHOWN, SHOWN_SIDE = 3, 192  # contact sheet: images per class and label, their side in pixels


def build_parser():
    """The dataset's flags, how anomalies are made, and what is accepted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_data_flags(parser, dataset="DemoA", shot=0)
    group = parser.add_argument_group("generation")
    group.add_argument("--seed", type=int, default=111, help="of everything drawn, and of the k shots as in train.py")
    group.add_argument("--device", help="torch device; default CUDA if there, else CPU")
    group.add_argument("--out", required=True, help="new folder, or one these flags were used with before")
    group.add_argument("--method", choices=["fill", "perlin"], required=True, help="semantic fill, or a texture")
    group.add_argument("--model", default="tiny", help="fill: as in train_semantic_fill.py; default tiny")
    group.add_argument("--checkpoint", help="fill: folder that train_semantic_fill.py wrote")
    group.add_argument("--size", type=int, help="fill: side of a panel in pixels; default as trained")
    group.add_argument("--steps", type=int, default=28, help="fill: sampling steps; default 28")
    group.add_argument("--prompt", help="fill: default the training prompt")
    group.add_argument("--fill_mask", choices=FILL_MASKS, help="fill: default as trained")
    group.add_argument("--masks", choices=["real", "perlin"], default="real",
                       help="the class's real training masks, moved, or Perlin noise; default real")  # fmt: skip
    group.add_argument("--count", type=int, default=16, help="images per class, sham ones included; default 16")
    group.add_argument("--sham_ratio", type=float, default=0.0, help="fill: share of images with label 0; default 0")
    group.add_argument("--feather", type=float, default=2.0, help="pixels of blending inside the label; default 2")
    group.add_argument("--batch_size", type=int, default=8, help="fill: images sampled at once; default 8")
    group = parser.add_argument_group("gate")
    group.add_argument("--min_change", type=float, default=8.0,
                       help="mean change inside the label, in grey levels of 0 to 255; default 8")  # fmt: skip
    group.add_argument("--min_area", type=float, default=Area().low, help="share of the image; default %(default)s")
    group.add_argument("--max_area", type=float, default=Area().high, help="share of the image; default %(default)s")
    group.add_argument("--attempts", type=int, default=4, help="masks and samples per image before it is left out")
    return parser


def check_flags(args):
    """Raises ValueError for values that contradict each other or make no image."""
    if args.method == "fill" and not args.checkpoint:
        raise ValueError("--method fill needs --checkpoint FOLDER, written by train_semantic_fill.py")
    if args.method == "perlin" and (args.checkpoint or args.sham_ratio):
        raise ValueError("--method perlin uses no model and no codec: take out --checkpoint and --sham_ratio")
    if not 0 <= args.sham_ratio < 1:
        raise ValueError(f"--sham_ratio is {args.sham_ratio}: expected a share of the images, 0 or more and below 1")
    if not 0 < args.min_area < args.max_area <= 1:
        raise ValueError(f"--min_area {args.min_area} --max_area {args.max_area}: expected 0 < smaller < larger <= 1")
    if args.feather < 0:
        raise ValueError(f"--feather is {args.feather}: expected 0 pixels (a hard edge) or more")
    if min(args.count, args.attempts, args.batch_size) < 1:
        raise ValueError(
            f"--count {args.count} --attempts {args.attempts} --batch_size {args.batch_size}: expected 1 or more each"
        )
    if args.size is not None:
        check_side(args.size)


def claim(out, args):
    """Tie a folder to the flags its images are made with.

    Raises:
        FileExistsError: it holds something else, or images of other flags.
    """
    stamp, flags = out / STAMP, {key: value for key, value in vars(args).items() if key not in MAY_DIFFER}
    if not stamp.is_file() and out.is_dir() and any(out.iterdir()):
        raise FileExistsError(f"--out {out} is not empty and has no {STAMP}: nothing is overwritten; name another")
    if not (out / ROWS).is_file():  # no image yet: a first try with wrong flags claims nothing
        write_text(stamp, json.dumps(flags, indent=1) + "\n")
        return
    before = json.loads(stamp.read_text(encoding="utf-8"))
    changed = [f"--{key} was {before.get(key)!r}, is {value!r}" for key, value in flags.items()
               if before.get(key) != value]  # fmt: skip
    if changed:
        raise FileExistsError(f"--out {out} was made with other flags: {'; '.join(changed)}. Name a new folder")


def contact_sheet(items, rows, out):
    """Source, label's outline and image of the first items of every class and label, one line for each of these."""
    lines = {}
    for item in items:
        cells = lines.setdefault((item.class_name, item.is_sham), [])
        if item.name in rows and len(cells) < SHOWN:
            source = np.asarray(read_image(item.source.image_path, item.source.source))
            image = np.asarray(read_image(str(out / f"{item.name}.png"), item.name))
            label = cv2.imread(str(out / mask_name(item)), cv2.IMREAD_GRAYSCALE)
            cells.append(sheet([[resized(cell, SHOWN_SIDE) for cell in (source, outline(image, label), image)]]))
    return sheet([cells for cells in lines.values() if cells])


def mask_name(item):
    """Where an item's mask lies below --out; sham images have one too, of what was pasted, which no row names."""
    return f"{item.name.replace('/', '/masks_', 1)}.png"


def main(argv=None):
    args = build_parser().parse_args(argv)
    check_flags(args)
    out = Path(args.out)
    claim(out, args)
    setup_seed(args.seed)
    lock, logger = lock_run(out), get_logger(out, LOG)
    try:
        generate(args, out, logger)
    finally:
        close_logger(logger)
        lock.release()


def generate(args, out, logger):
    """Make what is planned and not there yet, then the contact sheet."""
    declare_datasets(args)
    normal, anomalous = training_samples(args, logger)
    area = Area(args.min_area, args.max_area)
    items = plan(normal, args.count, args.sham_ratio, args.seed)
    draft_of = Drafter(anomalous, args.masks, area, args.seed)
    if args.method == "fill":
        filler = load_filler(args.model, args.checkpoint, choose_device(args.device))
        sampler = FillSampler(filler, *as_trained(args, logger), args.prompt, args.steps)
    else:
        sampler = TextureSampler(normal)
    rows = rows_so_far(out)
    wanted = [item for item in items if item.name not in rows]

    def keep(item, image, label):
        write_png(out / f"{item.name}.png", image)
        write_png(out / mask_name(item), np.repeat(label[..., None], 3, axis=-1).astype(np.uint8) * 255)
        row = {"image_path": f"{item.name}.png", "label": int(not item.is_sham), "class_name": item.class_name}
        rows[item.name] = row if item.is_sham else row | {"mask_path": mask_name(item)}
        write_rows([rows[item.name] for item in items if item.name in rows], out / ROWS)

    kinds = ([item for item in wanted if item.is_sham == is_sham] for is_sham in (False, True))
    batches = [own[start : start + args.batch_size] for own in kinds for start in range(0, len(own), args.batch_size)]
    left_out = {}
    for batch in tqdm(batches, desc="generating", unit="batch", disable=not on_terminal()):
        left_out |= make(batch, draft_of, sampler, gate=Gate(args.min_change, area), feather=args.feather,
                         attempts=args.attempts, keep=keep)  # fmt: skip
    for item, reason in left_out.items():
        logger.warning(f"{item.name}: left out after {args.attempts} attempts, {reason}")
    if not rows:
        raise RuntimeError(f"none of {len(items)} images passed the gate ({out / LOG}): train longer or lower the gate")
    write_png(out / "contact_sheet.png", contact_sheet(items, rows, out))
    shams = sum(item.is_sham for item in items if item.name in rows)
    logger.info(f"{len(rows) - shams} anomalies and {shams} sham images in {out / ROWS}, {len(left_out)} left out; "
                f"look at {out / 'contact_sheet.png'}")  # fmt: skip


def as_trained(args, logger):
    """(panel side, fill mask) of the checkpoint, unless typed otherwise."""
    config = read_config(find_checkpoint(args.checkpoint))
    chosen = []
    for flag in ("size", "fill_mask"):
        typed, trained = getattr(args, flag), config[flag]
        if typed is not None and typed != trained:
            logger.warning(f"trained with --{flag} {trained}, sampled with {typed}, as typed")
        chosen.append(trained if typed is None else typed)
    return chosen


def rows_so_far(out):
    """{item name: row} of the images made before."""
    found = read_rows(out / ROWS) if (out / ROWS).is_file() else []
    return {row["image_path"].removesuffix(".png"): row for _, row in found}


if __name__ == "__main__":
    main()
