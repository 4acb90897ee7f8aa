"""calibrate.py's sequence: normal pictures are scored, their threshold is stored beside the run."""

from collections.abc import Sequence
from dataclasses import dataclass
from logging import Logger
from pathlib import Path

from tqdm import tqdm

from evaluation.few_shot import stated
from evaluation.photographs.calibration import (
    THRESHOLDS,
    calibrated,
    check_count,
    check_rate,
    refuse_abnormal,
    store,
    what_is_scored,
)
from evaluation.photographs.inputs import given_pictures
from evaluation.photographs.request import (
    ScoringSettings,
    check_scoring,
    checked_checkpoint,
    groups,
    named_references,
    named_subject,
    tiling_of,
)
from evaluation.photographs.scorer import PhotographScorer, load_scorer
from evaluation.photographs.subject import Subject
from evaluation.photographs.views import Unreadable
from files.command import REFUSED
from files.logs import PROGRAM, open_logger
from model.matrix_products import matrix_products
from model.settings import option
from run_folder.session import declare_datasets
from run_folder.settings import Settings
from utils import choose_device, close_logger, on_terminal, setup_seed


@dataclass(frozen=True)
class CalibrationSettings(ScoringSettings):
    """calibration"""

    false_positive_rate: float = option(0.05, "share of normal pictures that may be called anomalous")
    rows: str | None = option(None, "jsonl rows with labels: anomalous pictures among the input are refused")
    thresholds: str | None = option(
        None, f"file that keeps the threshold; default {THRESHOLDS} in the run's folder"
    )


GROUPS = groups(CalibrationSettings)


def calibrate(settings: Settings) -> int:
    """Score normal pictures and store their threshold; returns the exit status, 2 where a picture could not be read."""
    own = settings.own
    check_scoring(settings)
    check_rate(own.false_positive_rate)
    if own.run is None and own.thresholds is None:
        raise ValueError(
            "--raw_clip has no folder: name the file that keeps the threshold with --thresholds FILE"
        )
    file = Path(own.thresholds or Path(own.run) / THRESHOLDS)
    declare_datasets(settings.data)
    subject = named_subject(settings)
    pictures, notes = given_pictures(own.input, file)
    if own.rows is not None:
        refuse_abnormal(pictures, own.rows)
    check_count(len(pictures), own.false_positive_rate)
    few_shot = named_references(settings, pictures)
    checkpoint = checked_checkpoint(settings)
    choose_device(settings.run.device)
    setup_seed(settings.run.seed, settings.run.fast)
    logger = open_logger(PROGRAM)
    try:
        for note in notes:
            logger.info("%s", note)
        if few_shot is not None:
            logger.info(stated(few_shot))
        scorer = load_scorer(
            own.run, checkpoint=checkpoint, settings=settings, logger=logger, few_shot=few_shot
        )
        with matrix_products(own.matmul, scorer.device, logger):
            scores = normal_scores(scorer, subject, pictures, settings, logger)
        result = calibrated(scores, own.false_positive_rate)
        store(file, result, what_is_scored(scorer, subject, tiling_of(settings, scorer.img_size)))
        low, high = result.interval
        logger.info(
            f"threshold {result.threshold:.6g} from {len(scores)} normal pictures: a further one is called anomalous "
            f"with probability {result.false_positive_rate:g} at most, on average over such draws; with this one "
            f"between {low:.3f} and {high:.3f} (90 %)"
        )
        logger.info(f"stored in {file}: predict.py --calibrated uses it")
        return REFUSED if len(scores) < len(pictures) else 0
    finally:
        close_logger(logger)


def normal_scores(
    scorer: PhotographScorer, subject: Subject, pictures: Sequence[Path], settings: Settings, logger: Logger
) -> list[float]:
    """The scores of the pictures that can be read; the others are logged."""
    found = scorer.score_files(
        pictures,
        subject,
        batch_size=settings.own.batch_size,
        workers=settings.run.workers,
        tiling=tiling_of(settings, scorer.img_size),
    )
    scores = []
    for one in tqdm(found, "scoring", len(pictures), leave=False, disable=not on_terminal()):
        if isinstance(one, Unreadable):
            logger.warning("skipped %s: %s", str(pictures[one.picture]), one.reason)
        else:
            scores.append(one.score)
    return scores
