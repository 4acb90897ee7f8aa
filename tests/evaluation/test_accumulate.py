"""A class evaluated without keeping its pixels: evaluation/accumulate.py, evaluation/image_rows.py."""

import csv
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

import compare
import test as test_script
from comparison.replicates import PIXEL_METRICS, resampled, weighted_metrics
from dataset.jsonl import Sample
from evaluation import accumulate
from evaluation import scores as scores_module
from evaluation.accumulate import ClassAccumulator, spread_order
from evaluation.picture_scores import picture_scores
from evaluation.predictions import evaluate_dataset, shown_bounds, shown_mean
from evaluation.scores import class_scores, read_scores

SIDE = 24


class Images(list):
    """Test images of one class in memory; the first pixel is the number."""

    def __init__(self, count, seed=0, unknown=(), unlabelled=()):
        random = np.random.default_rng(seed)
        super().__init__()
        self.samples, self.img_size = [], SIDE
        self.maps = torch.from_numpy(random.normal(size=(count, SIDE, SIDE)).astype(np.float32))
        for number in range(count):
            mask, label = torch.zeros(1, SIDE, SIDE), number % 2
            known = number not in unknown
            if label and known:
                top, left = random.integers(0, SIDE - 6, 2)
                mask[0, top : top + 5, left : left + 6] = mask[0, SIDE - 1, 0] = 1
                self.maps[number] += 1.5 * mask[0]
            label = -1 if number in unlabelled else label
            file = f"{(number * 7) % 1000:03}.png"  # not in the order of the names
            mask_path = "mask" if label == 1 and known else None
            self.samples.append(Sample(file, mask_path, label if label >= 0 else None, "x", file, "here"))
            item = {"image": torch.full((3, 1, 1), float(number)), "mask": mask, "label": label}
            self.append(item | {"file_name": file, "mask_known": torch.tensor(float(known and label >= 0))})


class Scorer:
    """Scores images by their number."""

    domain, levels = "Industrial", 2

    def __init__(self, maps):
        self.maps = maps

    def score(self, image, class_name):
        maps = self.maps[image[:, 0, 0, 0].long()]
        return maps, maps[:, 0, 0] / 10


@pytest.fixture
def no_files(monkeypatch):
    """Digests of images that exist in memory only."""
    monkeypatch.setattr(scores_module, "digest", lambda sample: sample.file_name)


def evaluate(images, exact_pixels, **how):
    """(result, predictions) of a class."""
    found = []
    result = evaluate_dataset(
        Scorer(images.maps),
        {"x": images},
        batch_size=4,
        device="cpu",
        on_class=lambda name, predictions: found.append(predictions),
        exact_pixels=exact_pixels,
        **how,
    )
    return result, found[0]


@pytest.mark.parametrize("seed", range(3))
def test_binned_pixel_metrics_are_within_their_bounds_and_all_others_are_the_same_to_the_last_bit(seed):
    images = Images(21, seed, unknown=(3, 5, 6), unlabelled=(0, 9))
    (exact, _), (binned, _) = evaluate(images, 21 * SIDE**2), evaluate(images, 21 * SIDE**2 - 1)
    assert exact["error_bounds"] == {} and list(binned["classes"]["x"]) == list(exact["classes"]["x"])
    for key, value in exact["classes"]["x"].items():
        if key.startswith("pixel"):
            error = binned["error_bounds"]["classes"]["x"][key]
            assert 0 < error < 1e-2 and abs(binned["classes"]["x"][key] - value) <= error
            assert binned["error_bounds"]["mean"][key] == error
        else:
            assert binned["classes"]["x"][key] == value
    for one, other in zip(exact["upstream"], binned["upstream"], strict=True):
        assert {k: v for k, v in one.items() if "image" in k} == {
            k: v for k, v in other.items() if "image" in k
        }
        assert other["pixel AP"] == pytest.approx(one["pixel AP"], abs=0.011)


def test_pixels_of_unknown_place_and_of_unlabelled_images_are_not_counted():
    images = Images(21, unknown=(3, 5, 6), unlabelled=(0, 9))
    _, found = evaluate(images, 0)
    left_out = {0, 3, 5, 6, 9}
    for number in range(21):
        counted = found["rows"].positive[number].sum() + found["rows"].negative[number].sum()
        assert counted == (0 if number in left_out else SIDE**2)
    few = Images(21, unknown=(3, 5, 6), unlabelled=(0, 9))
    few.maps[[0, 3, 5, 6, 9]] += 99  # what they score moves no pixel metric
    moved, _ = evaluate(few, 0)
    same, _ = evaluate(images, 0)
    for key in PIXEL_METRICS:
        assert moved["classes"]["x"][key] == same["classes"]["x"][key]


def test_a_class_without_any_mask_has_image_metrics_alone():
    result, found = evaluate(Images(8, unknown=range(8)), 0)
    assert all(result["classes"]["x"][key] is None for key in PIXEL_METRICS)
    assert result["classes"]["x"]["image_auroc"] is not None
    assert set(result["error_bounds"]["mean"].values()) == {None}
    assert shown_bounds(result) == ["x: pixels beyond --exact_pixels were counted in bins: none counts"]
    assert found["rows"].thumbnails.any()


def test_the_mean_over_classes_has_the_mean_of_the_bounds():
    result = evaluate_dataset(
        Scorer(Images(40).maps),
        {"many": Images(40), "few": Images(10), "none": Images(40, unknown=range(40))},
        batch_size=8,
        device="cpu",
        exact_pixels=10 * SIDE**2,
    )
    bounds = result["error_bounds"]
    assert set(bounds["classes"]) == {"many", "none"}
    assert bounds["mean"]["pixel_ap"] == bounds["classes"]["many"]["pixel_ap"] / 2
    assert f"(± {bounds['mean']['pixel_ap']:.1e})" in shown_mean(result)


def test_pictures_scores_and_a_comparisons_rows_are_those_of_the_whole_class(no_files):
    images = Images(60, 2, unknown=(5,), unlabelled=(7,))
    (_, whole), (binned, found) = evaluate(images, 60 * SIDE**2), evaluate(images, 59 * SIDE**2)
    assert picture_scores(found, "x", "Industrial", 2) == picture_scores(whole, "x", "Industrial", 2)
    one, other = (class_scores(each, images.samples, "Industrial", 2) for each in (whole, found))
    for key in ("files", "digests", "labels", "fused", "own", "regions", "mask_known"):
        assert np.array_equal(getattr(one, key), getattr(other, key)), key
    for key in ("positive", "negative", "overlap"):
        rows, wanted = getattr(other, key), getattr(one, key)
        assert rows.shape == wanted.shape and rows.dtype == wanted.dtype
        assert rows.sum(1) == pytest.approx(wanted.sum(1))
    assert np.abs(one.thumbnails.astype(int) - other.thumbnails).mean() < 4
    _, errors = resampled(other, binned["classes"]["x"], np.ones((1, 59)))
    assert max(abs(error) for error in errors.values()) < 5e-3
    # Resampled sets move as they do with the whole class's histograms.
    weights = np.random.default_rng(0).multinomial(59, np.full(59, 1 / 59), size=20).astype(float)
    apart = [weighted_metrics(each, weights)["pixel_ap"] for each in (one, other)]
    assert np.abs(apart[0] - apart[1]).max() < 5e-3 < np.ptp(apart[0])


def test_the_first_images_of_a_class_show_normal_and_anomalous_ones_in_turn():
    images = Images(0)
    images.samples = [Sample("f", "m", int(n >= 90), "x", "f", "here") for n in range(100)]
    images.extend([None] * 100)
    order = spread_order(images)
    assert sorted(order) == list(range(100)) and order == spread_order(images)
    assert sum(number >= 90 for number in order[:20]) == 10
    assert np.ptp([number for number in order[:20] if number < 90]) > 30


def test_no_more_images_are_kept_than_the_budget_allows():
    images = Images(12)
    assert accumulate.warm_up_images(images, 3 * SIDE**2 + 1) == 3
    assert accumulate.warm_up_images(images, 0) == 1
    assert accumulate.warm_up_images(images, 10**9) == accumulate.WARM_UP
    assert accumulate.is_exact(images, 12 * SIDE**2) and not accumulate.is_exact(images, 12 * SIDE**2 - 1)


def test_an_image_leaves_less_behind_than_a_fiftieth_of_its_map():
    random = np.random.default_rng(0)
    side, batch = 400, 4
    masks = np.zeros((batch, side, side), np.uint8)
    masks[1::2, 30:90, 40:70] = 1
    maps = random.normal(size=masks.shape).astype(np.float32) + masks
    given = {"maps": maps, "masks": masks, "mask_known": np.ones(batch, bool)}
    given |= {"head": np.zeros(batch, np.float32), "labels": np.arange(batch) % 2, "files": ["a.png"] * batch}

    def left(images):
        accumulator = ClassAccumulator(images, 4)
        tracemalloc.start()
        for start in range(0, images, batch):
            accumulator.add(range(start, start + batch), given)
        accumulator.finish()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    assert left(84) - left(44) < 40 * side**2 * 4 / 50


def test_a_test_run_in_bins_states_its_bounds_draws_and_is_compared(flags, tmp_path):
    for name, budget in (("exact", "1000000"), ("binned", "0")):
        chosen = ["--raw_clip", "--visualize", "--exact_pixels", budget, "--save_path", str(tmp_path / name)]
        test_script.main([*flags, *chosen])
    entries = {
        name: json.loads((tmp_path / name / "metrics.json").read_text())["MVTec"]["raw_clip"]
        for name in ("exact", "binned")
    }
    assert "error_bounds" not in entries["exact"]
    bounds = entries["binned"]["error_bounds"]["classes"]
    for name, row in entries["exact"]["classes"].items():
        for key, value in row.items():
            assert abs(entries["binned"]["classes"][name][key] - value) <= bounds[name].get(key, 0), key
    log = (tmp_path / "binned" / "test.log").read_text(encoding="utf-8")
    told = f"pixel_auroc ± {bounds['bottle']['pixel_auroc']:.1e}"
    assert f"bottle: pixels beyond --exact_pixels were counted in bins: {told}" in log
    assert "(± " in log and "(± " not in (tmp_path / "exact" / "test.log").read_text(encoding="utf-8")
    drawn = {
        name: {
            path.relative_to(tmp_path / name): path.read_bytes()
            for path in (tmp_path / name / "visualization").rglob("*.png")
        }
        for name in entries
    }
    assert drawn["exact"] == drawn["binned"] and len(drawn["exact"]) == 12
    compared = ["--baseline", str(tmp_path / "exact"), "--runs", f"binned={tmp_path / 'binned'}"]
    data = flags[flags.index("--data_root") : flags.index("--data_root") + 2]
    out = ["--datasets", "MVTec", "--replicates", "100", "--out", str(tmp_path / "out")]
    compare.main([*compared, *data, *out])
    rows = list(csv.DictReader((Path(tmp_path) / "out" / "comparison.csv").open(encoding="utf-8")))
    assert all(abs(float(row["value"])) < 1e-3 for row in rows if row["class"] == "mean")
    scores = [read_scores(tmp_path / name / "scores" / "MVTec" / "raw_clip.npz")[0] for name in entries]
    assert np.array_equal(scores[0]["bottle"].digests, scores[1]["bottle"].digests)
