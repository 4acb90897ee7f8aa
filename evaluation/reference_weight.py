"""Find the one weight of normal references on training classes, and store it in a run's folder.

    python -m evaluation.reference_weight --save_path ckpt/visa --dataset VisA --references 4
    python -m evaluation.reference_weight --raw_clip --save_path ckpt/raw --dataset VisA --references 4
    python -m evaluation.reference_weight --rarity_alone --save_path ckpt/rarity --dataset VisA --references 4

Of every class `--references` normal pictures are drawn as references and at most `--images` others are scored against
them. The weight with the largest mean over the classes of (pixel AP + AUROC of each picture's own score) / 2 is kept in
reference_weight.json, where test.py and predict.py find it; ties go to the smaller one. Unseen classes are never looked
at: test.py refuses a weight that was found on the data set it tests.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from dataset import get_dataset
from dataset.mask_values import mask_reading_of
from evaluation.accumulate import spread_order
from evaluation.few_shot import WEIGHT_FILE
from evaluation.normal_references import ReferenceBanks, WithReferences
from evaluation.rarity import rarity_alone_scorer
from evaluation.scorer import AnomalyScorer, raw_clip_scorer, scorer_of
from files.atomic import write_text
from files.command import run_main
from files.logs import PROGRAM, open_logger
from metrics import ranking_metrics, unnormalised_image_score
from model.matrix_products import matrix_products
from model.settings import option
from run_folder.flags import parse
from run_folder.kinds import BASELINE, find_run
from run_folder.loaded_run import GROUPS as RUN_GROUPS
from run_folder.loaded_run import describe_run, load_run
from run_folder.session import create_backbone, declare_datasets
from run_folder.settings import Settings
from utils import choose_device, close_logger, on_terminal, setup_seed

WEIGHTS = (0.0, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)  # 0: references say nothing
STRIDE = 4  # pixel AP is over every fourth row and column: a choice of a weight needs no more


@dataclass(frozen=True)
class WeightSettings:
    """weight"""

    references: int = option(4, "normal pictures of every class that are its references")
    images: int = option(64, "other pictures of every class that are scored, at most")
    raw_clip: bool = option(False, "the unadapted backbone instead of a run")
    rarity_alone: bool = option(
        False, "each patch's rarity in its own image, as of test.py, instead of a run"
    )
    batch_size: int = option(8, "pictures scored together; changes rounding only")


GROUPS = {**RUN_GROUPS, "own": WeightSettings}
DEFAULTS = {"dataset": "VisA", "shot": 4, "save_path": BASELINE.save_path}


def main(argv: Sequence[str] | None = None) -> None:
    settings = parse(__doc__, GROUPS, argv, DEFAULTS)
    own, data = settings.own, settings.data
    for flag, value in (
        ("references", own.references),
        ("images", own.images),
        ("batch_size", own.batch_size),
    ):
        if value < 1:
            raise ValueError(f"--{flag} {value}: expected 1 or more")
    if own.raw_clip and own.rarity_alone:
        raise ValueError("--raw_clip and --rarity_alone have a weight each: give one of them")
    setup_seed(settings.run.seed, settings.run.fast)
    logger = open_logger(PROGRAM)
    try:
        if not (
            own.raw_clip or own.rarity_alone
        ):  # the run's own size and reading of masks count, where no flag says another
            kind, (file,) = find_run(settings.run.save_path)
            settings = describe_run(file, kind, settings)
            data = settings.data
        declare_datasets(data)
        reading = mask_reading_of(data.dataset, data.mask_reading)
        size = settings.model.img_size
        sets = get_dataset(
            data.dataset, size, "full_shot", 0, "test", logger, data_root=data.data_root, mask_reading=reading
        )
        scorer, clip = loaded(settings, logger)
        by_class = []
        with matrix_products(settings.run.matmul, next(clip.parameters()).device, logger):
            for name, images in sets.items():
                found = of_class(scorer, clip, images, name, settings)
                if found is None:
                    logger.warning(f"{name}: no {own.references} normal pictures and one more: left out")
                else:
                    by_class.append(found)
        weight, means = choose(by_class)
        file = Path(settings.run.save_path) / WEIGHT_FILE
        file.parent.mkdir(parents=True, exist_ok=True)
        content = {"weight": weight, "dataset": data.dataset, "references": own.references, "means": means}
        content |= {"classes": len(by_class), "img_size": settings.model.img_size}
        content |= {"raw_clip": own.raw_clip, "rarity_alone": own.rarity_alone}
        write_text(file, json.dumps(content, indent=1) + "\n")
        shown = ", ".join(f"{one:g}: {100 * value:.1f}" for one, value in means.items())
        logger.info(f"(pixel AP + image AUROC) / 2 by weight: {shown}")
        logger.info(f"weight {weight:g} of {len(by_class)} classes of {data.dataset} kept in {file}")
    finally:
        close_logger(logger)


def loaded(settings: Settings, logger: Any) -> tuple[AnomalyScorer, Any]:
    """(the zero-shot scorer of the data set's classes, its frozen backbone)"""
    dataset = settings.data.dataset
    if settings.own.raw_clip or settings.own.rarity_alone:
        clip = create_backbone(settings, choose_device(settings.run.device), logger)
        scorer_from = rarity_alone_scorer if settings.own.rarity_alone else raw_clip_scorer
        return scorer_from(clip, dataset, settings.model.img_size), clip
    run = load_run(settings.run.save_path, flags=settings, logger=logger)
    return scorer_of(run, dataset), run.model.clipmodel


def of_class(
    scorer: AnomalyScorer, clip: Any, images: Dataset, name: str, settings: Settings
) -> dict[float, float] | None:
    """{weight: (pixel AP + image AUROC) / 2} of a class, of those that are defined; None without enough normal ones."""
    own, order = settings.own, spread_order(images)
    order = [number for number in order if images.samples[number].label is not None]
    normal = [number for number in order if images.samples[number].label == 0]
    references, rest = normal[: own.references], set(normal[: own.references])
    scored = [number for number in order if number not in rest]
    if len(references) < own.references or not scored:
        return None
    banks = ReferenceBanks(clip, lambda _: (images[number]["image"] for number in references))
    both = WithReferences(scorer, banks, 1.0)
    loader = DataLoader(
        Subset(images, scored[: own.images]), own.batch_size, num_workers=settings.run.workers
    )
    parts = scored_parts(both, tqdm(loader, desc=name, leave=False, disable=not on_terminal()), name)
    return {weight: value_of(parts, weight, scorer.levels) for weight in WEIGHTS}


@torch.no_grad()
def scored_parts(scorer: WithReferences, batches: Iterable[dict], name: str) -> dict[str, np.ndarray]:
    """What a weight is judged by, of n pictures of a class.

    Returns:
        {"maps", "extra_maps" [n, S, S], "heads", "extra_heads" [n]: zero-shot, and what a weight of 1 adds;
        "masks" [n, S, S], "known", "labels" [n]}
    """
    device, found = scorer.banks.device, []
    for batch in batches:
        image = batch["image"].to(device, non_blocking=True)
        values = [*scorer.scorer.score(image, name), *scorer.distances(image, name)]
        known = batch.get("mask_known", torch.ones(len(image)))
        values += [batch["mask"][:, 0] > 0, known > 0, batch["label"]]
        found.append([value.cpu().numpy() for value in values])
    keys = ("maps", "heads", "extra_maps", "extra_heads", "masks", "known", "labels")
    return {key: np.concatenate(values) for key, values in zip(keys, zip(*found, strict=True), strict=True)}


def value_of(parts: dict[str, np.ndarray], weight: float, levels: int) -> float | None:
    """Mean of the pixel AP and the image AUROC with a weight, in [0, 1]; of those that are defined, None without any.

    Args:
        parts: of `scored_parts`.
        levels: the maps are a sum of so many.
    """
    maps = parts["maps"] + weight * parts["extra_maps"]
    own = unnormalised_image_score(maps, parts["heads"] + weight * parts["extra_heads"], levels)
    thinned = (slice(None), slice(None, None, STRIDE), slice(None, None, STRIDE))
    known = parts["known"]
    pixels = (
        ranking_metrics(parts["masks"][known][thinned], maps[known][thinned])["ap"] if known.any() else None
    )
    values = [
        value for value in (pixels, ranking_metrics(parts["labels"], own)["auroc"]) if value is not None
    ]
    return float(np.mean(values)) if values else None


def choose(by_class: list[dict[float, float | None]]) -> tuple[float, dict[float, float]]:
    """(the weight with the largest mean over the classes, all means); ties go to the smaller weight.

    Raises:
        ValueError: no class had enough pictures of both kinds.
    """
    means = {}
    for weight in WEIGHTS:
        values = [one[weight] for one in by_class if one[weight] is not None]
        if not values:
            raise ValueError(
                "no class has normal pictures beside the references and defective ones: a weight cannot be found; "
                "take a smaller --references, or another --dataset"
            )
        means[weight] = float(np.mean(values))
    return max(means, key=lambda weight: (means[weight], -weight)), means


if __name__ == "__main__":
    run_main(main)
