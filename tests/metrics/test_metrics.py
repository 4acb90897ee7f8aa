"""Metrics against scikit-learn, an independent AUPRO and upstream's rounding: metrics/."""

import sys
import tracemalloc

import numpy as np
import pytest
import torch
from scipy.ndimage import label as connected
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score
from torchmetrics.classification import BinaryAUROC, BinaryAveragePrecision

from evaluation.predictions import evaluate_dataset
from metrics import (
    aupro,
    class_metrics,
    fused_image_score,
    mean_row,
    metrics_eval,
    min_max,
    ranking_metrics,
    reference_ranking_metrics,
    region_weights,
    renamed,
    table_row,
    unnormalised_image_score,
    with_old_names,
)


def draws(kind, seed):
    """(truth, score) of 400 elements."""
    random = np.random.default_rng(seed)
    truth = random.random(400) < 0.1 + 0.2 * (seed % 4)
    score = random.normal(size=400) + truth
    if kind == "tied":
        score = np.round(score * 2)
    if kind == "two values":
        score = (score > 0.5).astype(np.float32)
    return truth.astype(np.int64), score


@pytest.mark.parametrize("kind", ["continuous", "tied", "two values"])
@pytest.mark.parametrize("seed", range(4))
def test_ranking_metrics_equal_scikit_learn(kind, seed):
    truth, score = draws(kind, seed)
    precision, recall, _ = precision_recall_curve(truth, score)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    for metrics in (ranking_metrics, reference_ranking_metrics):
        got = metrics(truth, score)
        assert got["auroc"] == pytest.approx(roc_auc_score(truth, score), abs=1e-12)
        assert got["ap"] == pytest.approx(average_precision_score(truth, score), abs=1e-12)
        assert got["f1max"] == pytest.approx(f1.max(), abs=1e-12)


def test_scores_that_are_not_of_the_same_images_are_refused_with_both_sizes():
    for metrics in (ranking_metrics, reference_ranking_metrics):
        with pytest.raises(ValueError, match="3 scores for 2 truths"):
            metrics([0, 1], [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match=r"maps of shape \(1, 2, 3\) for masks of \(1, 2, 2\)"):
        aupro(np.ones((1, 2, 2)), np.ones((1, 2, 3)))


@pytest.mark.parametrize("seed", range(6))
def test_pixel_metrics_equal_the_exact_reference_on_whole_maps(seed):
    masks, _, maps, _ = pixels(seed)
    assert_same(reference_ranking_metrics(masks, maps), ranking_metrics(masks, maps))
    assert_same(reference_ranking_metrics(masks, maps.astype(np.float32)), ranking_metrics(masks, maps))


def test_image_metrics_are_scikit_learns(monkeypatch):
    asked = []

    def remember(truth, score):
        asked.append(len(truth))
        return {"auroc": 0.25, "ap": 0.5, "f1max": 0.75}

    monkeypatch.setattr(sys.modules["metrics.class_metrics"], "reference_ranking_metrics", remember)
    masks, labels, maps, head = pixels(0)
    row = class_metrics(masks, labels, maps, head, "Industrial", 4)
    assert row["image_auroc"] == row["image_auroc_unnormalised"] == 0.25 and row["pixel_auroc"] != 0.25
    assert metrics_eval(masks, labels, maps, head, "bottle", "Industrial")["image AP"] == 50.0
    assert asked == [4, 4, 4]


def test_the_reference_has_no_number_for_one_label_and_none_for_broken_scores():
    nothing = {"auroc": None, "ap": None, "f1max": None}
    assert reference_ranking_metrics([0, 0], [0.1, 0.2]) == nothing == reference_ranking_metrics([1], [0.1])
    with pytest.raises(ValueError, match="NaN or infinity"):
        reference_ranking_metrics([0, 1], [0.1, np.nan])


@pytest.mark.parametrize("kind", ["continuous", "tied", "two values"])
@pytest.mark.parametrize("seed", range(4))
def test_torchmetrics_agrees_also_on_scores_outside_zero_and_one(kind, seed):
    truth, score = draws(kind, seed)
    got = ranking_metrics(truth, score)
    for key, second in (("auroc", BinaryAUROC), ("ap", BinaryAveragePrecision)):
        opinion = second(
            normalization=None
        )  # by default each batch with a score outside [0, 1] goes through a sigmoid
        for part in (slice(0, 150), slice(150, None)):
            opinion.update(torch.from_numpy(score[part].astype(np.float64)), torch.from_numpy(truth[part]))
        assert got[key] == pytest.approx(float(opinion.compute()), abs=1e-6)


def pixels(seed):
    """Four maps with regions of several sizes (masks, labels, maps, head); the first image is normal."""
    random = np.random.default_rng(seed)
    masks = np.zeros((4, 10, 10), np.uint8)
    for image in (1, 2, 3):
        top, left = random.integers(0, 5, 2)
        masks[image, top : top + random.integers(1, 5), left : left + random.integers(1, 5)] = 1
    masks[3, 9, 9] = 1  # a region of one pixel
    maps = np.round(random.normal(size=masks.shape) + masks, seed % 3)  # zero decimals: many ties
    return masks, np.array([0, 1, 1, 1]), maps, random.random(4)


def assert_same(one, other):
    for key, value in one.items():
        assert other[key] == pytest.approx(value, abs=1e-12), key


@pytest.mark.parametrize("seed", range(12))
def test_the_order_of_images_and_pixels_moves_no_metric(seed):
    masks, labels, maps, head = pixels(seed)
    want = class_metrics(masks, labels, maps, head, "Industrial", 4)
    order = np.random.default_rng(seed).permutation(4)
    assert_same(want, class_metrics(masks[order], labels[order], maps[order], head[order], "Industrial", 4))
    assert_same(want, class_metrics(masks[:, ::-1, ::-1], labels, maps[:, ::-1, ::-1], head, "Industrial", 4))


@pytest.mark.parametrize("seed", range(12))
def test_a_growing_function_of_the_map_moves_no_pixel_metric(seed):
    masks, _, maps, _ = pixels(seed)
    moved = np.exp(maps / 4) * 5 - 300
    assert_same(ranking_metrics(masks, maps), ranking_metrics(masks, moved))
    assert aupro(masks, moved) == pytest.approx(aupro(masks, maps), abs=1e-12)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4])
def test_how_a_class_is_split_into_batches_moves_no_metric(batch_size):
    masks, labels, maps, head = pixels(0)
    items = [
        {
            "image": torch.tensor([[[float(i)]]]),
            "mask": torch.from_numpy(masks[i : i + 1].astype(np.float32)),
            "label": int(labels[i]),
            "file_name": f"{i}.png",
        }
        for i in range(4)
    ]

    class Scorer:
        domain, levels = "Industrial", 4

        def score(self, image, class_name):
            rows = image[:, 0, 0, 0].long()
            return torch.from_numpy(maps)[rows], torch.from_numpy(head)[rows]

    found = evaluate_dataset(Scorer(), {"x": items}, batch_size=batch_size, device="cpu")["classes"]["x"]
    narrow = class_metrics(masks, labels, maps.astype(np.float32), head.astype(np.float32), "Industrial", 4)
    assert found == narrow


@pytest.mark.parametrize("seed", range(12))
def test_a_perfect_map_scores_one_everywhere_and_a_constant_map_chance(seed):
    masks, labels, _, _ = pixels(seed)
    perfect = class_metrics(masks, labels, 10.0 * masks, labels.astype(float), "Industrial", 4)
    scored = {key: value for key, value in perfect.items() if "images" not in key}
    assert scored == pytest.approx(dict.fromkeys(scored, 1.0))
    constant = class_metrics(masks, labels, np.ones(masks.shape), np.ones(4), "Industrial", 4)
    share, images = masks.mean(), labels.mean()
    for family in ("pixel_auroc", "image_auroc", "image_auroc_unnormalised"):
        assert constant[family] == 0.5
    assert constant["pixel_ap"] == pytest.approx(share) and constant["image_ap"] == pytest.approx(images)
    assert constant["pixel_f1max"] == pytest.approx(2 * share / (1 + share))
    assert constant["pixel_aupro"] == pytest.approx(0.15)  # the diagonal's area up to 0.3, divided by 0.3


def test_a_regions_pixels_share_one_unit_of_weight():
    masks = np.zeros((2, 4, 4), np.uint8)
    masks[1, 0, 0] = masks[1, 1, 1] = masks[1, 3, 3] = 1
    weights, regions = region_weights(masks)
    assert regions.tolist() == [0, 2] and not weights[0].any()
    assert (weights[1, 0, 0], weights[1, 1, 1], weights[1, 3, 3], weights.sum()) == (0.5, 0.5, 1.0, 2.0)


def test_equal_scores_give_chance_level():
    assert ranking_metrics([1, 0, 0, 0], [2.0, 2.0, 2.0, 2.0]) == {"auroc": 0.5, "ap": 0.25, "f1max": 0.4}


def test_ranking_metrics_depend_on_the_order_of_scores_only():
    truth, score = draws("tied", 1)
    assert ranking_metrics(truth, score) == ranking_metrics(truth, np.exp(score / 3) - 7)


@pytest.mark.parametrize("truth", [[0, 0, 0], [1, 1, 1]])
def test_one_label_alone_is_undefined(truth):
    assert ranking_metrics(truth, [0.1, 0.2, 0.3]) == {"auroc": None, "ap": None, "f1max": None}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_refused(value):
    with pytest.raises(ValueError, match="NaN or infinity"):
        ranking_metrics([0, 1], [0.5, value])


def slow_aupro(masks, maps, limit=0.3):
    """AUPRO from its definition: threshold by threshold, region by region."""
    regions = [
        (i, labels == k)
        for i, mask in enumerate(masks)
        for labels, count in [connected(mask, np.ones((3, 3)))]
        for k in range(1, count + 1)
    ]
    points = [(0.0, 0.0)]
    for threshold in sorted(set(maps.ravel()), reverse=True):
        hit = maps >= threshold
        overlap = np.mean([hit[i][region].mean() for i, region in regions])
        points.append((hit[masks == 0].mean(), overlap))
    area = 0.0
    for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
        if x0 >= limit:
            break
        if x1 > limit:
            y1, x1 = y0 + (y1 - y0) * (limit - x0) / (x1 - x0), limit
        area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("steps", [3, 20, 1000])
def test_aupro_equals_its_definition_on_diagonal_regions_single_pixels_and_ties(seed, steps):
    random = np.random.default_rng(seed)
    masks = np.zeros((3, 9, 9), np.uint8)
    masks[0, [1, 2, 3], [1, 2, 3]] = 1  # one region by 8-neighbourhood, three by 4-neighbourhood
    masks[0, 7, 7] = masks[1, 0, 0] = 1
    masks[1, 4:8, 2:7] = 1
    maps = np.round((random.random(masks.shape) + 0.4 * masks) * steps) / steps
    assert aupro(masks, maps) == pytest.approx(slow_aupro(masks, maps), abs=1e-12)
    assert aupro(masks, maps, limit=0.05) == pytest.approx(slow_aupro(masks, maps, 0.05), abs=1e-12)


def test_diagonal_neighbours_are_one_region():
    masks = np.zeros((1, 4, 4), np.uint8)
    masks[0, 0, 0] = masks[0, 1, 1] = masks[0, 3, 3] = 1  # two regions: sizes two and one
    maps = np.zeros((1, 4, 4))
    maps[0, 3, 3] = 1.0
    # Rate 0 -> overlap 1/2; the last threshold takes everything: a line from (0, 1/2) to (1, 1).
    assert aupro(masks, maps) == pytest.approx((0.5 + 0.65) / 2)


def test_aupro_of_a_perfect_map_is_one_and_of_a_constant_map_half_the_limit():
    masks = np.zeros((2, 6, 6), np.uint8)
    masks[0, 1:4, 1:4] = 1
    assert aupro(masks, masks.astype(float)) == pytest.approx(1.0)
    assert aupro(masks, np.ones(masks.shape)) == pytest.approx(0.15)


def test_aupro_weighs_regions_not_pixels():
    masks = np.zeros((1, 8, 8), np.uint8)
    masks[0, 0, 0] = 1
    masks[0, 3:7, 3:7] = 1
    maps = np.where(masks == 1, 0.0, 0.5)
    maps[0, 0, 0] = 1.0
    assert aupro(masks, maps) == pytest.approx(0.5)


def test_aupro_without_a_region_or_without_a_normal_pixel_is_undefined():
    assert aupro(np.zeros((1, 4, 4)), np.ones((1, 4, 4))) is None
    assert aupro(np.ones((1, 4, 4)), np.ones((1, 4, 4))) is None


def test_min_max_scales_to_zero_and_one_and_leaves_a_constant_at_zero():
    assert min_max(np.array([2.0, 4.0, 3.0])).tolist() == [0.0, 1.0, 0.5]
    assert min_max(np.array([2.0, 2.0])).tolist() == [0.0, 0.0]


MAPS = np.array([[[0.0, 1.0]], [[2.0, 4.0]], [[1.0, 3.0]]])  # peaks 1, 4, 3
HEAD = np.array([0.2, 0.4, 0.6])


def test_the_fused_score_is_half_map_half_head_for_industrial_and_the_map_for_medical():
    assert fused_image_score(MAPS, HEAD, "Industrial").tolist() == pytest.approx([0.125, 0.75, 0.875])
    assert fused_image_score(MAPS, HEAD, "Medical").tolist() == pytest.approx([0.25, 1.0, 0.75])


def test_the_fused_score_of_an_image_depends_on_the_others_and_the_unnormalised_one_does_not():
    fewer = slice(0, 2)
    fused = (
        fused_image_score(MAPS, HEAD, "Industrial"),
        fused_image_score(MAPS[fewer], HEAD[fewer], "Industrial"),
    )
    assert fused[0][1] != fused[1][1]
    alone = unnormalised_image_score(MAPS, HEAD, 4), unnormalised_image_score(MAPS[fewer], HEAD[fewer], 4)
    assert alone[0][fewer].tolist() == alone[1].tolist()


def test_the_unnormalised_score_is_the_mean_of_peak_cosine_and_head():
    assert unnormalised_image_score(MAPS, HEAD, 4).tolist() == pytest.approx([0.10125, 0.205, 0.30375])


MASKS = np.zeros((3, 1, 1, 2))
MASKS[1, 0, 0, 1] = MASKS[2, 0, 0, 1] = 1
LABELS = np.array([0, 1, 1])


def test_upstreams_row_is_in_percent_rounded_to_four_digits_before():
    maps = np.array([[[0.0, 4.0]], [[2.0, 4.0]], [[1.0, 3.0]]])
    row = metrics_eval(MASKS, LABELS, maps, HEAD, "bottle", "Industrial")
    assert list(row) == ["class name", "pixel AUC", "pixel AP", "image AUC", "image AP"]
    assert row["class name"] == "bottle"
    # Abnormal pixels 4, 3; normal 0, 4, 2, 1: AUROC (3.5 + 3) / 8; AP 1/2 * 1/2 + 1/2 * 2/3.
    assert row["pixel AUC"] == pytest.approx(81.25)
    assert row["pixel AP"] == pytest.approx(58.33, abs=1e-9)
    assert row["image AUC"] == pytest.approx(100.0)


def test_upstreams_row_says_zero_where_only_one_label_is_present():
    row = metrics_eval(MASKS[:1], LABELS[:1], MAPS[:1], HEAD[:1], "x", "Medical")
    assert [row[key] for key in ("pixel AUC", "pixel AP", "image AUC", "image AP")] == [0, 0, 0, 0]


def test_the_domain_decides_upstreams_image_score():
    maps = np.array([[[0.0, 5.0]], [[2.0, 4.0]], [[1.0, 3.0]]])
    rows = [
        metrics_eval(MASKS, LABELS, maps, np.array([0.1, 0.9, 0.8]), "x", domain)
        for domain in ("Industrial", "Medical")
    ]
    assert rows[0]["image AUC"] == pytest.approx(100.0) and rows[1]["image AUC"] == 0


def test_class_metrics_hold_every_metric_and_count_the_images():
    row = class_metrics(MASKS[:, 0], LABELS, MAPS, HEAD, "Industrial", 4)
    families = ("pixel_{}", "image_{}", "image_{}_unnormalised")
    names = [family.format(name) for family in families for name in ("auroc", "ap", "f1max")]
    assert set(row) == {*names, "pixel_aupro", "images", "abnormal_images"}
    assert (row["images"], row["abnormal_images"]) == (3, 2)
    assert row["pixel_auroc"] == ranking_metrics(MASKS, MAPS)["auroc"]
    assert row["image_ap"] == ranking_metrics(LABELS, fused_image_score(MAPS, HEAD, "Industrial"))["ap"]
    alone = ranking_metrics(LABELS, unnormalised_image_score(MAPS, HEAD, 4))
    assert row["image_f1max_unnormalised"] == alone["f1max"]
    assert row["pixel_aupro"] == aupro(MASKS[:, 0], MAPS)


def test_the_mean_row_leaves_undefined_classes_out_and_adds_counts():
    rows = [
        {"pixel_auroc": 0.5, "image_auroc": None, "images": 3},
        {"pixel_auroc": 1.0, "image_auroc": None, "images": 4},
    ]
    assert mean_row(rows) == {"pixel_auroc": 0.75, "image_auroc": None, "images": 7}
    rows[0]["image_auroc"] = 0.25
    assert mean_row(rows)["image_auroc"] == 0.25


def test_files_keep_the_names_the_unnormalised_metrics_had_and_old_files_are_read_under_the_new_ones():
    row = {"image_auroc": 0.5, "image_auroc_unnormalised": 0.75, "image_ap_unnormalised": None, "images": 3}
    both = with_old_names(row)
    assert both == row | {"own_image_auroc": 0.75, "own_image_ap": None}
    assert renamed(both) == row and renamed({"own_image_f1max": 1.0}) == {"image_f1max_unnormalised": 1.0}


def test_pixel_metrics_take_a_few_bytes_a_pixel_beside_maps_and_masks():
    maps = np.random.default_rng(0).random((8, 256, 256), np.float32)
    masks, labels, head = np.zeros(maps.shape, np.uint8), np.array([0, 1] * 4), np.ones(8, np.float32)
    masks[1::2, 40:90, 60:100] = 1
    tracemalloc.start()
    class_metrics(masks, labels, maps, head, "Industrial", 4)
    table_row(masks, labels, maps, head, "x", "Industrial")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * maps.size
