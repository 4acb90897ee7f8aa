"""Classes and seeds as crossed random effects: comparison/crossed_effects.py."""

import numpy as np
import pytest
from scipy import stats

from comparison.crossed_effects import mean_of_pairs, mean_of_runs


def study(random, classes=8, seeds=5, mean=0.0, spread=(1.0, 1.0, 1.0)):
    """Differences [classes, seeds] with a class's, a seed's and a pair's own deviation of a given spread."""
    of_classes, of_seeds, of_pairs = spread
    return (
        mean
        + of_classes * random.normal(size=(classes, 1))
        + of_seeds * random.normal(size=(1, seeds))
        + of_pairs * random.normal(size=(classes, seeds))
    )


def test_the_variance_of_a_mean_is_that_of_the_mean_squares_by_hand():
    got = mean_of_pairs([[0.0, 4.0, 2.0], [6.0, 12.0, 12.0]])
    # Means 2 and 10 of classes, 3, 8 and 7 of seeds: squares 96 (1 degree of freedom), 28 / 2 and 4 / 2.
    assert got.value == 6
    assert [spread.error**2 for spread in got.spreads] == pytest.approx([96 / 6, 14 / 6, (96 + 14 - 2) / 6])
    assert got.spreads[-1].freedom == pytest.approx(108**2 / (96**2 + 14**2 / 2 + 2**2 / 2))
    half = max(stats.t.ppf(0.975, spread.freedom) * spread.error for spread in got.spreads)
    assert got.interval() == pytest.approx((6 - half, 6 + half))
    low, high = got.interval(1 - got.p())
    assert min(abs(low), abs(high)) == pytest.approx(0, abs=1e-9)  # p is where an interval touches 0


@pytest.mark.parametrize(
    ("seed", "value", "error", "components"),
    [
        (0, 0.29690, 1.06598, (4.1911, 2.9820, 0.64107)),
        (1, 1.70391, 0.91374, (4.9998, 0.92971, 0.95997)),
        (2, 1.11769, 1.55102, (15.633, 2.1329, 0.99856)),
    ],
)
def test_the_closed_form_is_what_statsmodels_fits(seed, value, error, components):
    """Recorded from statsmodels 0.15.0 by restricted likelihood, which a balanced study's mean squares solve.

    mixedlm("d ~ 1", frame, groups=1, re_formula="0", vc_formula={"c": "0 + C(c)", "s": "0 + C(s)"}).fit(reml=True):
    fe_params, bse_fe, and the variances of classes, seeds and pairs.
    """
    differences = study(np.random.default_rng(seed), mean=1.0, spread=(3.0, 2.0, 1.0))
    got = mean_of_pairs(differences)
    assert got.value == pytest.approx(value, abs=1e-5)
    assert got.spreads[-1].error == pytest.approx(error, rel=2e-4)  # its optimiser stops there
    of_classes, of_seeds, of_pairs = components
    assert got.spreads[-1].error ** 2 == pytest.approx(
        of_classes / 8 + of_seeds / 5 + of_pairs / 40, rel=4e-4
    )


@pytest.mark.parametrize("shape", [(6, 1), (1, 6)])
def test_one_seed_or_one_class_leaves_the_t_test_over_the_others(shape):
    values = np.random.default_rng(0).normal(0.5, 1.0, size=6)
    got = mean_of_pairs(values.reshape(shape))
    assert got.p() == pytest.approx(stats.ttest_1samp(values, 0).pvalue)


def test_without_a_seeds_own_effect_the_classes_are_the_units():
    values = np.repeat(np.random.default_rng(0).normal(size=(6, 1)), 3, axis=1)
    assert mean_of_pairs(values).p() == pytest.approx(stats.ttest_1samp(values[:, 0], 0).pvalue)


def test_two_seeds_say_nothing_about_other_seeds():
    values = np.random.default_rng(0).normal(size=(6, 2))
    shifted = mean_of_pairs(values + np.array([[5.0, -5.0]]))
    assert shifted.interval() == pytest.approx(mean_of_pairs(values).interval())
    assert shifted.p() == pytest.approx(stats.ttest_1samp(values.mean(1), 0).pvalue)


def test_a_single_pair_has_no_interval_and_an_undefined_value_is_refused():
    assert mean_of_pairs([[0.4]]) is None
    with pytest.raises(ValueError, match="undefined metric left out"):
        mean_of_pairs([[0.1, np.nan]])


def test_equal_runs_differ_by_exactly_zero():
    got = mean_of_pairs(np.zeros((3, 2)))
    assert got.interval() == (0.0, 0.0) and got.p() == 1.0 and got.detectable() == 0.0


def test_an_effect_of_the_detectable_size_is_found_in_four_of_five_studies():
    random = np.random.default_rng(3)
    spread, found = (1.0, 0.0, 0.0), 0
    # Eight classes that differ with a known spread: the variance of the mean is 1/8.
    size = mean_of_pairs(np.array([[1.0], [-1.0]] * 4) * np.sqrt(7 / 8)).detectable()
    for _ in range(2000):
        found += mean_of_pairs(study(random, seeds=1, mean=size, spread=spread)).p() < 0.05
    assert found / 2000 == pytest.approx(0.8, abs=0.03)


def three_way(random, shape, spread):
    """Differences [classes, seeds, data seeds]: deviations of the three factors, of class x seed, class x data, run."""
    classes, seeds, data_seeds = shape
    sizes = (
        (classes, 1, 1),
        (1, seeds, 1),
        (1, 1, data_seeds),
        (classes, seeds, 1),
        (classes, 1, data_seeds),
        shape,
    )
    return sum(part * random.normal(size=size) for part, size in zip(spread, sizes, strict=True))


def test_the_variance_over_classes_seeds_and_data_seeds_is_that_of_the_mean_squares_by_hand():
    values = np.random.default_rng(4).normal(size=(4, 3, 2))
    got = mean_of_runs(values)
    # As statsmodels' anova_lm(type 1) of a balanced full factorial splits the sum of squares.
    of_classes, of_seeds, of_data = (
        values.mean(axis=tuple({0, 1, 2} - {axis})) - values.mean() for axis in range(3)
    )
    squares = (6 * (of_classes**2).sum() / 3, 8 * (of_seeds**2).sum() / 2, 12 * (of_data**2).sum())
    pairs = []
    for axis, (first, second), repeated, freedom in (
        (2, (of_classes[:, None], of_seeds[None]), 2, 6),
        (1, (of_classes[:, None], of_data[None]), 3, 3),
        (0, (of_seeds[:, None], of_data[None]), 4, 2),
    ):
        rest = values.mean(axis=axis) - values.mean() - first - second
        pairs.append(repeated * (rest**2).sum() / freedom)
    total = ((values - values.mean()) ** 2).sum()
    explained = 3 * squares[0] + 2 * squares[1] + squares[2] + 6 * pairs[0] + 3 * pairs[1] + 2 * pairs[2]
    rest = (total - explained) / 6
    wanted = max(sum(squares) - sum(pairs) + rest, squares[0], squares[1])
    assert got.spreads[-1].error ** 2 == pytest.approx(wanted / values.size)
    assert got.spreads[:-1] == mean_of_pairs(values.mean(axis=2)).spreads


def test_one_data_seed_leaves_classes_and_seeds_and_a_missing_run_is_refused():
    values = np.random.default_rng(0).normal(size=(5, 3, 1))
    assert mean_of_runs(values) == mean_of_pairs(values[..., 0])
    assert mean_of_runs(values[:1, :1]) is None
    with pytest.raises(ValueError, match="expected finite numbers"):
        mean_of_runs(np.full((2, 2, 2), np.nan))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(14, 5, 2), (16, 5, 2), (8, 3, 2)])
@pytest.mark.parametrize(
    "spread",
    [
        (1, 0, 0, 0, 0, 1),
        (1, 1, 0, 0.5, 0.5, 1),
        (0, 1, 0, 0, 0, 1),
        (1, 0.3, 0, 0, 1, 1),
        (1, 0.5, 0.3, 0.5, 0.5, 1),
        (0, 0, 0.5, 0, 0, 1),
    ],
)
def test_intervals_over_data_seeds_too_cover_the_truth_in_94_of_100_studies(shape, spread):
    random, studies = np.random.default_rng(shape), 1500
    found = [mean_of_runs(three_way(random, shape, spread)).interval() for _ in range(studies)]
    covered = sum(low <= 0 <= high for low, high in found) / studies
    assert covered >= 0.94 - 3 * np.sqrt(0.05 * 0.95 / studies)


@pytest.mark.slow
@pytest.mark.parametrize("classes", [4, 8, 15])
@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(
    "spread", [(1, 1, 1), (3, 1, 1), (1, 3, 1), (0, 0, 1), (2, 0, 1), (0, 2, 1), (0.3, 0.3, 1)]
)
def test_intervals_cover_the_truth_in_94_of_100_studies_and_5_in_100_find_what_is_not_there(
    classes, seeds, spread
):
    random, covered, false = np.random.default_rng([classes, seeds]), 0, 0
    studies = 4000
    for _ in range(studies):
        got = mean_of_pairs(study(random, classes, seeds, 0.0, spread))
        low, high = got.interval()
        covered += low <= 0 <= high
        false += got.p() < 0.05
    error = 3 * np.sqrt(0.05 * 0.95 / studies)  # of the simulation
    assert covered / studies >= 0.94 - error and false / studies <= 0.05 + error
