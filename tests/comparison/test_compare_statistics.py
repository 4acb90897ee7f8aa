"""Resampled metrics, intervals, permutation tests, verdicts: comparison/replicates.py, comparison/significance.py."""

import math

import numpy as np
import pytest

from comparison.hypotheses import read_hypotheses
from comparison.paired import correct
from comparison.replicates import (
    METRICS,
    PIXEL_METRICS,
    image_shares,
    image_weights,
    ranking_rows,
    resampled,
    weighted_metrics,
)
from comparison.significance import (
    Difference,
    compare_pairs,
    holm,
    largest_family,
    sign_flip_p,
    smallest_p,
    units_needed,
    verdict,
)
from dataset.jsonl import Sample
from evaluation import scores as scores_module
from evaluation.scores import RAREST, bin_numbers, class_scores, rarity_maps
from metrics import class_metrics


@pytest.fixture
def no_files(monkeypatch):
    """Digests of images that exist in memory only."""
    monkeypatch.setattr(scores_module, "digest", lambda sample: sample.file_name)


def simulated(seed, images=12, side=10, signal=1.0, labels=None):
    """(predictions of a class, its samples): half of the images abnormal, with `signal` added in a block."""
    random = np.random.default_rng(seed)
    labels = np.arange(images) % 2 if labels is None else np.asarray(labels)
    masks = np.zeros((images, side, side), np.uint8)
    for image in np.flatnonzero(labels):
        masks[image, 2:5, 3:6] = 1
    masks[labels > 0, side - 1, 0] = 1  # a second region, of one pixel
    maps = (random.normal(size=masks.shape) + signal * masks).astype(np.float32)
    head = (random.normal(size=images) + signal * labels).astype(np.float32)
    files = [f"{i:03}.png" for i in range(images)]
    samples = [
        Sample(file, None, int(label), "x", file, "here") for file, label in zip(files, labels, strict=True)
    ]
    found = {"maps": maps, "head": head, "masks": masks, "labels": labels, "files": files}
    return found | {"mask_known": np.ones(images, bool)}, samples


def kept(found, samples):
    """(ClassScores, exact metrics) of simulated predictions."""
    exact = class_metrics(found["masks"], found["labels"], found["maps"], found["head"], "Industrial", 4)
    return class_scores(found, samples, "Industrial", 4), exact


def repeated(found, samples, counts):
    """The predictions with image i counts[i] times."""
    rows = np.repeat(np.arange(len(samples)), counts)
    copied = {key: np.asarray(value)[rows] for key, value in found.items() if key != "files"}
    return copied | {"files": [found["files"][i] for i in rows]}


def test_a_pixels_bin_falls_with_its_score_and_equal_scores_share_one():
    maps, masks = np.array([[[3.0, 1.0], [2.0, 1.0]]]), np.array([[[True, False], [False, False]]])
    bins = bin_numbers(maps, masks)[0]
    assert bins[0] < bins[2] < bins[1] == bins[3] and bins.min() >= 0


@pytest.mark.parametrize("seed", range(3))
def test_weighted_metrics_equal_the_exact_metrics_of_the_repeated_images(no_files, seed):
    found, samples = simulated(seed)
    found["maps"] = np.round(found["maps"].clip(-1, 2))  # four frequent values: the histograms are exact too
    found["head"] = (
        found["head"] * 0
    )  # the fused score is then the map's, whose extremes repetition does not move
    counts = np.array([2, 1, 0, 3, 1, 1, 1, 0, 2, 2, 1, 1])
    own, _ = kept(found, samples)
    got = weighted_metrics(own, counts[None].astype(float))
    copied = repeated(found, samples, counts)
    want = class_metrics(copied["masks"], copied["labels"], copied["maps"], copied["head"], "Industrial", 4)
    for metric in METRICS:
        assert got[metric][0] == pytest.approx(want[metric], abs=1e-9), metric


def test_histogram_metrics_are_within_two_thousandths_and_moved_to_the_exact_value(no_files):
    found, samples = simulated(4, images=40, side=32, signal=1.5)
    own, exact = kept(found, samples)
    rows, errors = resampled(own, exact, np.ones((1, 40)))
    assert set(errors) == set(PIXEL_METRICS) and max(abs(error) for error in errors.values()) < 2e-3
    assert {key: float(row[0]) for key, row in rows.items()} == pytest.approx(
        {key: exact[key] for key in METRICS}
    )


def test_a_class_of_one_label_has_no_resampled_metrics(no_files):
    own, exact = kept(*simulated(0, labels=[0] * 12))
    rows, _ = resampled(own, exact, image_weights(own.labels, 5, np.random.default_rng(0)))
    assert rows == {}
    assert np.isnan(ranking_rows(np.array([[1.0, 2.0]]), np.zeros((1, 2)))["ap"]).all()


def test_resampled_sets_keep_the_number_of_normal_and_abnormal_images():
    labels = np.array([0, 0, 1, 0, 1])
    weights = image_weights(labels, 50, np.random.default_rng(0))
    assert (weights[:, labels == 0].sum(1) == 3).all() and (weights[:, labels == 1].sum(1) == 2).all()
    assert (weights != weights[0]).any()


def test_rarity_is_the_power_of_ten_of_normal_pixels_that_score_as_high():
    maps = np.arange(100.0).reshape(1, 10, 10)
    rare = rarity_maps(maps, np.zeros(maps.shape, bool))[0]
    assert rare[9, 9] == pytest.approx(2.0) and rare[0, 0] == 0.0 and rare[9, 0] == pytest.approx(1.0)
    assert rarity_maps(maps, maps > 98)[0, 9, 9] == RAREST  # above every normal pixel
    assert np.allclose(rarity_maps(np.exp(maps / 50), maps > 98), rarity_maps(maps, maps > 98))


def test_scores_are_sorted_by_file_whatever_the_order_of_the_rows(no_files):
    found, samples = simulated(1)
    mixed = np.random.default_rng(0).permutation(12)
    shuffled = {key: np.asarray(value)[mixed] for key, value in found.items()}
    shuffled["files"] = [found["files"][i] for i in mixed]
    one, other = kept(found, samples)[0], kept(shuffled, [samples[i] for i in mixed])[0]
    for key in one._fields:
        assert np.array_equal(getattr(one, key), getattr(other, key)), key
    assert one.files.tolist() == found["files"]


def pairs_of(differences, noise=0.0, count=200, seed=0):
    """(differences [classes, seeds], replicates around them)."""
    differences = np.asarray(differences, dtype=float)
    random = np.random.default_rng(seed)
    return differences, differences[..., None] + noise * random.normal(size=(*differences.shape, count))


def test_equal_runs_differ_by_exactly_zero_with_p_one():
    got = compare_pairs(*pairs_of(np.zeros((3, 2))), np.random.default_rng(0))
    assert got == Difference(*[0.0] * 7, 1.0, smallest_p(3), None, 0.0, 0, 6, 0)


def test_wins_ties_and_losses_are_counted_per_pair():
    got = compare_pairs(*pairs_of([[0.1, 0.00004], [-0.2, 0.0]]), np.random.default_rng(0))
    assert (got.wins, got.ties, got.losses) == (1, 2, 1)
    assert got.value == pytest.approx(-0.02499)


def test_the_interval_grows_with_what_differs_between_classes_seeds_and_images():
    def width(differences, noise=0.0):
        got = compare_pairs(*pairs_of(differences, noise), np.random.default_rng(0))
        return got.bootstrap_high - got.bootstrap_low

    flat = np.full((4, 3), 0.1)
    classes, seeds = flat + np.array([[-1], [0], [0], [1]]), flat + np.array([[-1, 0, 1]])
    assert width(flat) == pytest.approx(0, abs=1e-12)
    assert width(flat, noise=0.1) > 0.05 and width(classes) > 0.5 and width(seeds) > 0.5
    assert width(classes, noise=0.5) > width(classes)


def test_the_interval_agrees_with_the_standard_error_of_many_classes():
    differences = np.random.default_rng(3).normal(0.02, 0.1, size=(200, 1))
    got = compare_pairs(*pairs_of(differences, count=4000), np.random.default_rng(0))
    error = 1.96 * differences.std() / math.sqrt(200)
    for low, high in ((got.low, got.high), (got.bootstrap_low, got.bootstrap_high)):
        assert low == pytest.approx(differences.mean() - error, abs=2e-3)
        assert high == pytest.approx(differences.mean() + error, abs=2e-3)


def test_no_defined_class_gives_an_undefined_difference():
    got = compare_pairs(np.zeros((0, 2)), np.zeros((0, 2, 5)), np.random.default_rng(0))
    assert (got.value, got.low, got.p, got.wins) == (None, None, None, 0)
    assert verdict(got._asdict(), None) == "undefined"


def test_the_permutation_p_value_counts_all_sign_patterns():
    assert sign_flip_p([1.0, 2.0, 3.0], np.random.default_rng(0)) == pytest.approx(2 / 8)
    assert sign_flip_p([1.0, 2.0, -3.0], np.random.default_rng(0)) == pytest.approx(1.0)
    assert sign_flip_p([0.5] * 8, np.random.default_rng(0)) == pytest.approx(2 / 256) == smallest_p(8)
    assert sign_flip_p([0.5], np.random.default_rng(0)) == 1.0 == smallest_p(1)
    assert sign_flip_p([0.5] * 20, np.random.default_rng(0)) == pytest.approx(smallest_p(20))


def test_holm_multiplies_by_the_number_of_tests_left_and_never_falls():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([None, 0.5, 0.9]) == [None, 1.0, 1.0]


@pytest.mark.parametrize(
    ("low", "high", "p", "word"),
    [
        (0.01, 0.03, 0.04, "helps"),
        (-0.03, -0.01, 0.04, "hurts"),
        (0.01, 0.03, 0.06, "not shown"),
        (-0.01, 0.03, 0.01, "not shown"),
        (-0.03, 0.01, 0.01, "not shown"),
    ],
)
def test_a_verdict_asks_for_the_interval_and_the_corrected_p(low, high, p, word):
    row = {
        "value": (low + high) / 2,
        "low": low,
        "high": high,
        "low_90": low,
        "high_90": high,
        "smallest_p": 0.001,
    }
    assert verdict(row, p) == word
    assert verdict(row, p, margin=0.05) == ("equivalent" if word == "not shown" else word)


def test_classes_too_few_for_the_declared_hypotheses_leave_them_undecidable():
    row = {"value": 0.4, "low": 0.2, "high": 0.6, "low_90": 0.25, "high_90": 0.55, "smallest_p": 2 / 2**8}
    assert (
        verdict(row, 0.0547, hypotheses=7) == "undecidable"
        and verdict(row, 0.06, hypotheses=6) == "not shown"
    )
    assert units_needed(1) == 6 and units_needed(12) == 9 and largest_family(2 / 2**8) == 6


def test_one_class_is_tested_by_its_images_and_its_interval_is_the_bootstraps():
    differences, replicates = pairs_of([[0.1, 0.12, 0.11]], noise=0.01)
    got = compare_pairs(differences, replicates, np.random.default_rng(0), image_shares=np.full(20, 0.005))
    assert (got.low, got.high) == (got.bootstrap_low, got.bootstrap_high) and got.detectable is None
    assert got.p == got.smallest_p == 1.0 and got.p_images < 0.001
    assert got.low < got.low_90 < got.high_90 < got.high


def test_what_each_image_adds_sums_up_to_the_metric_and_is_undefined_where_an_image_is_alone(no_files):
    own, exact = kept(*simulated(2))
    shares = image_shares(own, exact)
    assert shares["image_auroc"].shape == (12,) and set(shares) == set(METRICS)
    whole = weighted_metrics(own, np.ones((1, 12)))
    assert shares["image_auroc"].sum() == pytest.approx(whole["image_auroc"][0], abs=0.02)
    assert image_shares(*kept(*simulated(2, labels=[1] + [0] * 11))) == {}


def a_study(p):
    """Two arms with p-values of their own in three metrics of dataset D."""

    def metrics(p):
        row = {"value": 0.1, "low": 0.05, "high": 0.2, "low_90": 0.06, "high_90": 0.19, "smallest_p": 1e-4}
        return {"metrics": {name: row | {"p": p} for name in ("pixel_ap", "image_auroc", "pixel_auroc")}}

    return {"D": {"arms": {"a": metrics(p), "b": metrics(0.5)}}}


def test_declared_hypotheses_are_corrected_together_and_every_other_metric_by_itself():
    found = a_study(0.01)
    correct(found, read_hypotheses(None, ["pixel_ap", "image_auroc"]))
    a = found["D"]["arms"]["a"]["metrics"]
    assert a["pixel_ap"]["p_holm"] == pytest.approx(0.04) and a["pixel_ap"]["verdict"] == "helps"
    assert a["pixel_auroc"]["p_holm"] == pytest.approx(0.02) and "verdict" not in a["pixel_auroc"]


def test_fewer_declared_hypotheses_pay_less_for_each_other():
    found = a_study(0.04)
    correct(found, read_hypotheses(["a:pixel_ap:D"], []))
    a, b = (found["D"]["arms"][arm]["metrics"] for arm in "ab")
    assert a["pixel_ap"]["p_holm"] == 0.04 and a["pixel_ap"]["verdict"] == "helps"
    assert "verdict" not in a["image_auroc"] and "verdict" not in b["pixel_ap"]


@pytest.mark.parametrize("text", ["c:pixel_ap", "a:pixel_ap:E"])
def test_a_hypothesis_about_nothing_is_refused(text):
    with pytest.raises(ValueError, match="names nothing of this comparison.*arms a, b"):
        correct(a_study(0.1), read_hypotheses([text], []))


@pytest.mark.parametrize("text", ["a", "a:pixels", "a:pixel_ap:D:E"])
def test_a_hypothesis_of_another_form_is_refused(text):
    with pytest.raises(ValueError, match="expected ARM:METRIC"):
        read_hypotheses([text], [])


def verdicts_of_a_study(seed, gain):
    """{metric: verdict} of six classes and three seeds; `gain` is added to the signal, beside a random class effect."""
    random = np.random.default_rng([seed, 7])
    rows = {metric: ([], []) for metric in ("pixel_ap", "image_auroc")}
    for class_number in range(6):
        level, effect = random.uniform(0.5, 1.0), random.normal(0, 0.05)
        for training in range(3):
            sides = []
            for side, signal in enumerate((level, level + gain + effect)):
                own, exact = kept(*simulated([seed, class_number, training, side], images=20, signal=signal))
                weights = image_weights(own.labels, 100, np.random.default_rng([seed, class_number]))
                sides.append((resampled(own, exact, weights)[0], exact))
            for metric, (differences, replicates) in rows.items():
                differences.append(sides[1][1][metric] - sides[0][1][metric])
                replicates.append(sides[1][0][metric] - sides[0][0][metric])
    words = {}
    for metric, (differences, replicates) in rows.items():
        one = compare_pairs(np.reshape(differences, (6, 3)), np.reshape(replicates, (6, 3, 100)), random, 999)
        words[metric] = verdict(one._asdict(), one.p)  # one hypothesis: six classes can decide one
    return words


@pytest.mark.slow
@pytest.mark.parametrize(("gain", "word"), [(1.2, "helps"), (0.0, "not shown"), (-1.2, "hurts")])
def test_planted_gains_ties_and_losses_are_told_apart_in_95_of_100_studies(no_files, gain, word):
    found = [verdicts_of_a_study(seed, gain) for seed in range(100)]
    for metric in found[0]:
        assert [words[metric] for words in found].count(word) >= 95, metric


def test_seeds_and_classes_with_effects_of_their_own_are_rarely_taken_for_an_effect_of_the_method():
    random, false = np.random.default_rng(1), 0
    for _ in range(200):  # 8 classes x 5 seeds; a seed and a class shift by 2 points, single pairs by 4.5
        shared = random.normal(0, 0.02, (1, 5)) + random.normal(0, 0.02, (8, 1))
        differences = shared + random.normal(0, 0.045, (8, 5))
        replicates = np.repeat(differences[..., None], 2, axis=2)
        found = compare_pairs(differences, replicates, random, permutations=999)
        false += verdict(found._asdict(), found.p) != "not shown"
    assert false <= 15
