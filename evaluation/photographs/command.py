"""predict.py's sequence: what is asked for is checked, pictures are scored, written down, drawn."""

import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from logging import Logger
from pathlib import Path
from typing import Any

from tqdm import tqdm

from evaluation.few_shot import stated
from evaluation.photographs.calibration import THRESHOLDS, entries_of, threshold_for, what_is_scored
from evaluation.photographs.inputs import given_pictures, names_of
from evaluation.photographs.request import (
    ScoringSettings,
    check_ranges,
    check_scoring,
    checked_checkpoint,
    groups,
    is_number,
    named_references,
    named_subject,
    tiling_of,
)
from evaluation.photographs.results import (
    LOG,
    MAPS,
    PredictedFolder,
    clear_folder,
    draw,
    kept,
    prepare_folder,
    write_page,
    write_tables,
)
from evaluation.photographs.scorer import PhotographScorer, load_scorer
from evaluation.photographs.subject import Subject
from evaluation.photographs.views import Unreadable
from files.command import REFUSED
from files.given import require_regular
from files.text import counted
from model.matrix_products import matrix_products
from model.settings import option
from run_folder.session import declare_datasets
from run_folder.settings import Settings
from utils import choose_device, close_logger, get_logger, on_terminal, setup_seed


@dataclass(frozen=True)
class PredictionSettings(ScoringSettings):
    """prediction"""

    out: str | None = option(None, "folder of the results: empty, missing, or of an earlier prediction")
    threshold: float | None = option(
        None, "score from which on a picture is called anomalous; makes the masks too"
    )
    calibrated: bool = option(
        False, "the threshold that calibrate.py stored for the same run, words and flags"
    )
    thresholds: str | None = option(None, f"file of --calibrated; default {THRESHOLDS} in the run's folder")
    mask_threshold: float | None = option(None, "map score from which on a pixel belongs to the mask instead")
    page_pictures: int = option(1000, "pictures on the page, the highest scores first")


GROUPS = groups(PredictionSettings)


def predict(settings: Settings) -> int:
    """Score and draw what the settings name; returns the exit status, 2 where a picture could not be read."""
    own = settings.own
    check_flags(settings)
    declare_datasets(settings.data)
    subject = named_subject(settings)
    if own.calibrated:
        entries_of(thresholds_file(settings), subject.text)
    pictures, notes = given_pictures(own.input, own.out)
    few_shot = named_references(settings, pictures)
    checkpoint = checked_checkpoint(settings)
    choose_device(settings.run.device)
    out = prepare_folder(own.out)
    setup_seed(settings.run.seed, settings.run.fast)
    logger = get_logger(out, LOG)
    try:
        logger.info(f"{counted(len(pictures), 'picture')} of {subject.text!r} ({subject.domain})")
        for note in notes:
            logger.info("%s", note)  # names of files are made plain
        if few_shot is not None:
            logger.info(stated(few_shot))
        scorer = load_scorer(
            own.run, checkpoint=checkpoint, settings=settings, logger=logger, few_shot=few_shot
        )
        if own.calibrated:
            scored = what_is_scored(scorer, subject, tiling_of(settings, scorer.img_size))
            settings = settings.change(threshold=threshold_for(thresholds_file(settings), scored))
            logger.info(f"threshold {settings.own.threshold:.6g}, calibrated")
        clear_folder(out)
        prediction = PredictedFolder(
            out,
            subject.text,
            scorer.of(subject).levels,
            settings.own.threshold,
            own.mask_threshold,
            few_shot="" if few_shot is None else stated(few_shot),
        )
        with matrix_products(own.matmul, scorer.device, logger):
            found = score_all(scorer, subject, pictures, settings, prediction, logger)
        return REFUSED if found.skipped else 0
    finally:
        shutil.rmtree(out / MAPS, ignore_errors=True)
        close_logger(logger)


def check_flags(settings: Settings) -> None:
    """Raises ValueError for flags that do not go together or are out of range."""
    own = settings.own
    check_scoring(settings)
    if not own.out:
        raise ValueError("--out is missing: name the folder of the results")
    if own.calibrated and own.threshold is not None:
        raise ValueError(f"--threshold {own.threshold} and --calibrated are two thresholds: leave one away")
    if own.thresholds is not None and not own.calibrated:
        raise ValueError("--thresholds: does nothing without --calibrated; leave it away")
    if own.calibrated and own.thresholds is None and own.run is None:
        raise ValueError(
            "--calibrated: raw CLIP has no folder; name calibrate.py's file with --thresholds FILE"
        )
    if own.calibrated:
        require_regular(thresholds_file(settings), "--calibrated")
    check_ranges(
        ("page_pictures", own.page_pictures, own.page_pictures >= 0, "0 or more"),
        ("threshold", own.threshold, is_number(own.threshold), "a number"),
        ("mask_threshold", own.mask_threshold, is_number(own.mask_threshold), "a number"),
    )


def thresholds_file(settings: Settings) -> Path:
    """Where --calibrated finds thresholds."""
    return Path(settings.own.thresholds or Path(settings.own.run) / THRESHOLDS)


def score_all(
    scorer: PhotographScorer,
    subject: Subject,
    pictures: Sequence[Path],
    settings: Settings,
    prediction: PredictedFolder,
    logger: Logger,
) -> PredictedFolder:
    """Score the pictures and write everything about them, tables before any picture is drawn.

    Args:
        prediction: without pictures.
    """
    own, begin, silent = settings.own, time.perf_counter(), not on_terminal()
    found = scorer.score_files(
        pictures,
        subject,
        batch_size=own.batch_size,
        workers=settings.run.workers,
        tiling=tiling_of(settings, scorer.img_size),
    )
    bar = tqdm(found, "scoring", len(pictures), leave=False, disable=silent)
    prediction = kept(prediction, bar, pictures, names_of(pictures))
    seconds = time.perf_counter() - begin
    summary = timing(prediction, seconds, scorer, own)
    logger.info(summary)
    info = record(scorer, subject, settings, seconds, len(prediction.pictures))
    write_tables(prediction, info)
    drawn = draw(prediction, own.page_pictures, settings.run.workers)
    bar = tqdm(drawn, "drawing", len(prediction.pictures), leave=False, disable=silent)
    small, gone = [], []
    for one, made in zip(prediction.pictures, bar, strict=True):
        is_gone = isinstance(made, Unreadable)
        if is_gone:
            gone.append((one.file, f"scored but not drawn: {made.reason}"))
        if len(small) < own.page_pictures:
            small.append({} if is_gone else made)
    if gone:
        prediction = replace(prediction, skipped=[*prediction.skipped, *gone])
        write_tables(prediction, info)
    page = write_page(prediction, small, summary)
    say_how_it_ended(prediction, page, logger)
    return prediction


def timing(
    prediction: PredictedFolder, seconds: float, scorer: PhotographScorer, own: PredictionSettings
) -> str:
    """What scoring took, as one sentence."""
    count = len(prediction.pictures)
    if not count:
        return f"no picture could be scored ({seconds:.1f} s)"
    each = statistics.median(one.seconds for one in prediction.pictures)
    return (
        f"{counted(count, 'picture')} scored in {seconds:.1f} s, {count / seconds:.2f} images/s with reading; latency "
        f"{each * 1000:.0f} ms per picture in the model (median; batches of {own.batch_size}, {scorer.img_size} px, "
        f"{scorer.device})"
    )


def record(
    scorer: PhotographScorer, subject: Subject, settings: Settings, seconds: float, count: int
) -> dict[str, Any]:
    """What scores.json says beside the pictures."""
    own = settings.own
    return {
        "class_name": own.class_name,
        "text": subject.text,
        "domain": subject.domain,
        "run": own.run,
        "model": scorer.origin,
        "img_size": scorer.img_size,
        "tile": own.tile_overlap if own.tile else None,
        "seconds": seconds,
        "images_per_second": count / seconds,
    }


def say_how_it_ended(prediction: PredictedFolder, page: Path, logger: Logger) -> None:
    """Log what was skipped, how many pictures are anomalous, and where to look."""
    for file, reason in prediction.skipped:
        logger.warning("skipped %s: %s", file, reason)
    if prediction.skipped:
        logger.warning(f"skipped: {counted(len(prediction.skipped), 'picture')} (exit status {REFUSED})")
    if not prediction.pictures:
        pass  # nothing is ranked or decided
    elif prediction.threshold is None:
        logger.info("no --threshold: pictures are ranked, not decided")
    else:
        anomalous = sum(one.decision == "anomalous" for one in prediction.pictures)
        logger.info(f"anomalous: {anomalous} of {counted(len(prediction.pictures), 'picture')}")
    logger.info(f"scores.csv, scores.json and {page.name} in {page.parent}: open {page}")
