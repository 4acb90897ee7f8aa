"""Paired differences with classes and seeds as crossed random effects: interval, p-value, equivalence, power.

The model of one difference is d[i, j] = mu + a[i] + b[j] + e[i, j], a class's, a seed's and a pair's own deviation,
each of mean zero (Searle, Casella and McCulloch, Variance Components, 1992, chapter 4). A test of mu speaks about other
classes and other training seeds of the same kind.
"""

import math
from typing import NamedTuple

import numpy as np
import scipy
from numpy.typing import ArrayLike

POWER = 0.8  # of the smallest effect that a study could have shown
ENOUGH_SEEDS = 3  # to speak about other seeds


class Spread(NamedTuple):
    """An estimate of how far a mean may be off."""

    error: float  # standard error of the mean
    freedom: float  # degrees of freedom of the estimate


class MeanOfPairs(NamedTuple):
    """The mean of paired differences and how sure it is; of several estimates the most cautious counts."""

    value: float
    spreads: tuple[Spread, ...]

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Two-sided interval of the mean at a level between 0 and 1; (value, value) where nothing varies."""
        half = max(scipy.stats.t.ppf(0.5 + level / 2, freedom) * error for error, freedom in self.spreads)
        return self.value - float(half), self.value + float(half)

    def p(self) -> float:
        """Two-sided p-value against a mean of 0; 1 where all differences are 0."""
        if self.value == 0:
            return 1.0
        distances = [
            (abs(self.value) / error if error else math.inf, freedom) for error, freedom in self.spreads
        ]
        return float(max(2 * scipy.stats.t.sf(distance, freedom) for distance, freedom in distances))

    def detectable(self, level: float = 0.05, power: float = POWER) -> float:
        """The smallest true mean that a study with this spread shows at `level` with a probability of `power`."""
        return max(spread.error * _shift(spread.freedom, level, power) for spread in self.spreads)


def mean_of_pairs(differences: ArrayLike) -> MeanOfPairs | None:
    """Estimate the mean of differences [classes, seeds] and its error; None for a single pair, which tells none.

    The mean squares A of classes, B of seeds and E of pairs give the variance of the mean as (A + B - E) / (classes *
    seeds), but no less than A or B alone would, with Satterthwaite's degrees of freedom (Biometrics Bulletin 2, 1946).
    With three seeds that are few degrees, estimated badly: intervals that should cover 95 % cover 93 %. So classes
    alone and seeds alone are asked too, and the widest answer counts; it covers 94.3 % or more (a slow test). One or
    two seeds cannot tell how much seeds vary: the classes' means over them are the units then, and nothing is said
    about other seeds. With one class the seeds are the units.

    Raises:
        ValueError: not a matrix of finite numbers.
    """
    differences = np.asarray(differences, dtype=np.float64)
    if differences.ndim != 2 or not differences.size or not np.isfinite(differences).all():
        raise ValueError(
            f"differences of shape {differences.shape}: expected finite numbers [classes, seeds], a class with an "
            "undefined metric left out"
        )
    classes, seeds = differences.shape
    count, value = differences.size, float(differences.mean())
    if count == 1:
        return None
    by_class, by_seed = differences.mean(axis=1), differences.mean(axis=0)
    if classes > 1 and seeds < ENOUGH_SEEDS:
        return MeanOfPairs(value, (Spread(float(by_class.std(ddof=1)) / math.sqrt(classes), classes - 1),))
    rest = differences - by_class[:, None] - by_seed + value
    one_way = []
    for deviations, freedom in (
        (np.sqrt(seeds) * (by_class - value), classes - 1),
        (np.sqrt(classes) * (by_seed - value), seeds - 1),
        (rest, (classes - 1) * (seeds - 1)),
    ):
        if freedom:
            one_way.append(((deviations**2).sum() / freedom, freedom))
    spreads = [Spread(math.sqrt(square / count), freedom) for square, freedom in one_way[:2]]
    if len(one_way) == 3:
        (of_classes, _), (of_seeds, _), (of_pairs, _) = one_way
        variance = max(of_classes + of_seeds - of_pairs, of_classes, of_seeds)
        uncertainty = sum(square**2 / freedom for square, freedom in one_way)
        freedom = max(1.0, variance**2 / uncertainty) if uncertainty else 1.0
        spreads.append(Spread(math.sqrt(variance / count), float(freedom)))
    return MeanOfPairs(value, tuple(spreads))


def mean_of_runs(differences: ArrayLike) -> MeanOfPairs | None:
    """`mean_of_pairs` of differences [classes, seeds, data seeds], the data seeds a third crossed random effect.

    With the mean squares of the three factors, of their pairs and of the rest the variance of the mean is (A + B + D -
    AB - AD - BD + R) / count (Searle, Casella and McCulloch, 1992, chapter 5), but no less than a factor alone would
    give. What `mean_of_pairs` says of the means over the data seeds is asked too, and the widest answer counts. A data
    seed alone is not asked where there are fewer than three: two cannot tell how much they vary.

    Raises:
        ValueError: not an array [classes, seeds, data seeds] of finite numbers.
    """
    differences = np.asarray(differences, dtype=np.float64)
    if differences.ndim != 3 or not differences.size or not np.isfinite(differences).all():
        raise ValueError(
            f"differences of shape {differences.shape}: expected finite numbers [classes, seeds, data seeds]"
        )
    over_data = mean_of_pairs(differences.mean(axis=2))
    if over_data is None or min(differences.shape) < 2:
        return over_data
    squares = {axes: _mean_square(differences, axes) for axes in _SUBSETS}
    signed = [(1 if len(axes) % 2 else -1, *squares[axes]) for axes in _SUBSETS]
    alone = [squares[axes][0] for axes in _SUBSETS[: 3 if differences.shape[2] >= ENOUGH_SEEDS else 2]]
    variance = max(sum(sign * square for sign, square, _ in signed), *alone)
    uncertainty = sum(square**2 / freedom for _, square, freedom in signed)
    freedom = max(1.0, variance**2 / uncertainty) if uncertainty else 1.0
    spread = Spread(math.sqrt(variance / differences.size), float(freedom))
    return MeanOfPairs(over_data.value, (*over_data.spreads, spread))


_SUBSETS = ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2))  # of the axes


def _mean_square(values, axes):
    """(mean square, degrees of freedom) of the main effect or interaction of some axes of a balanced array."""
    effect = values
    for axis in range(values.ndim):
        mean = effect.mean(axis=axis, keepdims=True)
        effect = effect - mean if axis in axes else mean
    freedom = math.prod(values.shape[axis] - 1 for axis in axes)
    repeated = math.prod(values.shape[axis] for axis in range(values.ndim) if axis not in axes)
    return float((effect**2).sum()) * repeated / freedom, freedom


def _shift(freedom: float, level: float, power: float) -> float:
    """By how many standard errors a true mean must differ from 0 to be found with a probability of `power`."""
    critical = scipy.stats.t.ppf(1 - level / 2, freedom)
    # The far tail's share is below a thousandth of the level here.
    return float(
        scipy.optimize.brentq(
            lambda shift: power - scipy.stats.nct.sf(critical, freedom, shift), 0, 10 * critical
        )
    )
