"""Which pictures a page of errors lists, and in which order: evaluation.errors."""

import numpy as np
import pytest

from evaluation.errors import mistakes_in
from evaluation.picture_scores import PictureScore


def pictures(name, labels, scores):
    return [
        PictureScore(f"{name}{number}", name, label, score, score / 2, 0.0)
        for number, (label, score) in enumerate(zip(labels, scores, strict=True))
    ]


def listed(found):
    return [(one.picture.file, one.number, one.share) for one in found]


def test_an_error_is_ranked_by_the_pictures_of_the_other_label_on_whose_wrong_side_it_lies():
    rows = pictures("a", [0, 0, 1, 1, None], [0.9, 0.1, 0.5, 0.9, 9.0])
    assert listed(mistakes_in(rows, 0)) == [("a0", 0, 0.75)]  # one scores lower, one ties
    assert listed(mistakes_in(rows, 1)) == [("a2", 2, 0.5), ("a3", 3, 0.25)]


def test_classes_of_other_scales_stand_in_one_list_and_ties_go_by_the_place_in_the_class():
    small = pictures("a", [0, 0, 1, 1], [0.3, 0.4, 0.1, 0.5])
    large = pictures("b", [0, 0, 0, 1], [100.0, 300.0, 200.0, 150.0])
    assert listed(mistakes_in([*large, *small], 0)) == [
        ("b1", 1, 1.0),
        ("b2", 2, 1.0),
        ("a1", 1, 0.5),
        ("a0", 0, 0.5),
    ]


@pytest.mark.parametrize("scores", [[0.1, 0.2, 0.8, 0.9], [0.5, 0.5, 0.6, 0.6]])
def test_a_class_in_order_has_no_error_and_one_label_alone_has_none_either(scores):
    rows = pictures("a", [0, 0, 1, 1], scores) + pictures("b", [1, 1], [0.0, 0.1]) + pictures("c", [0], [9.0])
    assert mistakes_in(rows, 0) == mistakes_in(rows, 1) == []


def test_the_shares_of_all_false_alarms_average_to_one_minus_the_image_auroc():
    from sklearn.metrics import roc_auc_score

    random = np.random.default_rng(0)
    labels, scores = random.integers(0, 2, 60), random.integers(0, 12, 60) / 7.0
    rows = pictures("a", labels.tolist(), scores.tolist())
    for label in (0, 1):
        total = sum(one.share for one in mistakes_in(rows, label)) / np.count_nonzero(labels == label)
        assert total == pytest.approx(1 - roc_auc_score(labels, scores), abs=1e-12)
