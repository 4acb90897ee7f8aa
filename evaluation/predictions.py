"""A dataset class by class: predictions of a scorer, and their metrics."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from evaluation.accumulate import EXACT_PIXELS, ClassAccumulator, is_exact, spread_order, warm_up_images
from evaluation.scorer import AnomalyScorer
from files.digests import IMAGE_DIGEST
from metrics import (
    class_metrics,
    fused_score_of_extremes,
    mean_row,
    metrics_row,
    only,
    table_row,
    unnormalised_score_of_peak,
    upstream_row,
)
from run_folder.processes import ALONE, Processes, current
from utils import on_terminal


def shown_mean(result: dict[str, Any]) -> str:
    """The defined means of a result in one line; those of binned pixels with what their error cannot exceed."""
    errors = result.get("error_bounds", {}).get("mean", {})
    shown = []
    for key, value in result["mean"].items():
        if isinstance(value, float):
            error = errors.get(key)
            shown.append(f"{key} {value:.4f}" + ("" if error is None else f" (± {error:.1e})"))
    return ", ".join(shown)


def shown_bounds(result: dict[str, Any]) -> list[str]:
    """One line for every class whose pixels were counted in bins: what the errors of its metrics cannot exceed."""
    lines = []
    for name, bounds in result["error_bounds"].get("classes", {}).items():
        errors = ", ".join(f"{key} ± {error:.1e}" for key, error in bounds.items() if error is not None)
        lines.append(f"{name}: pixels beyond --exact_pixels were counted in bins: {errors or 'none counts'}")
    return lines


class Batch(NamedTuple):
    """Numbers of images that are scored together; the first `company` of them are there for the others to see."""

    seen: Sequence[int]
    company: int = 0


def batches_of(count: int, batch_size: int, see_another: bool = False) -> list[Batch]:
    """`count` images, `batch_size` at a time.

    Args:
        see_another: no image may be alone in its batch: one that is left over sees the image before it, the very first
            the second, which is scored again and counts once.
    """
    batches = [Batch(range(start, min(start + batch_size, count))) for start in range(0, count, batch_size)]
    if not see_another or count < 2:
        return batches
    return [Batch([abs(one.seen[0] - 1), one.seen[0]], 1) if len(one.seen) == 1 else one for one in batches]


def sees_another_image(scorer: nn.Module) -> bool:
    """Whether what a scorer makes of an image depends on another one of its batch, as in a control of a study."""
    return getattr(scorer, "sees_another_image", False)


def refuse_lonely_images(scorer: nn.Module, test_sets: dict[str, Dataset]) -> None:
    """Raises ValueError for a class of one image that would have to see another one."""
    lonely = [name for name, images in test_sets.items() if len(images) == 1]
    if lonely and sees_another_image(scorer):
        raise ValueError(
            f"a control that sees another image of the class: {', '.join(lonely)} has 1 image, expected 2 or more; "
            "leave the class out of the dataset's rows, or the control away"
        )


def predict_batches(
    scorer: AnomalyScorer,
    images: Dataset,
    class_name: str,
    *,
    batch_size: int,
    device: torch.device,
    workers: int = 0,
    processes: Processes = ALONE,
) -> Iterator[dict[str, Any]]:
    """Score every test image of one class, batch by batch.

    Several processes take the batches in turn, each whole, so that what a batch gives does not depend on their number.
    The main one yields all of them in order, without "images"; the others yield nothing.

    Args:
        processes: that score together, each of which must call this.

    Yields:
        {"maps" [b, S, S] float32, "head" [b] float32, "masks" [b, S, S] uint8, "mask_known" [b] bool, "labels" [b] of
        0/1 and -1 for unlabelled, "files" [b], "images" [b, 3, S, S] tensor}
    """
    pinned = torch.device(device).type == "cuda"
    batches = batches_of(len(images), batch_size, sees_another_image(scorer))
    mine = batches[processes.rank :: processes.count]
    loader = DataLoader(
        images, batch_sampler=[one.seen for one in mine], num_workers=workers, pin_memory=pinned
    )
    own = (
        {key: value[one.company :] for key, value in batch.items()}
        for one, batch in zip(mine, scored_batches(scorer, loader, class_name, device), strict=True)
    )
    if processes.count == 1:
        yield from own
        return
    for _ in range(0, len(batches), processes.count):
        batch = next(own, None)  # the last round may have less than one for each
        found = processes.collect(batch and {key: batch[key] for key in batch if key != "images"})
        yield from (one for one in found or () if one is not None)


@torch.no_grad()
def scored_batches(
    scorer: AnomalyScorer, loader: DataLoader, class_name: str, device: torch.device
) -> Iterator[dict[str, Any]]:
    """`predict_batches` of the batches of a loader, in this process."""
    cached = getattr(scorer, "cache", None) is not None
    for batch in tqdm(loader, desc=class_name, leave=False, disable=not on_terminal()):
        known = {"digests": batch.get(IMAGE_DIGEST)} if cached else {}
        maps, head = scorer.score(batch["image"].to(device, non_blocking=True), class_name, **known)
        labels = np.asarray(batch["label"])
        yield {
            "maps": maps.float().cpu().numpy(),
            "head": head.float().cpu().numpy(),
            "masks": batch["mask"][:, 0].numpy().astype(np.uint8),
            "mask_known": np.asarray(batch.get("mask_known", labels >= 0)) > 0,
            "labels": labels,
            "files": list(batch["file_name"]),
            "images": batch["image"],
        }


def predict_class(scorer: AnomalyScorer, images: Dataset, class_name: str, **how: Any) -> dict[str, Any]:
    """Score every test image of one class and keep all maps; arguments as `predict_batches`.

    Returns:
        {"maps" [n, S, S] float32, "head" [n] float32, "masks" [n, S, S] uint8, "mask_known" [n] bool, "labels" [n] of
        0/1 and -1 for unlabelled, "files" [n]}
    """
    found = {key: [] for key in ("head", "mask_known", "labels", "files")}
    maps = masks = None  # filled in place: to join batches at the end would take their memory twice
    for batch in predict_batches(scorer, images, class_name, **how):
        done = len(found["files"])
        if maps is None:
            maps = np.empty((len(images), *batch["maps"].shape[1:]), np.float32)
            masks = np.empty(maps.shape, np.uint8)
        maps[done : done + len(batch["files"])] = batch["maps"]
        masks[done : done + len(batch["files"])] = batch["masks"]
        found["files"].extend(batch["files"])
        for key in ("head", "mask_known", "labels"):
            found[key].append(batch[key])
    joined = {key: value if key == "files" else np.concatenate(value) for key, value in found.items()}
    return {"maps": maps, "masks": masks} | joined


def accumulate_class(
    scorer: AnomalyScorer, images: Dataset, class_name: str, exact_pixels: int, **how: Any
) -> dict[str, Any]:
    """Score every test image of one class and keep counts; arguments as `predict_batches`.

    Args:
        exact_pixels: the images that choose the bins hold no more, or are one batch.

    Returns:
        what `ClassAccumulator.finish` does, and "again": function () -> `predict_batches` in the class's order, by
        this process alone.
    """
    order, done = spread_order(images), 0
    accumulator = ClassAccumulator(len(images), warm_up_images(images, exact_pixels))
    for batch in predict_batches(scorer, Subset(images, order), class_name, **how):
        count = len(batch["files"])
        accumulator.add(order[done : done + count], batch)
        done += count
    again = partial(predict_batches, scorer, images, class_name, **(how | {"processes": ALONE}))
    return accumulator.finish() | {"again": again}


def evaluate_dataset(
    scorer: AnomalyScorer,
    test_sets: dict[str, Dataset],
    *,
    batch_size: int,
    device: torch.device,
    workers: int = 0,
    on_metrics: Callable[[dict], None] | None = None,
    on_class: Callable[[str, dict], None] | None = None,
    exact_pixels: int = EXACT_PIXELS,
) -> dict[str, Any]:
    """Metrics of every class of a dataset.

    Several processes score it together; the main one computes the metrics and calls the functions.

    Args:
        test_sets: {class name: dataset}.
        on_metrics: function (result of the classes so far) called after each class, so that a later error loses none.
        on_class: function (class name, predictions) called after that, for pictures.
        exact_pixels: a class of more pixels is counted in bins, and its predictions have no maps and masks.

    Raises:
        ValueError: a class of one image, and a control that sees another.

    Returns:
        {"classes": {name: metrics}, "mean": metrics, "upstream": [rows of upstream's table, None where undefined],
        "error_bounds": {"classes": {name: {pixel metric: bound}}, "mean": {pixel metric: bound}} of the binned classes,
        {} without}
    """
    refuse_lonely_images(scorer, test_sets)
    classes, bounds, upstream = {}, {}, []
    how = {"batch_size": batch_size, "device": device, "workers": workers, "processes": current()}
    for name, images in test_sets.items():
        if not current().main:
            help_score(scorer, images, name, exact_pixels, **how)
            continue
        if is_exact(images, exact_pixels):
            predictions = predict_class(scorer, images, name, **how)
        else:
            predictions = accumulate_class(scorer, images, name, exact_pixels, **how)
            bounds[name] = error_bounds(predictions)
        classes[name], row = metrics_of(predictions, name, scorer)
        upstream.append(row)
        if on_metrics is not None:
            on_metrics(result_of(classes, upstream, bounds))
        if on_class is not None:
            on_class(name, predictions)
        del predictions  # before the next class takes its memory
    return current().tell(result_of(classes, upstream, bounds) if current().main else None)


def help_score(
    scorer: AnomalyScorer, images: Dataset, class_name: str, exact_pixels: int, **how: Any
) -> None:
    """What a process that is not the main one does for a class: score its batches, in the order the main one wants."""
    ordered = images if is_exact(images, exact_pixels) else Subset(images, spread_order(images))
    for _ in predict_batches(scorer, ordered, class_name, **how):
        pass


def result_of(
    classes: dict[str, dict], upstream: list[dict], bounds: dict[str, dict] | None = None
) -> dict[str, Any]:
    """What `evaluate_dataset` returns, of {class: metrics}, rows of upstream's table and binned classes' bounds."""
    average = mean_row([{key: row[key] for key in row if key != "class name"} for row in upstream])
    rows = [*upstream, {"class name": "Average"} | average]
    found = {"classes": dict(bounds), "mean": mean_bounds(bounds, classes)} if bounds else {}
    return {
        "classes": dict(classes),
        "mean": mean_row(list(classes.values())),
        "upstream": rows,
        "error_bounds": found,
    }


def error_bounds(predictions: dict[str, Any]) -> dict[str, float | None]:
    """{pixel metric: what its error cannot exceed} of a binned class; None where the metric is undefined."""
    return {f"pixel_{key}": estimate.error for key, estimate in predictions["pixel"].items()}


def mean_bounds(bounds: dict[str, dict], classes: dict[str, dict]) -> dict[str, float | None]:
    """Bounds of the means over the classes where a metric is defined; exact classes have no error."""
    mean = {}
    for key in next(iter(bounds.values())):
        errors = [bounds.get(name, {}).get(key, 0.0) for name, row in classes.items() if row[key] is not None]
        mean[key] = float(np.mean(errors)) if errors else None
    return mean


def metrics_of(predictions: dict[str, Any], name: str, scorer: AnomalyScorer) -> tuple[dict, dict]:
    """(every metric, row of upstream's table) of a class's labelled images."""
    if "maps" not in predictions:
        return binned_metrics_of(predictions, name, scorer)
    labelled = predictions["labels"] >= 0
    masks, labels, maps, head, known = (
        only(labelled, predictions[key]) for key in ("masks", "labels", "maps", "head", "mask_known")
    )
    return (
        class_metrics(masks, labels, maps, head, scorer.domain, scorer.levels, known),
        table_row(masks, labels, maps, head, name, scorer.domain, known),
    )


def binned_metrics_of(predictions: dict[str, Any], name: str, scorer: AnomalyScorer) -> tuple[dict, dict]:
    """`metrics_of` a class without maps: exact image metrics, estimated pixel metrics."""
    labelled = predictions["labels"] >= 0
    labels, ends, head = (only(labelled, predictions[key]) for key in ("labels", "ends", "head"))
    row = metrics_row(
        {key: estimate.value for key, estimate in predictions["pixel"].items()},
        labels,
        fused_score_of_extremes(ends, head, scorer.domain),
        unnormalised_score_of_peak(ends[:, 1], head, scorer.levels),
    )
    sides = [{key: row[f"{side}_{key}"] for key in ("auroc", "ap")} for side in ("pixel", "image")]
    return row, upstream_row(name, *sides)
