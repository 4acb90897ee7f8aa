"""Pixel metrics from counts in bins of scores, each with a bound that its error cannot exceed.

Inside a bin every order of its pixels, ties included, is possible. An estimate takes them as evenly mixed; its bound is
the distance to the extreme orders, so it holds for any scores whatever.
"""

from typing import NamedTuple

import numpy as np

from metrics.regions import PRO_LIMIT

ROUNDING = 1e-12  # room for float64's own rounding in every bound


class BinCounts(NamedTuple):
    """Pixels of a class in bins of falling score."""

    defect: np.ndarray  # [k] int64
    normal: np.ndarray  # [k] int64
    overlap: np.ndarray  # [k] sum of 1 / area of the defective pixels' regions
    regions: int
    tied: bool  # every bin holds one score, so that nothing is unknown


class Estimate(NamedTuple):
    """A metric and what its error cannot exceed; both None where it is undefined."""

    value: float | None
    error: float | None


def binned_pixel_metrics(counts: BinCounts, limit: float = PRO_LIMIT) -> dict[str, Estimate]:
    """{"auroc", "ap", "f1max", "aupro"} of a class, as `metrics.pixel_metrics`, from its bins.

    Args:
        counts: of all its pixels.
        limit: false-positive rate up to which AUPRO integrates.
    """
    if not counts.defect.any() or not counts.normal.any():
        return dict.fromkeys(("auroc", "ap", "f1max", "aupro"), Estimate(None, None))
    holds = counts.defect > 0  # other bins have no say but in how many normal pixels lie above
    above = np.cumsum(counts.normal) - counts.normal
    own, other, false = (side[holds].astype(np.float64) for side in (counts.defect, counts.normal, above))
    true = np.cumsum(own) - own
    normal = float(counts.normal.sum())
    found = {
        "auroc": binned_auroc(true, own, false, other, normal),
        "ap": binned_ap(true, own, false, other, counts.tied),
        "f1max": binned_f1max(true, own, false, other),
        "aupro": binned_aupro(counts.overlap[holds] / counts.regions, false / normal, other / normal, limit),
    }
    return {
        key: Estimate(value, (0.0 if counts.tied else error) + ROUNDING)
        for key, (value, error) in found.items()
    }


def binned_auroc(
    true: np.ndarray, own: np.ndarray, false: np.ndarray, other: np.ndarray, normal: float
) -> Estimate:
    """AUROC with every bin's pixels tied, which is also the mean of the extreme orders.

    Args:
        true, false: [k] defective and normal pixels above the bin.
        own, other: [k] defective and normal pixels in it.
        normal: normal pixels of the class.
    """
    pairs = own.sum() * normal
    below = normal - false - other / 2
    return Estimate(float((own * below).sum() / pairs), float((own * other).sum() / (2 * pairs)))


def binned_ap(
    true: np.ndarray, own: np.ndarray, false: np.ndarray, other: np.ndarray, tied: bool
) -> Estimate:
    """Average precision with evenly mixed bins, or tied ones; arguments as `binned_auroc`.

    Lower end: all normal pixels of a bin above its defective ones, these one by one. Upper end: the defective ones
    above, tied with each other. Sums over a bin's defective pixels are taken as integrals; by the midpoint rule for
    convex functions that of the lower end is not above the sum.
    """
    upper = own * (true + own) / (true + own + false)
    worst = false + other
    lower = own - worst * np.log1p(own / (true + worst + 0.5))
    if tied:
        value = own * (true + own) / (true + own + worst)
    else:
        rate = 1 + other / own  # ranks per defective pixel
        value = own / rate + (true + 0.5 - (true + 0.5 + false) / rate) / rate * np.log1p(
            own * rate / (true + 0.5 + false)
        )
        value = np.clip(value, lower, upper)
    total = own.sum()
    value, lower, upper = (float(side.sum() / total) for side in (value, lower, upper))
    return Estimate(value, max(upper - value, value - lower))


def binned_f1max(true: np.ndarray, own: np.ndarray, false: np.ndarray, other: np.ndarray) -> Estimate:
    """The largest F1 at the bins' borders, which are thresholds of the scores too; arguments as `binned_auroc`."""
    found, total = true + own, own.sum()
    value = float((2 * found / (found + false + other + total)).max())
    return Estimate(value, float((2 * found / (found + false + total)).max()) - value)


def binned_aupro(rise: np.ndarray, start: np.ndarray, step: np.ndarray, limit: float) -> Estimate:
    """AUPRO with a straight line through every bin; the true curve stays in the box around it.

    Args:
        rise: [k] mean overlap gained in the bin.
        start, step: [k] false-positive rate above the bin, and in it.
    """
    height = np.cumsum(rise) - rise
    inside = np.clip(limit - start, 0, step)  # of every bin's step
    share = np.divide(inside, step, out=np.zeros_like(step), where=step > 0)
    next_start = np.append(start[1:], 1.0)
    level = np.clip(
        np.minimum(limit, next_start) - start - step, 0, None
    )  # from this bin to the next with defects
    area = inside * (height + rise * share / 2) + (height + rise) * level
    error = (inside * rise * (1 - share / 2)).sum() / limit
    return Estimate(float(area.sum() / limit), float(error))
