"""predict.py's sequence: what is asked for is checked, pictures are scored, written down, drawn."""

import math
import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from logging import Logger
from pathlib import Path
from typing import Any

from tqdm import tqdm

from evaluation.photographs.inputs import given_pictures, names_of
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
from evaluation.photographs.subject import DOMAIN_NAMES, Subject, subject_of_class, subject_of_text
from evaluation.photographs.tiles import Tiling
from evaluation.photographs.views import Unreadable
from files.command import REFUSED
from forward_utils import prompts_of
from model.settings import option
from run_folder.kinds import find_run
from run_folder.loaded_run import GROUPS as RUN_GROUPS
from run_folder.loaded_run import describe_run
from run_folder.session import declare_datasets
from run_folder.settings import Settings, worker_count
from utils import choose_device, close_logger, get_logger, on_terminal, setup_seed


@dataclass(frozen=True)
class PredictionSettings:
    """prediction"""

    run: str | None = option(None, "folder of a trained run of any kind")
    raw_clip: bool = option(False, "the unadapted backbone instead of a run: zero-shot without training")
    checkpoint: str | None = option(None, "image checkpoint file of the run; default its last")
    epoch: int | None = option(None, "the run's image checkpoint after this many epochs instead of the last")
    loop: int | None = option(None, "this loop of a feedback run instead of its final model")
    input: list = option([], "files, folders of pictures, patterns", type=str, nargs="+")
    class_name: str | None = option(None, "class of a data set: the pictures show what its prompts say")
    text: str | None = option(None, "or in own words what the pictures show, such as 'steel bolt'")
    domain: str | None = option(
        None, "chooses the blur of maps; default the class's, Industrial for --text", choices=DOMAIN_NAMES
    )
    out: str | None = option(None, "folder of the results: empty, missing, or of an earlier prediction")
    threshold: float | None = option(
        None, "score from which on a picture is called anomalous; makes the masks too"
    )
    mask_threshold: float | None = option(None, "map score from which on a pixel belongs to the mask instead")
    tile: bool = option(False, "cut pictures larger than --img_size into overlapping tiles")
    tile_overlap: float = option(0.25, "share of a tile that neighbours have in common at least")
    batch_size: int = option(8, "views scored together; changes rounding only")
    page_pictures: int = option(1000, "pictures on the page, the highest scores first")


@dataclass(frozen=True)
class ClassSettings:
    """data"""

    dataset: str | None = option(None, "data set whose class --class_name is, where several have it")
    dataset_config: str | None = option(None, "JSON/YAML file that declares own datasets")
    real_names: str | None = option(None, "JSON/YAML file {dataset: {class: real name}} of prompt names")


@dataclass(frozen=True)
class ProcessSettings:
    """run"""

    seed: int = option(111, "seed of what a loaded network overwrites")
    device: str | None = option(None, "torch device; default CUDA if there, else CPU")
    workers: int = option(
        0, "processes that read, and threads that draw; auto: one less than the cores", type=worker_count
    )
    fast: bool = option(False, "kernels that a GPU may round otherwise in the next run")


GROUPS = {"own": PredictionSettings, **RUN_GROUPS, "data": ClassSettings, "run": ProcessSettings}


def predict(settings: Settings) -> int:
    """Score and draw what the settings name; returns the exit status, 2 where a picture could not be read."""
    own = settings.own
    check_flags(settings)
    declare_datasets(settings.data)
    subject = named_subject(settings)
    pictures, notes = given_pictures(own.input, own.out)
    checkpoint = checked_checkpoint(settings)
    choose_device(settings.run.device)
    out = prepare_folder(own.out)
    setup_seed(settings.run.seed, settings.run.fast)
    logger = get_logger(out, LOG)
    try:
        logger.info(f"{len(pictures)} pictures of {subject.text!r} ({subject.domain})")
        for note in notes:
            logger.info("%s", note)  # names of files are made plain
        scorer = load_scorer(own.run, checkpoint=checkpoint, settings=settings, logger=logger)
        clear_folder(out)
        found = score_all(scorer, subject, pictures, settings, out, logger)
        return REFUSED if found.skipped else 0
    finally:
        shutil.rmtree(out / MAPS, ignore_errors=True)
        close_logger(logger)


def check_flags(settings: Settings) -> None:
    """Raises ValueError for flags that do not go together or are out of range."""
    own, given = settings.own, settings.explicit
    if (own.run is None) != own.raw_clip:
        raise ValueError("give either --run RUN or --raw_clip: what scores the pictures")
    if (own.class_name is None) == (own.text is None):
        raise ValueError("give either --class_name NAME or --text 'steel bolt': what the pictures show")
    if not own.input:
        raise ValueError("--input is missing: name files, folders or patterns of pictures")
    if not own.out:
        raise ValueError("--out is missing: name the folder of the results")
    checks = (
        ("batch_size", own.batch_size, own.batch_size >= 1, "1 or more"),
        ("page_pictures", own.page_pictures, own.page_pictures >= 0, "0 or more"),
        ("tile_overlap", own.tile_overlap, 0 <= own.tile_overlap <= 0.9, "a share from 0 to 0.9"),
        ("threshold", own.threshold, math.isfinite(own.threshold or 0), "a number"),
        ("mask_threshold", own.mask_threshold, math.isfinite(own.mask_threshold or 0), "a number"),
        ("img_size", settings.model.img_size, settings.model.img_size >= 1, "a positive number of pixels"),
    )
    for flag, value, holds, expected in checks:
        if not holds:
            raise ValueError(f"--{flag} {value}: expected {expected}")
    for flag, needed, there in (
        ("tile_overlap", "--tile", own.tile),
        ("dataset", "--class_name", own.class_name is not None),
        *((flag, "--run", own.run is not None) for flag in ("checkpoint", "epoch", "loop")),
    ):
        if flag in given and not there:
            raise ValueError(f"--{flag}: does nothing without {needed}; leave it away")


def named_subject(settings: Settings) -> Subject:
    """What the pictures show. Raises ValueError for an unknown class, or words too long for the text tower."""
    own = settings.own
    if own.text is not None:
        subject = subject_of_text(own.text, own.domain)
    else:
        subject = subject_of_class(own.class_name, settings.data.dataset, own.domain)
    prompts_of(subject.registered(), subject.class_name)
    return subject


def checked_checkpoint(settings: Settings) -> Path | None:
    """The image checkpoint that is to be loaded, whose record agrees with the flags; None for raw CLIP."""
    own = settings.own
    if own.run is None:
        return None
    kind, (file,) = find_run(own.run, own.checkpoint, loop=own.loop, epoch=own.epoch)
    describe_run(file, kind, settings)
    return file


def score_all(
    scorer: PhotographScorer,
    subject: Subject,
    pictures: Sequence[Path],
    settings: Settings,
    out: Path,
    logger: Logger,
) -> PredictedFolder:
    """Score the pictures and write everything about them, tables before any picture is drawn."""
    own, begin, silent = settings.own, time.perf_counter(), not on_terminal()
    tiling = Tiling(scorer.img_size, own.tile_overlap) if own.tile else None
    levels = scorer.of(subject).levels
    prediction = PredictedFolder(out, subject.text, levels, own.threshold, own.mask_threshold)
    found = scorer.score_files(
        pictures, subject, batch_size=own.batch_size, workers=settings.run.workers, tiling=tiling
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
        f"{count} pictures scored in {seconds:.1f} s, {count / seconds:.2f} images/s with reading; latency "
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
        logger.warning(f"{len(prediction.skipped)} pictures were skipped (exit status {REFUSED})")
    if prediction.threshold is None:
        logger.info("no --threshold: pictures are ranked, not decided")
    else:
        anomalous = sum(one.decision == "anomalous" for one in prediction.pictures)
        logger.info(f"{anomalous} of {len(prediction.pictures)} pictures are anomalous")
    logger.info(f"scores.csv, scores.json and {page.name} in {page.parent}: open {page}")
