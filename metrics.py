"""Exact ranking metrics from one sort, AUPRO, and upstream's table."""

import cv2
import numpy as np

METRICS_VERSION = 1  # rises with every change that moves a number, so that compare.py never mixes two definitions
PRO_LIMIT = 0.3  # false-positive rate up to which AUPRO integrates


def _curve(truth, score):
    """Cumulative true and false positives at every distinct threshold, highest first; None where one label only."""
    truth, score = np.asarray(truth).reshape(-1) > 0, np.asarray(score).reshape(-1)
    if not np.isfinite(score).all():
        raise ValueError("scores hold NaN or infinity: the model's output is broken, check its checkpoint")
    if truth.all() or not truth.any():
        return None
    order = np.argsort(-score, kind="stable")
    truth, score = truth[order], score[order]
    last = np.flatnonzero(np.append(np.diff(score) != 0, True))  # last element of each run of equal scores
    true_positives = np.cumsum(truth)[last].astype(np.float64)
    return true_positives, (last + 1) - true_positives


def ranking_metrics(truth, score):
    """AUROC, average precision and the largest F1 over all thresholds, exact, ties included.

    Args:
        truth: any shape, > 0 is positive.
        score: same number of elements, higher is more anomalous.

    Returns:
        {"auroc", "ap", "f1max"}, each in [0, 1], or None where only one label is present (undefined).

    Raises:
        ValueError: a score is not finite.
    """
    curve = _curve(truth, score)
    if curve is None:
        return {"auroc": None, "ap": None, "f1max": None}
    true_positives, false_positives = curve
    positives, negatives = true_positives[-1], false_positives[-1]
    width = np.diff(false_positives, prepend=0.0)
    height = true_positives - np.diff(true_positives, prepend=0.0) / 2  # trapezoid: ties count one half
    precision = true_positives / (true_positives + false_positives)
    return {
        "auroc": float((width * height).sum() / (positives * negatives)),
        "ap": float((np.diff(true_positives, prepend=0.0) * precision).sum() / positives),
        "f1max": float((2 * true_positives / (true_positives + false_positives + positives)).max()),
    }


def region_weights(masks):
    """What every pixel contributes to the per-region overlap: 1 / area of its 8-connected region, 0 outside.

    Args:
        masks: [n, H, W], > 0 is defective.

    Returns:
        (weights [n, H, W], regions per image [n]); an image's weights sum to its number of regions.
    """
    masks = np.asarray(masks) > 0
    weights, regions = np.zeros(masks.shape), np.zeros(len(masks), dtype=np.int64)
    for i, mask in enumerate(masks):
        count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
        weights[i] = np.where(mask, 1.0 / stats[:, cv2.CC_STAT_AREA].astype(np.float64)[labels], 0.0)
        regions[i] = count - 1  # label 0 is the background
    return weights, regions


def aupro(masks, maps, limit=PRO_LIMIT):
    """Area under the per-region-overlap curve up to a false-positive rate (MVTec AD, doi 10.1007/s11263-020-01400-4).

    Every connected region (8-neighbourhood) counts the same; every distinct score is a threshold; the rate is over
    all normal pixels; the curve is interpolated at `limit` and the area divided by it.

    Args:
        masks: [n, H, W], > 0 is defective.
        maps: [n, H, W] scores.

    Returns:
        value in [0, 1], or None without a region or without a normal pixel.
    """
    masks, maps = np.asarray(masks) > 0, np.asarray(maps)
    weight, per_image = region_weights(masks)
    regions = per_image.sum()
    if regions == 0 or masks.all():
        return None
    order = np.argsort(-maps.reshape(-1), kind="stable")
    score = maps.reshape(-1)[order]
    last = np.flatnonzero(np.append(np.diff(score) != 0, True))
    overlap = np.concatenate([[0.0], np.cumsum(weight.reshape(-1)[order])[last] / regions])
    normal = ~masks.reshape(-1)[order]
    rate = np.concatenate([[0.0], np.cumsum(normal)[last] / normal.sum()])
    inside = rate <= limit
    rate_in, overlap_in = rate[inside], overlap[inside]
    if rate_in[-1] < limit:
        overlap_in = np.append(overlap_in, np.interp(limit, rate, overlap))
        rate_in = np.append(rate_in, limit)
    return float(np.trapezoid(overlap_in, rate_in) / limit)


def min_max(values):
    """Values scaled to [0, 1] by their own extremes; zeros where all are equal."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def fused_image_score(maps, head, domain):
    """Upstream's image score [n]: half map maximum, half head score for Industrial; the maximum for Medical.

    Kept oddity of AA-CLIP: both parts are min-max scaled over the class's test images first, so one image's score
    depends on the others. `metrics.json` carries `own_image_score` metrics beside it, which do not.
    """
    peak = min_max(maps).reshape(len(maps), -1).max(axis=1)
    return 0.5 * peak + 0.5 * min_max(head) if domain == "Industrial" else peak


def own_image_score(maps, head, levels):
    """Image score [n] that one image alone determines: mean of the map's peak and the head score, in half cosines.

    A test map sums (100 (cos_abnormal - cos_normal) + 1) / 2 over the levels, hence the division.
    """
    return 0.5 * maps.reshape(len(maps), -1).max(axis=1) / (100.0 * levels) + 0.5 * head


def metrics_eval(pixel_label, image_label, pixel_preds, image_preds, class_names, domain):
    """Upstream's table row of one class, in percent with two decimals; 0 where only one label is present.

    Args:
        pixel_label: [n, 1, H, W] or [n, H, W] of 0/1.
        image_label: [n] of 0/1.
        pixel_preds: [n, H, W] map scores.
        image_preds: [n] head scores.
        class_names: the row's name.
        domain: "Industrial" or "Medical".
    """
    pixel_preds, image_preds = np.asarray(pixel_preds), np.asarray(image_preds)
    pixel = ranking_metrics(pixel_label, min_max(pixel_preds))
    image = ranking_metrics(image_label, fused_image_score(pixel_preds, image_preds, domain))
    row = {
        "class name": class_names,
        "pixel AUC": pixel["auroc"],
        "pixel AP": pixel["ap"],
        "image AUC": image["auroc"],
        "image AP": image["ap"],
    }
    return {key: value if key == "class name" else round(value or 0.0, 4) * 100 for key, value in row.items()}


def class_metrics(masks, labels, maps, head, domain, levels):
    """Every metric of one class in full precision; undefined is None.

    Args:
        masks: [n, H, W] of 0/1.  labels: [n].  maps: [n, H, W].  head: [n].
        levels: number of levels the maps sum over.
    """
    pixel, fused = ranking_metrics(masks, maps), ranking_metrics(labels, fused_image_score(maps, head, domain))
    own = ranking_metrics(labels, own_image_score(maps, head, levels))
    row = {f"pixel_{key}": value for key, value in pixel.items()}
    row["pixel_aupro"] = aupro(masks, maps)
    row |= {f"image_{key}": value for key, value in fused.items()}
    row |= {f"own_image_{key}": value for key, value in own.items()}
    return row | {"images": len(labels), "abnormal_images": int(np.sum(np.asarray(labels) > 0))}


def mean_row(rows):
    """Mean of every metric over the classes where it is defined; None where it is defined nowhere."""
    mean = {}
    for key in rows[0]:
        values = [row[key] for row in rows if row[key] is not None]
        total = key in ("images", "abnormal_images")
        mean[key] = (sum(values) if total else float(np.mean(values))) if values else None
    return mean
