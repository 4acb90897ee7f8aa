"""A dataset class by class: predictions of a scorer, and their metrics."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from evaluation.scorer import AnomalyScorer
from metrics import class_metrics, mean_row, only, table_row
from utils import on_terminal


def shown_mean(result: dict[str, Any]) -> str:
    """The defined means of a result in one line."""
    mean = result["mean"].items()
    return ", ".join(f"{key} {value:.4f}" for key, value in mean if isinstance(value, float))


@torch.no_grad()
def predict_class(
    scorer: AnomalyScorer,
    images: Dataset,
    class_name: str,
    *,
    batch_size: int,
    device: torch.device,
    workers: int = 0,
) -> dict[str, Any]:
    """Score every test image of one class.

    Returns:
        {"maps" [n, S, S] float32, "head" [n] float32, "masks" [n, S, S] uint8, "mask_known" [n] bool, "labels" [n] of
        0/1 and -1 for unlabelled, "files" [n]}
    """
    found = {key: [] for key in ("head", "mask_known", "labels", "files")}
    maps = masks = None  # filled in place: to join batches at the end would take their memory twice
    pinned = torch.device(device).type == "cuda"
    loader = DataLoader(images, batch_size=batch_size, num_workers=workers, pin_memory=pinned)
    for batch in tqdm(loader, desc=class_name, leave=False, disable=not on_terminal()):
        own, head = scorer.score(batch["image"].to(device, non_blocking=True), class_name)
        labels, done = np.asarray(batch["label"]), len(found["files"])
        if maps is None:
            maps = np.empty((len(images), *own.shape[1:]), np.float32)
            masks = np.empty(maps.shape, np.uint8)
        maps[done : done + len(labels)] = own.float().cpu().numpy()
        masks[done : done + len(labels)] = batch["mask"][:, 0].numpy()
        found["head"].append(head.float().cpu().numpy())
        found["mask_known"].append(np.asarray(batch.get("mask_known", labels >= 0)) > 0)
        found["labels"].append(labels)
        found["files"].extend(batch["file_name"])
    joined = {key: value if key == "files" else np.concatenate(value) for key, value in found.items()}
    return {"maps": maps, "masks": masks} | joined


def evaluate_dataset(
    scorer: AnomalyScorer,
    test_sets: dict[str, Dataset],
    *,
    batch_size: int,
    device: torch.device,
    workers: int = 0,
    on_metrics: Callable[[dict], None] | None = None,
    on_class: Callable[[str, dict], None] | None = None,
) -> dict[str, Any]:
    """Metrics of every class of a dataset.

    Args:
        test_sets: {class name: dataset}.
        on_metrics: function (result of the classes so far) called after each class, so that a later error loses none.
        on_class: function (class name, predictions) called after that, for pictures.

    Returns:
        {"classes": {name: metrics}, "mean": metrics, "upstream": [rows of upstream's table, None where undefined]}
    """
    classes, upstream = {}, []
    for name, images in test_sets.items():
        predictions = predict_class(
            scorer, images, name, batch_size=batch_size, device=device, workers=workers
        )
        classes[name], row = metrics_of(predictions, name, scorer)
        upstream.append(row)
        if on_metrics is not None:
            on_metrics(result_of(classes, upstream))
        if on_class is not None:
            on_class(name, predictions)
        del predictions  # before the next class takes its memory
    return result_of(classes, upstream)


def result_of(classes: dict[str, dict], upstream: list[dict]) -> dict[str, Any]:
    """What `evaluate_dataset` returns, of {class: metrics} and rows of upstream's table."""
    average = mean_row([{key: row[key] for key in row if key != "class name"} for row in upstream])
    rows = [*upstream, {"class name": "Average"} | average]
    return {"classes": dict(classes), "mean": mean_row(list(classes.values())), "upstream": rows}


def metrics_of(predictions: dict[str, Any], name: str, scorer: AnomalyScorer) -> tuple[dict, dict]:
    """(every metric, row of upstream's table) of a class's labelled images."""
    labelled = predictions["labels"] >= 0
    masks, labels, maps, head, known = (
        only(labelled, predictions[key]) for key in ("masks", "labels", "maps", "head", "mask_known")
    )
    return (
        class_metrics(masks, labels, maps, head, scorer.domain, scorer.levels, known),
        table_row(masks, labels, maps, head, name, scorer.domain, known),
    )
