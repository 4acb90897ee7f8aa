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
    parts = {key: [] for key in ("maps", "head", "masks", "mask_known", "labels", "files")}
    loader = DataLoader(images, batch_size=batch_size, num_workers=workers)
    for batch in tqdm(loader, desc=class_name, leave=False, disable=not on_terminal()):
        maps, head = scorer.score(batch["image"].to(device), class_name)
        parts["maps"].append(maps.float().cpu().numpy())
        parts["head"].append(head.float().cpu().numpy())
        parts["masks"].append(batch["mask"][:, 0].numpy().astype(np.uint8))
        labels = np.asarray(batch["label"])
        parts["mask_known"].append(np.asarray(batch.get("mask_known", labels >= 0)) > 0)
        parts["labels"].append(labels)
        parts["files"].extend(batch["file_name"])
    return {key: value if key == "files" else np.concatenate(value) for key, value in parts.items()}


def evaluate_dataset(
    scorer: AnomalyScorer,
    test_sets: dict[str, Dataset],
    *,
    batch_size: int,
    device: torch.device,
    workers: int = 0,
    on_class: Callable[[str, dict], None] | None = None,
) -> dict[str, Any]:
    """Metrics of every class of a dataset.

    Args:
        test_sets: {class name: dataset}.
        on_class: function (class name, predictions) called after each class, for pictures.

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
        if on_class is not None:
            on_class(name, predictions)
    average = mean_row([{key: row[key] for key in row if key != "class name"} for row in upstream])
    upstream.append({"class name": "Average"} | average)
    return {"classes": classes, "mean": mean_row(list(classes.values())), "upstream": upstream}


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
