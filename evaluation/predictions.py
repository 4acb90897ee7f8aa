"""A dataset class by class: predictions of a scorer, and their metrics."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from evaluation.scorer import AnomalyScorer
from metrics import class_metrics, mean_row, metrics_eval
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
        {"maps" [n, S, S] float32, "head" [n] float32, "masks" [n, S, S] uint8, "labels" [n], "files" [n]}
    """
    parts = {key: [] for key in ("maps", "head", "masks", "labels", "files")}
    pinned = torch.device(device).type == "cuda"
    loader = DataLoader(images, batch_size=batch_size, num_workers=workers, pin_memory=pinned)
    for batch in tqdm(loader, desc=class_name, leave=False, disable=not on_terminal()):
        maps, head = scorer.score(batch["image"].to(device, non_blocking=True), class_name)
        parts["maps"].append(maps.float().cpu().numpy())
        parts["head"].append(head.float().cpu().numpy())
        parts["masks"].append(batch["mask"][:, 0].numpy().astype(np.uint8))
        parts["labels"].append(np.asarray(batch["label"]))
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
        {"classes": {name: metrics}, "mean": metrics, "upstream": [rows of upstream's table]}
    """
    classes, upstream, domain = {}, [], scorer.domain
    for name, images in test_sets.items():
        predictions = predict_class(
            scorer, images, name, batch_size=batch_size, device=device, workers=workers
        )
        masks, labels, maps, head = (predictions[key] for key in ("masks", "labels", "maps", "head"))
        classes[name] = class_metrics(masks, labels, maps, head, domain, scorer.levels)
        upstream.append(metrics_eval(masks, labels, maps, head, name, domain))
        if on_class is not None:
            on_class(name, predictions)
    average = {
        key: float(np.mean([row[key] for row in upstream])) for key in upstream[0] if key != "class name"
    }
    upstream.append({"class name": "Average"} | average)
    return {"classes": classes, "mean": mean_row(list(classes.values())), "upstream": upstream}
