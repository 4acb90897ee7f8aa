"""Counts in bins against exact metrics: metrics/binned.py, metrics/score_bins.py, metrics/exact.py."""

import tracemalloc

import numpy as np
import pytest

from metrics import (
    BinCounts,
    ScoreBins,
    aupro,
    binned_pixel_metrics,
    pixel_metrics,
    ranking_metrics,
    reference_ranking_metrics,
    region_shares,
)
from metrics.score_bins import bin_keys, histogram

KEYS = ["auroc", "ap", "f1max", "aupro"]


def pixels(seed, images=6, side=40, kind="continuous"):
    """(masks [n, S, S] bool, maps [n, S, S] float32) with defects of several sizes in every second image."""
    random = np.random.default_rng(seed)
    masks = np.zeros((images, side, side), bool)
    for mask in masks[1::2]:
        for size in (1, 4, 9):
            top, left = random.integers(0, side - size, 2)
            mask[top : top + size, left : left + size] = True
    maps = random.normal(size=masks.shape) + 1.2 * masks
    if kind == "tied":
        maps = np.round(2 * maps) / 2
    if kind == "tails":
        maps = np.sinh(3 * maps)
    if kind == "mostly zero":
        maps = np.where(random.random(maps.shape) < 0.7, 0.0, maps)
    if kind == "far from zero":
        maps = 1000 + maps / 100
    if kind == "small":
        maps = maps * 1e-20
    if kind == "constant":
        maps = np.full(maps.shape, 0.1)
    return masks, maps.astype(np.float32)


KINDS = ["continuous", "tied", "tails", "mostly zero", "far from zero", "small", "constant"]


def counted(masks, maps, size, sample=None, step=2):
    """Bins that took the images `step` at a time."""
    bins = ScoreBins(maps[:step] if sample is None else sample, size)
    for start in range(0, len(maps), step):
        add(bins, masks[start : start + step], maps[start : start + step])
    return bins


def add(bins, masks, maps):
    shares, regions = zip(*map(region_shares, masks), strict=True)
    bins.add(maps, maps[masks], np.concatenate(shares), sum(regions))


def assert_bounded(estimates, masks, maps):
    exact = pixel_metrics(masks, maps)
    for key in KEYS:
        assert abs(estimates[key].value - exact[key]) <= estimates[key].error, (
            key,
            estimates[key],
            exact[key],
        )
    return exact


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [2**4, 2**8, 2**16])
@pytest.mark.parametrize("seed", range(3))
def test_no_error_exceeds_its_bound(kind, size, seed):
    masks, maps = pixels(seed, kind=kind)
    estimates = binned_pixel_metrics(counted(masks, maps, size).falling())
    exact = assert_bounded(estimates, masks, maps)
    reference = reference_ranking_metrics(masks, maps)
    for key in ("auroc", "ap", "f1max"):
        assert exact[key] == pytest.approx(reference[key], abs=1e-12)
        assert abs(estimates[key].value - reference[key]) <= estimates[key].error + 1e-12


@pytest.mark.parametrize("order", ["defects first", "defects last", "tied"])
def test_bounds_hold_for_the_extreme_orders_inside_a_bin(order):
    masks, maps = pixels(0)
    coarse = np.floor(maps * 2) / 2
    inside = {
        "defects first": np.where(masks, 0.3, 0.1),
        "defects last": np.where(masks, 0.1, 0.3),
        "tied": 0.2,
    }
    maps = (coarse + inside[order]).astype(np.float32)
    bins = ScoreBins(maps, 2**8)
    while bins.width < 0.5:
        bins.widen()
    add(bins, masks, maps)
    estimates = binned_pixel_metrics(bins.falling())
    exact = assert_bounded(estimates, masks, maps)
    if order != "tied":
        # These orders reach AUROC's bound, and nearly the others'.
        error = {key: abs(estimates[key].value - exact[key]) for key in KEYS}
        assert error["auroc"] == pytest.approx(estimates["auroc"].error, rel=1e-9)
        assert error["aupro"] > 0.9 * estimates["aupro"].error and error["ap"] > 0.2 * estimates["ap"].error


def test_many_bins_leave_little_error_and_mixing_leaves_less_than_the_bound():
    masks, maps = pixels(1, images=40, side=64)
    estimates = binned_pixel_metrics(counted(masks, maps, 2**20).falling())
    exact = assert_bounded(estimates, masks, maps)
    assert all(estimates[key].error < 1e-4 for key in KEYS)
    coarse = binned_pixel_metrics(counted(masks, maps, 2**12).falling())
    for key in ("auroc", "ap", "aupro"):
        assert abs(coarse[key].value - exact[key]) < coarse[key].error / 10, key


@pytest.mark.parametrize("kind", ["tied", "constant"])
def test_scores_that_are_borders_themselves_have_no_error(kind):
    masks, maps = pixels(2, kind=kind)
    estimates = binned_pixel_metrics(counted(masks, maps, 2**12).falling())
    exact = pixel_metrics(masks, maps)
    for key in KEYS:
        assert estimates[key].value == pytest.approx(exact[key], abs=1e-12)
        assert estimates[key].error < 1e-11


def test_a_few_far_scores_cost_no_resolution_and_keep_their_rank():
    masks, maps = pixels(3, images=20, side=64)
    wanted = counted(masks, maps, 2**16).exponent
    row, column = np.argwhere(masks[9])[0]
    maps[7, 5, 5], maps[8, 1, 2], maps[9, row, column] = -1e30, 1e6, 40.0
    bins = counted(masks, maps, 2**16)
    assert bins.exponent == wanted and len(bins.far_keys) == 3
    assert_bounded(binned_pixel_metrics(bins.falling()), masks, maps)


def test_bins_widen_when_the_scores_turn_out_wider_and_every_pixel_stays_counted():
    masks, maps = pixels(4, images=20)
    narrow = maps[:2] * 1e-3
    bins = counted(masks, maps, 2**14, sample=narrow)
    assert bins.exponent > ScoreBins(narrow, 2**14).exponent
    counts = bins.falling()
    assert counts.defect.sum() == masks.sum() and counts.normal.sum() == (~masks).sum()
    assert counts.overlap.sum() == pytest.approx(counts.regions) and counts.regions == 24
    assert_bounded(binned_pixel_metrics(counts), masks, maps)
    fitted = counted(masks, maps, 2**14, sample=maps)
    assert bins.exponent <= fitted.exponent + 2  # no wider than it must


@pytest.mark.parametrize("start", [0, 1])
def test_widening_adds_up_neighbours(start):
    bins = ScoreBins(np.zeros(4, np.float32), 8)
    bins.exponent, bins.first = 0, start
    bins.add(np.array([[[1.5, 2.5, 3.5, 4.5]]], np.float32), np.array([3.5], np.float32), np.ones(1), 1)
    bins.widen()
    assert bins.width == 2
    counts = bins.falling()
    assert counts.normal.tolist() == [1, 1, 1] and counts.defect.tolist() == [0, 1, 0]  # 4.5 | 2.5, 3.5 | 1.5


def test_scores_that_come_to_share_a_bin_are_no_longer_taken_as_one():
    bins = ScoreBins(np.zeros(4, np.float32), 8)
    bins.exponent, bins.first = 0, 0
    bins.add(np.array([[[2, 3, 4, 6]]], np.float32), np.array([3], np.float32), np.ones(1), 1)
    assert binned_pixel_metrics(bins.falling())["auroc"].error < 1e-11
    bins.widen()  # 2 and 3 share a bin now
    assert binned_pixel_metrics(bins.falling())["auroc"].error == pytest.approx(1 / 6)


def test_a_scores_bin_is_its_whole_number_of_widths_at_the_borders_too():
    random = np.random.default_rng(0)
    border = (random.integers(-(2**13), 2**13, 500) / 2**10).astype(np.float32)
    scores = np.stack([border, np.nextafter(border, np.float32(-99)), np.nextafter(border, np.float32(99))])
    keys = bin_keys(scores.ravel(), -10).astype(int)
    wanted = np.bincount(keys + 2**13 + 8, minlength=2**14 + 16)
    assert np.array_equal(histogram(scores, 2**14 + 16, -8 - 8 / 2**10, 8 + 8 / 2**10), wanted)


def test_one_label_alone_is_undefined():
    masks, maps = pixels(0)
    for mask in (np.zeros_like(masks), np.ones_like(masks)):
        estimates = binned_pixel_metrics(counted(mask, maps, 2**10).falling())
        assert set(estimates.values()) == {(None, None)}
        assert set(pixel_metrics(mask, maps).values()) == {None}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused(value):
    masks, maps = pixels(0)
    bins = ScoreBins(maps, 2**10)
    maps[0, 0, 0] = value
    for function in (lambda: add(bins, masks, maps), lambda: pixel_metrics(masks, maps)):
        with pytest.raises(ValueError, match="NaN or infinity"):
            function()


def test_a_bin_without_a_defect_widens_no_bound():
    counts = BinCounts(np.array([2, 0, 1]), np.array([0, 50, 0]), np.array([0.5, 0, 0.5]), 1, False)
    estimates = binned_pixel_metrics(counts)
    assert estimates["auroc"].value == pytest.approx(2 / 3) and estimates["auroc"].error < 1e-11
    assert estimates["aupro"].value == pytest.approx(0.5) and estimates["aupro"].error < 1e-11


@pytest.mark.parametrize("kind", KINDS)
def test_one_sort_gives_what_each_metric_gives_alone(kind):
    masks, maps = pixels(5, kind=kind)
    assert pixel_metrics(masks, maps) == ranking_metrics(masks, maps) | {"aupro": aupro(masks, maps)}


def test_exact_metrics_take_few_bytes_a_pixel():
    masks, maps = pixels(6, images=30, side=100)
    pixel_metrics(masks, maps)
    tracemalloc.start()
    pixel_metrics(masks, maps)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 9 * maps.size


def test_memory_of_the_bins_does_not_grow_with_the_images():
    masks, maps = pixels(7, images=4, side=64)
    bins = ScoreBins(maps, 2**12)

    def peak(repeats):
        tracemalloc.start()
        for _ in range(repeats):
            add(bins, masks, maps)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(1)
    assert peak(40) < 1.05 * peak(4)
