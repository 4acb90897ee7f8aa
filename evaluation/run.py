"""Evaluating a run's checkpoints on a dataset: everything test.py and compare.py write into its folder."""

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch.utils.data import Dataset

from dataset import get_dataset
from evaluation.attention_pictures import draw_attention
from evaluation.loops import write_loop_table
from evaluation.predictions import evaluate_dataset, shown_mean
from evaluation.results import format_table, write_metrics
from evaluation.scorer import AnomalyScorer, raw_clip_scorer, scorer_of
from evaluation.scores import class_scores, scores_file, write_scores
from files.pictures import visualize
from metrics import METRICS_VERSION
from model.settings import option
from run_folder.kinds import BASELINE, FEEDBACK, find_run
from run_folder.loaded_run import GROUPS as RUN_GROUPS
from run_folder.loaded_run import describe_run, load_run
from run_folder.session import Session, create_backbone, declare_datasets, sweep_run
from run_folder.settings import Settings
from utils import choose_device, close_logger, get_logger, setup_seed

RAW_CLIP = "raw_clip"  # what the evaluation of the unadapted backbone is called


@dataclass(frozen=True)
class EvaluationSettings:
    """evaluation"""

    batch_size: int = option(32, "images scored together; changes rounding only")
    checkpoint: str | None = option(None, "image checkpoint file; default the run's last")
    all: bool = option(False, "evaluate every numbered image checkpoint, or every loop")
    loop: int | None = option(None, "this loop of a feedback run instead of its final model")
    raw_clip: bool = option(False, "evaluate the unadapted backbone instead of a run")
    no_cross_attention: bool = option(False, "ablation: cross-attention off at test")
    visualize: bool = option(False, "write original, truth and heatmap as PNGs")
    attention_of: list = option(
        [],
        "draw both cross-attentions for these images (paths as in the metadata)",
        type=str,
        nargs="+",
        metavar="IMAGE",
    )
    attention_word: str = option("damaged", "the prompt word whose attention is drawn")


GROUPS = {**RUN_GROUPS, "own": EvaluationSettings}
DEFAULTS = {"dataset": "MVTec", "shot": 4, "save_path": BASELINE.save_path}


def evaluate_run(settings: Settings) -> list[dict[str, Any]]:
    """Evaluate what the settings name: table, metrics.json, metrics.csv, scores to compare, pictures.

    Returns:
        per checkpoint the result of `evaluate_dataset`.
    """
    own = settings.own
    setup_seed(settings.run.seed)
    kind, files = BASELINE, []
    if not own.raw_clip:
        kind, files = find_run(settings.run.save_path, own.checkpoint, own.all, own.loop)
    if own.attention_of and kind is BASELINE:
        raise ValueError(
            "--attention_of draws cross-attention, which raw CLIP and a baseline run do not have"
        )
    logger = get_logger(settings.run.save_path, "test.log")
    sweep_run(settings.run.save_path)
    try:
        if files:
            settings = describe_run(files[-1], kind, settings)  # load_run logs what it changes
        session = Session(settings, choose_device(settings.run.device), logger)
        declare_datasets(settings.data)
        test_sets = get_dataset(
            settings.data.dataset,
            settings.model.img_size,
            "full_shot",
            settings.data.shot,
            "test",
            logger,
            data_root=settings.data.data_root,
        )
        return evaluate_files(session, files, test_sets) if files else [evaluate_raw_clip(session, test_sets)]
    finally:
        close_logger(logger)


def evaluate_raw_clip(session: Session, test_sets: dict[str, Dataset]) -> dict[str, Any]:
    """Evaluate the unadapted backbone."""
    settings = session.settings
    clip = create_backbone(settings, session.device, session.logger)
    scorer = raw_clip_scorer(clip, settings.data.dataset, settings.model.img_size)
    return report(session, scorer, test_sets, RAW_CLIP, BASELINE.name, settings.record(), {})


def evaluate_files(session: Session, files: list, test_sets: dict[str, Dataset]) -> list[dict[str, Any]]:
    """Evaluate checkpoints of one run, one after the other in one model."""
    settings, own, results, scorer = session.settings, session.settings.own, [], None
    run = load_run(
        settings.run.save_path, files[-1], device=session.device, flags=settings, logger=session.logger
    )
    for file in files:
        run = run if len(files) == 1 else run.at(file, session.logger)
        tested = run.without_cross_attention() if own.no_cross_attention else run
        if scorer is None or run.kind is FEEDBACK:  # other runs have one text side, whose anchors stay
            scorer = scorer_of(tested, settings.data.dataset)
        name = file.name + (" without cross-attention" if own.no_cross_attention else "")
        results.append(report(session, scorer, test_sets, name, run.kind.name, run.stored, run.files))
    if run.kind is FEEDBACK and own.all and own.checkpoint is None and own.loop is None:
        session.logger.info(write_loop_table(settings.run.save_path))
    if own.attention_of:
        draw_attention(tested, scorer, test_sets, settings, session.logger)
    return results


def keep_class(
    scores: dict,
    scorer: AnomalyScorer,
    test_sets: dict[str, Dataset],
    settings: Settings,
    class_name: str,
    predictions: dict[str, Any],
) -> None:
    """Keep what a comparison needs of a class's predictions in `scores`, and draw them where that is asked for."""
    images = test_sets[class_name]
    scores[class_name] = class_scores(predictions, images.samples, scorer.domain, scorer.levels)
    if settings.own.visualize:
        pictures = [item["image"] for item in images]
        visualize(
            predictions["masks"],
            predictions["maps"],
            predictions["files"],
            settings.run.save_path,
            settings.data.dataset,
            class_name,
            pictures,
        )


def report(
    session: Session,
    scorer: AnomalyScorer,
    test_sets: dict[str, Dataset],
    name: str,
    kind: str,
    trained_with: dict | None,
    files: dict[str, str],
) -> dict[str, Any]:
    """Evaluate one checkpoint and write everything about it.

    Args:
        name: its entry in metrics.json.
        kind: of the run.
        trained_with: the checkpoint's settings.
        files: {name: SHA-256} of what was loaded.
    """
    settings, logger = session.settings, session.logger
    dataset, img_size, save_path = settings.data.dataset, settings.model.img_size, settings.run.save_path
    scores = {}
    keep = partial(keep_class, scores, scorer, test_sets, settings)
    result = evaluate_dataset(
        scorer,
        test_sets,
        batch_size=settings.own.batch_size,
        device=session.device,
        workers=settings.run.workers,
        on_class=keep,
    )
    logger.info(f"{dataset} with {name} @{img_size}px\n{format_table(result['upstream'])}")
    logger.info("mean over classes: " + shown_mean(result))
    evaluation_info = {
        "model_name": settings.model.model_name,
        "img_size": img_size,
        "domain": scorer.domain,
        "kind": kind,
        "settings": trained_with,
    }
    write_metrics(save_path, dataset, name, result, evaluation_info)
    stored = evaluation_info | {
        "tested_with": settings.record(),
        "metrics_version": METRICS_VERSION,
        "levels": scorer.levels,
        "checkpoint": name,
        "checkpoints": files,
        "classes": result["classes"],
    }
    write_scores(scores_file(save_path, dataset, name), scores, stored)
    return result
