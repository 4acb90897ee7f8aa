"""What is written of one evaluation: metrics class by class, scores to compare, every picture's, heatmaps, errors."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from evaluation.errors import clear_stale_page, errors_file, write_errors
from evaluation.picture_folders import clear_stale
from evaluation.picture_scores import gather_picture_scores, picture_scores, write_picture_scores
from evaluation.predictions import evaluate_dataset, shown_bounds, shown_mean
from evaluation.results import format_table, is_unfinished, write_metrics
from evaluation.scorer import AnomalyScorer
from evaluation.scores import class_scores, scores_file, write_scores
from files.pictures import visualize, visualize_batches
from run_folder.processes import current
from run_folder.session import Session


class Pictures(Sequence):
    """The images [3, S, S] of a data set, each read when it is drawn: a class of thousands does not lie in memory."""

    def __init__(self, images: Dataset):
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Tensor:
        return self._images[index]["image"]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[index] for index in range(len(self)))


def keep_class(
    scores: dict,
    pictures: list,
    scorer: AnomalyScorer,
    test_sets: dict[str, Dataset],
    session: Session,
    checkpoint: str,
    class_name: str,
    predictions: dict[str, Any],
) -> None:
    """Keep what a comparison needs of a class's predictions in `scores`, every picture's scores in `pictures` and their
    file, and draw them where that is asked for.

    Args:
        checkpoint: its entry in metrics.json.
    """
    settings, images = session.settings, test_sets[class_name]
    dataset, save_path = settings.data.dataset, settings.run.save_path
    if (predictions["labels"] >= 0).any():
        scores[class_name] = class_scores(predictions, images.samples, scorer.domain, scorer.levels)
    pictures += picture_scores(predictions, class_name, scorer.domain, scorer.levels)
    # A finished file of the same evaluation stays whole until this one is.
    if class_name == list(test_sets)[-1] or is_unfinished(save_path, dataset, checkpoint):
        write_picture_scores(save_path, dataset, checkpoint, pictures)
    if not settings.own.visualize:
        return
    if "maps" not in predictions:
        ends = float(predictions["ends"].min()), float(predictions["ends"].max())
        drawn = predictions["again"](), predictions["files"], save_path, dataset, class_name, ends
        folder = visualize_batches(*drawn)
    else:
        known = Pictures(images), predictions["mask_known"]
        files = predictions["files"], save_path, dataset, class_name
        folder = visualize(predictions["masks"], predictions["maps"], *files, *known)
    session.tracker.pictures(dataset, class_name, checkpoint, folder)


def report(
    session: Session, scorer: AnomalyScorer, test_sets: dict[str, Dataset], name: str, info: dict[str, Any]
) -> dict[str, Any]:
    """Evaluate one checkpoint and write everything about it, metrics class by class and before any picture.

    Args:
        name: its entry in metrics.json.
        info: what stands beside the metrics, of evaluation.provenance.provenance.
    """
    settings, logger = session.settings, session.logger
    dataset, img_size, save_path = settings.data.dataset, settings.model.img_size, settings.run.save_path
    scores, pictures, stale = {}, [], 0
    session.tracker.begin(info["run"] or name)
    if current().main:
        stale = clear_stale(save_path, "visualization", dataset, name, info, draws=settings.own.visualize)
    if stale:
        logger.info(f"deleted {stale} pictures of an earlier evaluation of {dataset}")
    result = evaluate_dataset(
        scorer,
        test_sets,
        batch_size=settings.own.batch_size,
        device=session.device,
        workers=settings.run.workers,
        on_metrics=lambda found: write_metrics(save_path, dataset, name, found, info, list(test_sets)),
        on_class=partial(keep_class, scores, pictures, scorer, test_sets, session, name),
        exact_pixels=settings.own.exact_pixels,
    )
    if not current().main:
        return result
    logger.info(f"{dataset} with {name} @{img_size}px")
    logger.info(f"final results:\n{format_table(result['upstream'])}")
    logger.info("mean over classes: " + shown_mean(result))
    for line in shown_bounds(result):
        logger.info(line)
    session.tracker.metrics(dataset, name, result["mean"])
    stored = info | {
        "tested_with": settings.record(),
        "levels": scorer.levels,
        "checkpoint": name,
        "classes": result["classes"],
    }
    if result["error_bounds"]:
        stored["error_bounds"] = result["error_bounds"]
    write_scores(scores_file(save_path, dataset, name), scores, stored)
    gather_picture_scores(save_path)
    report_errors(session, scorer, test_sets, name, info, pictures)
    return result


def report_errors(
    session: Session,
    scorer: AnomalyScorer,
    test_sets: dict[str, Dataset],
    name: str,
    info: dict[str, Any],
    pictures: list,
) -> None:
    """Write the page of `--errors`; without it delete one that shows other numbers. Arguments as `report`.

    Args:
        pictures: the evaluation's PictureScores.
    """
    settings, logger = session.settings, session.logger
    dataset, count = settings.data.dataset, settings.own.errors
    page = errors_file(settings.run.save_path, dataset, name)
    if not count:
        if clear_stale_page(page, info):
            logger.info(f"deleted {page}, which showed an earlier evaluation")
        return
    how = {
        "scorer": scorer,
        "test_sets": test_sets,
        "batch_size": settings.own.batch_size,
        "device": session.device,
    }
    title = f"{dataset} with {name} @{settings.model.img_size}px"
    alarms, misses = write_errors(page, title, count, pictures, info, how)
    logger.info(f"{page}: the {alarms} worst false alarms and the {misses} worst misses")
