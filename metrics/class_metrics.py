"""Image scores, and every metric of a class; upstream's table among them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from metrics.ranking import ranking_metrics
from metrics.reference import reference_ranking_metrics
from metrics.regions import aupro

METRICS_VERSION = (
    1  # rises with every change that moves a number, so that compare.py never mixes two definitions
)


def only(chosen: np.ndarray | None, values: ArrayLike) -> np.ndarray:
    """The values [n, ...] of the chosen images ([n] bool; None for all), not copied where all are chosen."""
    values = np.asarray(values)
    return values if chosen is None or np.all(chosen) else values[chosen]


def min_max(values: np.ndarray, among: np.ndarray | None = None) -> np.ndarray:
    """Values [n, ...] scaled by their extremes to [0, 1], of the same shape; zeros where the extremes are equal.

    Args:
        among: [n] bool, the images whose extremes count, if there are any; None for all.
    """
    if not values.size:
        return values
    reference = values if among is None or not among.any() else only(among, values)
    low, high = reference.min(), reference.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def fused_image_score(
    maps: np.ndarray, head: np.ndarray, domain: str, among: np.ndarray | None = None
) -> np.ndarray:
    """Upstream's image score [n]: half map maximum, half head score for Industrial; the maximum for Medical.

    Known deviation of AA-CLIP, kept by default: both parts are min-max scaled over the class's test images first, so
    one image's score depends on the others. `metrics.json` carries `unnormalised_image_score`'s metrics beside it,
    which do not. With `among` ([n] bool) these images alone set the scale, so that unlabelled images beside labelled
    ones move no metric.
    """
    peak = min_max(maps, among).max(axis=(1, 2))
    return 0.5 * peak + 0.5 * min_max(head, among) if domain == "Industrial" else peak


def unnormalised_image_score(maps: np.ndarray, head: np.ndarray, levels: int) -> np.ndarray:
    """Image score [n] that one image alone determines: mean of the map's peak and the head score, in half cosines.

    A test map sums (100 (cos_abnormal - cos_normal) + 1) / 2 over the levels, hence the division.
    """
    return 0.5 * maps.max(axis=(1, 2)) / (100.0 * levels) + 0.5 * head


def metrics_eval(
    pixel_label: ArrayLike,
    image_label: ArrayLike,
    pixel_preds: ArrayLike,
    image_preds: ArrayLike,
    class_names: str,
    domain: str,
) -> dict[str, str | float]:
    """Upstream's table row of one class: `table_row` with AA-CLIP's 0 where only one label is present.

    Args:
        pixel_label: [n, 1, H, W] or [n, H, W] of 0/1.  image_label: [n] of 0/1.
        pixel_preds: [n, H, W] map scores.  image_preds: [n] head scores.
        class_names: the row's name.
        domain: "Industrial" or "Medical".
    """
    row = table_row(pixel_label, image_label, pixel_preds, image_preds, class_names, domain)
    return {key: 0.0 if value is None else value for key, value in row.items()}


def table_row(
    pixel_label: ArrayLike,
    image_label: ArrayLike,
    pixel_preds: ArrayLike,
    image_preds: ArrayLike,
    class_names: str,
    domain: str,
    mask_known: np.ndarray | None = None,
) -> dict[str, str | float | None]:
    """Row of one class in upstream's table, in percent with two decimals; None where only one label is present.

    Args:
        pixel_label: [n, 1, H, W] or [n, H, W] of 0/1.
        image_label: [n] of 0/1.
        pixel_preds: [n, H, W] map scores.
        image_preds: [n] head scores.
        class_names: the row's name.
        domain: "Industrial" or "Medical".
        mask_known: [n] bool, the images whose pixels count; None for all.
    """
    pixel_preds, image_preds = np.asarray(pixel_preds), np.asarray(image_preds)
    pixel = ranking_metrics(only(mask_known, pixel_label), only(mask_known, min_max(pixel_preds)))
    image = reference_ranking_metrics(image_label, fused_image_score(pixel_preds, image_preds, domain))
    row = {
        "class name": class_names,
        "pixel AUC": pixel["auroc"],
        "pixel AP": pixel["ap"],
        "image AUC": image["auroc"],
        "image AP": image["ap"],
    }
    return {
        key: value if key == "class name" or value is None else round(value, 4) * 100
        for key, value in row.items()
    }


def class_metrics(
    masks: np.ndarray,
    labels: np.ndarray,
    maps: np.ndarray,
    head: np.ndarray,
    domain: str,
    levels: int,
    mask_known: np.ndarray | None = None,
) -> dict[str, float | None]:
    """Every metric of one class in full precision; undefined is None.

    Args:
        masks: [n, H, W] of 0/1.  labels: [n] of 0/1.  maps: [n, H, W].  head: [n].
        levels: number of levels the maps sum over.
        mask_known: [n] bool, the images pixel metrics are over; None for all.
    """
    seen_masks, seen_maps = only(mask_known, masks), only(mask_known, maps)
    pixel, fused = (
        ranking_metrics(seen_masks, seen_maps),
        reference_ranking_metrics(labels, fused_image_score(maps, head, domain)),
    )
    alone = reference_ranking_metrics(labels, unnormalised_image_score(maps, head, levels))
    row = {f"pixel_{key}": value for key, value in pixel.items()}
    row["pixel_aupro"] = aupro(seen_masks, seen_maps)
    row |= {f"image_{key}": value for key, value in fused.items()}
    row |= {f"image_{key}_unnormalised": value for key, value in alone.items()}
    return row | {"images": len(labels), "abnormal_images": int(np.sum(np.asarray(labels) > 0))}


def mean_row(rows: Sequence[dict[str, float | None]]) -> dict[str, float | None]:
    """Mean of every metric over the classes where it is defined; None where it is defined nowhere."""
    mean = {}
    for key in rows[0]:
        values = [row[key] for row in rows if row[key] is not None]
        total = key in ("images", "abnormal_images")
        mean[key] = (sum(values) if total else float(np.mean(values))) if values else None
    return mean


OLD_NAMES = {f"own_image_{key}": f"image_{key}_unnormalised" for key in ("auroc", "ap", "f1max")}


def renamed(row: dict) -> dict:
    """A class's metrics under today's names; files of older versions say own_image_auroc for
    image_auroc_unnormalised."""
    return {OLD_NAMES.get(key, key): value for key, value in row.items()}


def with_old_names(row: dict) -> dict:
    """A class's metrics under today's names and the ones from before, for those who read metrics.json."""
    return row | {old: row[new] for old, new in OLD_NAMES.items() if new in row}
