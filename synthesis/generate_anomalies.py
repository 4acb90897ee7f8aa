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

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from logging import Logger
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from dataset.image_files import Reading, read_image, read_image_of
from dataset.jsonl import read_rows, write_rows
from files.atomic import write_text
from files.command import Refusal, run_main
from files.pictures import outline, sheet, write_png
from model.settings import option
from run_folder.flags import parse
from run_folder.session import declare_datasets
from run_folder.settings import DataSettings, Settings
from synthesis.choices import FILL_MASKS, check_side
from synthesis.compositing import Gate
from synthesis.generate import Drafter, Item, TextureSampler, make, plan, resized
from synthesis.make_triptychs import training_samples
from synthesis.masks import Area
from synthesis.packages import optional_packages
from utils import choose_device, close_logger, get_logger, lock_run, on_terminal, setup_seed

ROWS, STAMP, LOG = "full-shot.jsonl", "generated.json", "generate.log"
SHOWN, SHOWN_SIDE = 3, 192  # contact sheet: images per class and label, their side in pixels


@dataclass(frozen=True)
class GenerationSettings:
    """generation and gate"""

    seed: int = option(111, "of everything drawn, and of the k shots as in train.py")
    device: str | None = option(None, "torch device; default CUDA if there, else CPU", moves_numbers=False)
    out: str | None = option(
        None, "new folder, or one these flags were used with before", moves_numbers=False, required=True
    )
    method: str | None = option(
        None, "semantic fill, or a texture", choices=["fill", "perlin"], required=True
    )
    model: str = option("tiny", "fill: as in train_semantic_fill.py")
    checkpoint: str | None = option(None, "fill: folder that train_semantic_fill.py wrote")
    size: int | None = option(None, "fill: side of a panel in pixels; default as trained")
    steps: int = option(28, "fill: sampling steps")
    prompt: str | None = option(None, "fill: default the training prompt")
    fill_mask: str | None = option(None, "fill: default as trained", choices=FILL_MASKS)
    masks: str = option(
        "real", "the class's real training masks, moved, or Perlin noise", choices=["real", "perlin"]
    )
    count: int = option(16, "images per class, sham ones included")
    sham_ratio: float = option(0.0, "fill: share of images with label 0")
    feather: float = option(2.0, "pixels of blending inside the label")
    batch_size: int = option(8, "fill: images sampled at once")
    min_change: float = option(8.0, "gate: mean change inside the label, in grey levels of 0 to 255")
    min_area: float = option(Area().low, "gate: share of the image")
    max_area: float = option(Area().high, "gate: share of the image")
    attempts: int = option(4, "gate: masks and samples per image before it is left out")


GROUPS = {"data": DataSettings, "own": GenerationSettings}
DEFAULTS = {"dataset": "DemoA", "shot": 0}


def check_flags(own: GenerationSettings) -> None:
    """Raises ValueError for values that contradict each other or make no image."""
    if own.method == "fill" and not own.checkpoint:
        raise ValueError("--method fill needs --checkpoint FOLDER, written by train_semantic_fill.py")
    if own.method == "perlin" and (own.checkpoint or own.sham_ratio):
        raise ValueError("--method perlin uses no model and no codec: take out --checkpoint and --sham_ratio")
    if not 0 <= own.sham_ratio < 1:
        raise ValueError(
            f"--sham_ratio is {own.sham_ratio}: expected a share of the images, 0 or more and below 1"
        )
    if not 0 < own.min_area < own.max_area <= 1:
        raise ValueError(
            f"--min_area {own.min_area} --max_area {own.max_area}: expected 0 < smaller < larger <= 1"
        )
    if own.feather < 0:
        raise ValueError(f"--feather is {own.feather}: expected 0 pixels (a hard edge) or more")
    if min(own.count, own.attempts, own.batch_size) < 1:
        raise ValueError(
            f"--count {own.count} --attempts {own.attempts} --batch_size {own.batch_size}: "
            "expected 1 or more each"
        )
    if own.size is not None:
        check_side(own.size)


def bind_folder_to_flags(out: Path, settings: Settings) -> None:
    """Tie a folder to the flags its images are made with.

    Raises:
        FileExistsError: it holds something else, or images of other flags.
    """
    stamp, record = out / STAMP, settings.record()
    flags = {flag: record[flag] for flag in settings.flags(moves_numbers=True)}
    if not stamp.is_file() and out.is_dir() and any(out.iterdir()):
        raise FileExistsError(
            f"--out {out} is not empty and has no {STAMP}: nothing is overwritten; name another"
        )
    if not (out / ROWS).is_file():  # no image yet: a first try with wrong flags claims nothing
        write_text(stamp, json.dumps(flags, indent=1) + "\n")
        return
    before = json.loads(stamp.read_text(encoding="utf-8"))
    changed = [
        f"--{key} was {before.get(key)!r}, is {value!r}"
        for key, value in flags.items()
        if before.get(key) != value
    ]
    if changed:
        raise FileExistsError(
            f"--out {out} was made with other flags: {'; '.join(changed)}. Name a new folder"
        )


def contact_sheet(items: list[Item], rows: dict[str, dict], out: Path, reading: Reading) -> np.ndarray:
    """Source, label's outline and image of the first items of every class and label, one line for each of these."""
    lines = {}
    for item in items:
        cells = lines.setdefault((item.class_name, item.is_sham), [])
        if item.name in rows and len(cells) < SHOWN:
            source = np.asarray(read_image_of(item.source, reading))
            image = np.asarray(read_image(str(out / f"{item.name}.png"), item.name))
            label = cv2.imread(str(out / mask_name(item)), cv2.IMREAD_GRAYSCALE)
            cells.append(
                sheet([[resized(cell, SHOWN_SIDE) for cell in (source, outline(image, label), image)]])
            )
    return sheet([cells for cells in lines.values() if cells])


def mask_name(item: Item) -> str:
    """Where an item's mask lies below --out; sham images have one too, of what was pasted, which no row names."""
    return f"{item.name.replace('/', '/masks_', 1)}.png"


def main(argv: Sequence[str] | None = None) -> None:
    settings = parse(__doc__, GROUPS, argv, DEFAULTS)
    check_flags(settings.own)
    out = Path(settings.own.out)
    bind_folder_to_flags(out, settings)
    setup_seed(settings.own.seed)
    lock, logger = lock_run(out), get_logger(out, LOG)
    try:
        generate(settings, out, logger)
    finally:
        close_logger(logger)
        lock.release()


def generate(settings: Settings, out: Path, logger: Logger) -> None:
    """Make what is planned and not there yet, then the contact sheet."""
    own = settings.own
    declare_datasets(settings.data)
    normal, anomalous, reading = training_samples(settings.data, own.seed, logger)
    area = Area(own.min_area, own.max_area)
    items = plan(normal, own.count, own.sham_ratio, own.seed)
    draft_of = Drafter(anomalous, own.masks, area, own.seed, reading)
    if own.method == "fill":
        sampler = fill_sampler(own, logger)
    else:
        sampler = TextureSampler(normal, reading)
    rows = rows_so_far(out)
    wanted = [item for item in items if item.name not in rows]

    def keep(item, image, label):
        write_png(out / f"{item.name}.png", image)
        write_png(out / mask_name(item), np.repeat(label[..., None], 3, axis=-1).astype(np.uint8) * 255)
        row = {
            "image_path": f"{item.name}.png",
            "label": int(not item.is_sham),
            "class_name": item.class_name,
        }
        rows[item.name] = row if item.is_sham else row | {"mask_path": mask_name(item)}
        write_rows([rows[item.name] for item in items if item.name in rows], out / ROWS)

    kinds = ([item for item in wanted if item.is_sham == is_sham] for is_sham in (False, True))
    batches = [kind[at : at + own.batch_size] for kind in kinds for at in range(0, len(kind), own.batch_size)]
    left_out = {}
    for batch in tqdm(batches, desc="generating", unit="batch", disable=not on_terminal()):
        left_out |= make(
            batch,
            draft_of,
            sampler,
            gate=Gate(own.min_change, area),
            feather=own.feather,
            attempts=own.attempts,
            keep=keep,
        )
    for item, reason in left_out.items():
        logger.warning(f"{item.name}: left out after {own.attempts} attempts, {reason}")
    if not rows:
        raise Refusal(
            f"none of {len(items)} images passed the gate ({out / LOG}): train longer or lower the gate"
        )
    write_png(out / "contact_sheet.png", contact_sheet(items, rows, out, reading))
    shams = sum(item.is_sham for item in items if item.name in rows)
    logger.info(
        f"{len(rows) - shams} anomalies and {shams} sham images in {out / ROWS}, {len(left_out)} left out; "
        f"look at {out / 'contact_sheet.png'}"
    )


def fill_sampler(own: GenerationSettings, logger: Logger) -> Callable:
    """Samples by the checkpoint's semantic fill; only here is it imported, textures need none of it."""
    with optional_packages():
        from synthesis.fill_sampler import FillSampler
        from synthesis.sampling import load_filler
        from synthesis.weights import find_checkpoint, read_config

    filler = load_filler(own.model, own.checkpoint, choose_device(own.device))
    config = read_config(find_checkpoint(own.checkpoint))
    return FillSampler(filler, *as_trained(own, config, logger), own.prompt, own.steps)


def as_trained(own: GenerationSettings, config: dict, logger: Logger) -> list:
    """(panel side, fill mask) of the checkpoint's config, unless typed otherwise."""
    chosen = []
    for flag in ("size", "fill_mask"):
        typed, trained = getattr(own, flag), config[flag]
        if typed is not None and typed != trained:
            logger.warning(f"trained with --{flag} {trained}, sampled with {typed}, as typed")
        chosen.append(trained if typed is None else typed)
    return chosen


def rows_so_far(out: Path) -> dict[str, dict]:
    """{item name: row} of the images made before."""
    found = read_rows(out / ROWS) if (out / ROWS).is_file() else []
    return {row["image_path"].removesuffix(".png"): row for _, row in found}


if __name__ == "__main__":
    run_main(main)
