"""Evaluating a run's checkpoints, or what needs none, on a dataset: what test.py and compare.py do."""

from contextlib import ExitStack
from dataclasses import dataclass
from logging import Logger
from typing import Any

from torch.utils.data import Dataset

from dataset import DOMAINS, get_dataset
from dataset.mask_values import mask_reading_of
from evaluation.accumulate import EXACT_PIXELS
from evaluation.attention_pictures import draw_attention
from evaluation.few_shot import ClassReferences, banks_of, check_references, class_references, few_shot
from evaluation.local_contrast import LocalContrast
from evaluation.loops import write_loop_table
from evaluation.picture_folders import clear_stale
from evaluation.provenance import provenance
from evaluation.rarity import (
    RARITY_ALONE,
    RARITY_CONTROLS,
    complaint_about,
    named_with_rarity,
    rarity_alone_scorer,
    scorer_with_rarity,
)
from evaluation.report import report
from evaluation.scorer import raw_clip_scorer, scorer_of
from model.matrix_products import matrix_products
from model.settings import option
from run_folder.caches import feature_cache, read_through_caches, say_how_it_served
from run_folder.kinds import BASELINE, FEEDBACK, find_run
from run_folder.loaded_run import GROUPS as RUN_GROUPS
from run_folder.loaded_run import describe_run, load_run
from run_folder.loading import check_one_run
from run_folder.processes import current, joined, run_logger
from run_folder.session import Session, create_backbone, declare_datasets, sweep_run
from run_folder.settings import CacheSettings, Settings, TrackerSettings
from run_folder.trackers import tracker_of
from utils import choose_device, close_logger, setup_seed

RAW_CLIP = "raw_clip"  # what the evaluation of the unadapted backbone is called
LOCAL_CONTRAST = "local_contrast"  # and that of the filter without learning
UNTRAINED = (
    RAW_CLIP,
    LOCAL_CONTRAST,
    RARITY_ALONE,
)  # evaluations without a checkpoint, each a flag of this name


@dataclass(frozen=True)
class EvaluationSettings:
    """evaluation"""

    batch_size: int = option(32, "images scored together; changes rounding only")
    exact_pixels: int = option(
        EXACT_PIXELS,
        "pixels of a class up to which pixel metrics are exact; beyond, they are binned, with an error bound",
    )
    checkpoint: str | None = option(None, "image checkpoint file; default the run's last")
    all: bool = option(False, "evaluate every numbered image checkpoint, or every loop")
    epoch: int | None = option(None, "the image checkpoint after this many epochs instead of the last")
    loop: int | None = option(None, "this loop of a feedback run instead of its final model")
    raw_clip: bool = option(False, "evaluate the unadapted backbone instead of a run")
    local_contrast: bool = option(
        False, "evaluate a contrast filter, the reference without learning, instead"
    )
    normal_references: str | None = option(
        None,
        "few-shot: folder of sound pictures, a folder for every class; never compared with zero-shot results",
    )
    reference_weight: float | None = option(
        None, "weight of the references; default what evaluation.reference_weight stored in the run's folder"
    )
    rarity_alone: bool = option(
        False,
        "evaluate each patch's rarity in its own image, in frozen CLIP without text or training, instead",
    )
    rarity_weight: float = option(
        0.0, "weight of rarity_alone's differences added to the run's, found on training classes; 0 = off"
    )
    rarity_control: str = option(
        "none", "control of a study: the rarities of another image of the batch", choices=RARITY_CONTROLS
    )
    no_cross_attention: bool = option(False, "ablation: cross-attention off at test")
    visualize: bool = option(False, "write original, truth and heatmap as PNGs")
    errors: int = option(0, "write the so many worst false alarms and misses as one page")
    attention_of: list = option(
        [],
        "draw both cross-attentions for these images: paths as in the metadata, or any photograph's",
        type=str,
        nargs="+",
        metavar="IMAGE",
    )
    attention_shows: str | None = option(
        None,
        "what photographs of --attention_of that are no test image show: a class of --dataset or own words",
    )
    attention_word: str = option("damaged", "the prompt word whose attention is drawn")
    text_norm_weight: float = option(
        0.1,
        "accepted for AA-CLIP's command lines: a weight of training, without effect here",
        moves_numbers=False,
    )


GROUPS = {**RUN_GROUPS, "cache": CacheSettings, "own": EvaluationSettings, "tracker": TrackerSettings}
DEFAULTS = {"dataset": "MVTec", "shot": 4, "save_path": BASELINE.save_path}


def evaluate_run(settings: Settings) -> list[dict[str, Any]]:
    """Evaluate what the settings name: table, metrics.json, metrics.csv, scores to compare, pictures.

    Several processes score together where they were started so; the main one writes.

    Returns:
        per checkpoint the result of `evaluate_dataset`.
    """
    setup_seed(settings.run.seed, settings.run.fast)  # before CUDA starts
    with joined(settings.run.device):
        return evaluate_together(settings)


def evaluate_together(settings: Settings) -> list[dict[str, Any]]:
    """`evaluate_run` in the processes that have met."""
    own = settings.own
    if own.errors < 0:
        raise ValueError(f"--errors is {own.errors}: expected how many pictures of each kind, 0 for no page")
    kind, files = BASELINE, []
    untrained = untrained_in(own)
    if untrained is None:
        kind, files = find_run(settings.run.save_path, own.checkpoint, own.all, own.loop, own.epoch)
    elif own.epoch is not None:
        raise ValueError(f"--epoch {own.epoch}: --{untrained} has no epochs; leave one of the two away")
    if own.attention_of and kind is BASELINE:
        raise ValueError(
            "--attention_of draws cross-attention, which raw CLIP and a baseline run do not have"
        )
    logger = run_logger(settings.run.save_path, "test.log")
    sweep_run(settings.run.save_path)
    with ExitStack() as stack:
        stack.callback(close_logger, logger)
        tracker = tracker_of(settings, logger)
        stack.callback(tracker.close)
        if len(files) > 1:
            check_one_run(files, find_run(settings.run.save_path)[1][0])
        if files:
            settings = describe_run(files[-1], kind, settings)  # load_run logs what it changes
        reading = mask_reading_of(settings.data.dataset, settings.data.mask_reading)
        settings = settings.change(mask_reading=reading)  # the results say which it was
        logger.info(f"args: {settings.record()}")
        session = Session(settings, choose_device(settings.run.device), logger, tracker=tracker)
        stack.enter_context(matrix_products(settings.run.matmul, session.device, logger, current().tell))
        declare_datasets(settings.data)
        check_references(settings)
        test_sets = get_dataset(
            settings.data.dataset,
            settings.model.img_size,
            "full_shot",
            settings.data.shot,
            "test",
            logger,
            data_root=settings.data.data_root,
            mask_reading=reading,
        )
        read_through_caches(test_sets.values(), settings, logger)
        references = class_references(settings, test_sets)
        if files:
            return evaluate_files(session, files, test_sets, references)
        return [evaluate_untrained(session, test_sets, references)]


def untrained_in(own: EvaluationSettings) -> str | None:
    """The evaluation without a checkpoint that the flags ask for, or None.

    Raises:
        ValueError: two of them, or flags that do not go with one, or with none.
    """
    chosen = [name for name in UNTRAINED if getattr(own, name)]
    if len(chosen) > 1:
        flags = " and ".join(f"--{name}" for name in chosen)
        raise ValueError(f"{flags} are {len(chosen)} evaluations: give one of them")
    if complaint := complaint_about(own.rarity_weight, own.rarity_control, own.rarity_alone):
        raise ValueError(complaint)
    if chosen and own.rarity_weight:
        raise ValueError(f"--rarity_weight is added to a run's scores: leave --{chosen[0]} away")
    return chosen[0] if chosen else None


def evaluate_untrained(
    session: Session, test_sets: dict[str, Dataset], references: ClassReferences | None
) -> dict[str, Any]:
    """Evaluate the unadapted backbone, rarity alone in it, or the contrast filter, which needs no weights."""
    settings = session.settings
    dataset, img_size = settings.data.dataset, settings.model.img_size
    if settings.own.local_contrast:
        name, scorer, clip = LOCAL_CONTRAST, LocalContrast(img_size, DOMAINS[dataset]), None
    else:
        clip = create_backbone(settings, session.device, session.logger)
        cache, control = feature_cache(settings, clip, session.logger), settings.own.rarity_control
        name, scorer = RAW_CLIP, raw_clip_scorer(clip, dataset, img_size, cache)
        if settings.own.rarity_alone:
            name = named_with_rarity(RARITY_ALONE, 0, control)
            scorer = rarity_alone_scorer(clip, dataset, img_size, control, cache)
    info = provenance(settings, scorer.domain, test_sets, BASELINE.name, clip=clip)
    banks = banks_of(references, clip, settings)
    seen, name, info = few_shot(scorer, references, banks, name, info)
    result = report(session, seen, test_sets, name, info)
    say_how_it_served(getattr(scorer, "cache", None), session.logger)
    return result


def evaluate_files(
    session: Session, files: list, test_sets: dict[str, Dataset], references: ClassReferences | None
) -> list[dict[str, Any]]:
    """Evaluate checkpoints of one run, one after the other in one model."""
    settings, own, results, scorer = session.settings, session.settings.own, [], None
    run = load_run(
        settings.run.save_path, files[-1], device=session.device, flags=settings, logger=session.logger
    )
    note_training_weight(settings, run.stored or {}, session.logger)
    cache = feature_cache(settings, run.model.clipmodel, session.logger)
    banks = banks_of(references, run.model.clipmodel, settings, keep=len(files) > 1)
    for file in files:
        run = run if len(files) == 1 else run.at(file, session.logger)
        tested = run.without_cross_attention() if own.no_cross_attention else run
        if scorer is None or run.kind is FEEDBACK:  # other runs have one text side, whose anchors stay
            scorer = scorer_of(tested, settings.data.dataset, cache)
            if own.rarity_weight:
                clip = run.model.clipmodel
                scorer = scorer_with_rarity(scorer, clip, own.rarity_weight, own.rarity_control)
        name = file.name + (" without cross-attention" if own.no_cross_attention else "")
        control = settings.anchor_attention.anchor_attention_control
        if control != (run.stored or {}).get("anchor_attention_control", "none"):
            name += f", anchors {control}"  # beside the run's own evaluation, not in its place
        name = named_with_rarity(name, own.rarity_weight, own.rarity_control)
        info = provenance(settings, scorer.domain, test_sets, run.kind.name, run=run)
        seen, name, info = few_shot(scorer, references, banks, name, info)
        results.append(report(session, seen, test_sets, name, info))
    if not current().main:
        return results
    if run.kind is FEEDBACK and own.all and own.checkpoint is None and own.loop is None:
        session.logger.info(write_loop_table(settings.run.save_path, run.identity.run))
    say_how_it_served(cache, session.logger)
    draws = bool(own.attention_of)
    clear_stale(settings.run.save_path, "attention", settings.data.dataset, name, info, draws=draws)
    if own.attention_of:
        draw_attention(tested, scorer, test_sets, settings, session.logger)
    return results


def note_training_weight(settings: Settings, stored: dict[str, Any], logger: Logger) -> None:
    """Say that a typed `--text_norm_weight` which is not the training's does nothing here.

    Args:
        stored: the checkpoint's settings.
    """
    typed, trained = settings.own.text_norm_weight, stored.get("text_norm_weight")
    if "text_norm_weight" in settings.explicit and trained not in (None, typed):
        logger.warning(
            f"--text_norm_weight {typed}: a weight of training, without effect here; this run has {trained}"
        )
