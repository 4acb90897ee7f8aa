"""Paired differences between two arms: intervals, permutation tests, Holm's correction, verdict."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy
from numpy.typing import ArrayLike

from comparison.crossed_effects import mean_of_pairs

TIE = 5e-5  # smaller differences are equal in percent with two decimals
DRAWN_AT_ONCE = 2**23  # signs; all resamples of a few units, some at a time of the images of a large test set
LEVEL = 0.05  # of the verdict: a 95 % interval without 0 and a corrected p below it


class Difference(NamedTuple):
    """An arm minus the baseline in one metric over the (class x seed) pairs of a dataset, or of one class."""

    value: float | None  # mean of the differences; None where the metric is undefined
    low: float | None  # 95 % interval: crossed random effects; the bootstrap's where there is one class only
    high: float | None
    low_90: float | None  # 90 % interval of the same kind, for the test of equivalence
    high_90: float | None
    bootstrap_low: float | None  # 95 % interval of the nested bootstrap, which resamples test images too
    bootstrap_high: float | None
    p: float | None  # sign flips of the classes' means, uncorrected; None where none was asked for
    smallest_p: float | None  # that so many classes can give
    p_images: float | None  # sign flips of single images' shares; about these runs on these images only
    detectable: float | None  # smallest true difference that such a study shows with 80 % power
    wins: int
    ties: int
    losses: int


UNDEFINED = Difference(*[None] * 11, 0, 0, 0)


def compare_pairs(
    differences: ArrayLike,
    replicates: ArrayLike,
    random: np.random.Generator,
    permutations: int = 9999,
    image_shares: ArrayLike | None = None,
) -> Difference:
    """Compare an arm with the baseline over all (class x seed) pairs.

    The interval takes classes and seeds as crossed random effects (comparison/crossed_effects.py): it speaks about
    other classes and other training seeds of the same kind. Beside it stands a paired, nested percentile bootstrap.
    One replicate draws, with replacement: classes; for each drawn class a resampled set of its test images (normal and
    abnormal ones separately), the same images for both arms and all seeds; and seeds, the same for all classes. With
    few classes it is too narrow (91 % instead of 95 % and less), but for a single class it is the one that there is:
    it says nothing about other classes, and with one seed nothing about other seeds.

    The p-value is two-sided and flips the signs of the classes' means over seeds (all patterns if there are at most
    `permutations`). Classes are the units because a class's seeds share its images; so few classes have a smallest p
    that no effect can undercut.

    Args:
        differences: [classes, seeds], arm minus baseline, exact.
        replicates: [classes, seeds, R], the same on resampled test images.
        random: numpy generator.
        permutations: 0 leaves the tests out.
        image_shares: [n] what each image adds to the difference, for `p_images`; None leaves that out.

    Returns:
        Difference; `UNDEFINED` for no class.
    """
    differences, replicates = np.asarray(differences, dtype=np.float64), np.asarray(replicates)
    if differences.size == 0:
        return UNDEFINED
    means = bootstrap_means(replicates, random)
    bootstrap_low, bootstrap_high = np.nanquantile(means, [LEVEL / 2, 1 - LEVEL / 2])
    crossed = mean_of_pairs(differences) if len(differences) > 1 else None
    if crossed is None:
        low, high = bootstrap_low, bootstrap_high
        low_90, high_90 = np.nanquantile(means, [LEVEL, 1 - LEVEL])
    else:
        (low, high), (low_90, high_90) = crossed.interval(1 - LEVEL), crossed.interval(1 - 2 * LEVEL)
    return Difference(
        value=float(differences.mean()),
        low=float(low),
        high=float(high),
        low_90=float(low_90),
        high_90=float(high_90),
        bootstrap_low=float(bootstrap_low),
        bootstrap_high=float(bootstrap_high),
        p=sign_flip_p(differences.mean(axis=1), random, permutations) if permutations else None,
        smallest_p=smallest_p(len(differences), permutations) if permutations else None,
        p_images=(
            sign_flip_p(image_shares, random, permutations)
            if permutations and image_shares is not None
            else None
        ),
        detectable=None if crossed is None else crossed.detectable(LEVEL),
        **wins_ties_losses(differences),
    )


def wins_ties_losses(differences: np.ndarray) -> dict[str, int]:
    """How many differences are above, at and below 0, in units of `TIE`."""
    wins, losses = int((differences >= TIE).sum()), int((differences <= -TIE).sum())
    return {"wins": wins, "ties": differences.size - wins - losses, "losses": losses}


def bootstrap_means(replicates: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Means [R] of the nested bootstrap over [classes, seeds, R] replicates, see `compare_pairs`."""
    classes, seeds, count = replicates.shape
    drawn_classes = random.integers(classes, size=(count, classes, 1))
    drawn_images = random.integers(count, size=(count, classes, 1))
    drawn_seeds = random.integers(seeds, size=(count, 1, seeds))
    return replicates[drawn_classes, drawn_seeds, drawn_images].mean(axis=(1, 2))


def sign_flip_p(units: ArrayLike, random: np.random.Generator, permutations: int = 9999) -> float:
    """Two-sided p-value of a mean of differences [n], one per unit, under random signs; 1 where all are 0."""
    units = np.asarray(units, dtype=np.float64)
    if len(units) == 1:
        return 1.0  # both signs are equally extreme; scipy asks for two observations
    test = scipy.stats.permutation_test(
        (units,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=permutations,
        alternative="two-sided",
        batch=max(1, DRAWN_AT_ONCE // len(units)),
        rng=random,
    )
    return float(test.pvalue)


def smallest_p(units: int, permutations: int = 9999) -> float:
    """The smallest two-sided p-value that sign flips of so many units can give."""
    return min(1.0, 2.0 / 2**units) if 2**units <= permutations else 2.0 / (permutations + 1)


def units_needed(hypotheses: int) -> int:
    """How many classes it takes before sign flips can give a p below 0.05 after Holm over so many hypotheses."""
    units = 1
    while 2.0 / 2**units * hypotheses >= LEVEL:
        units += 1
    return units


def largest_family(p: float) -> int:
    """Over how many hypotheses Holm leaves a smallest p below 0.05."""
    return math.ceil(LEVEL / p) - 1


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction (Scandinavian Journal of Statistics 6, 1979); None stays None and does not count."""
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected, largest = [None] * len(p_values), 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        corrected[i] = largest
    return corrected


def verdict(row: dict, corrected_p: float | None, hypotheses: int = 1, margin: float | None = None) -> str:
    """What the declared hypothesis `row` comes to.

    Args:
        row: a Difference as a dictionary.
        corrected_p: after Holm.
        hypotheses: how many were declared together.
        margin: differences below it are of no interest, a fraction (0.01 is a point); None for none.

    Returns:
        "helps" or "hurts": the 95 % interval excludes 0 and the corrected p is below 0.05. "equivalent": the 90 %
        interval lies inside ±margin. "undecidable": so few classes cannot give a p that small for so many hypotheses,
        whatever the effect. "not shown": neither of these. "undefined": no class has the metric.
    """
    if row["value"] is None:
        return "undefined"
    if corrected_p < LEVEL and row["low"] > 0:
        return "helps"
    if corrected_p < LEVEL and row["high"] < 0:
        return "hurts"
    if margin is not None and -margin < row["low_90"] and row["high_90"] < margin:
        return "equivalent"
    return "undecidable" if row["smallest_p"] * hypotheses >= LEVEL else "not shown"
