"""What the report opens with, and what it shows of image scores, on made-up results."""

import numpy as np
import pytest

from comparison import gallery, overview, score_figures
from comparison.arms import Arm
from evaluation.scores import ClassScores, ImageScores


def row(verdict=None, value=0.01, arm=0.51):
    """A metric's row of one arm, declared where it has a verdict."""
    numbers = {"low": value - 0.001, "high": value + 0.001, "p_holm": 0.01, "p_images": None}
    return (
        numbers
        | {
            "value": value,
            "arm": arm,
            "baseline": 0.5,
            "detectable": None,
            "hypotheses": 2,
            "smallest_p": 0.1,
        }
        | ({} if verdict is None else {"verdict": verdict})
    )


def results(**verdicts):
    """One data set and one arm a verdict, in pixel AP."""
    return {
        "A": {
            "arms": {name: {"metrics": {"pixel_ap": row(verdict)}} for name, verdict in verdicts.items()},
            "abouts": {"base": [about(0.4), about(0.6)]},
        }
    }


def about(value):
    return {"classes": {"x": {"pixel_ap": value}, "y": {"pixel_ap": None}}}


@pytest.mark.parametrize(
    ("verdicts", "headline"),
    [
        ({"one": "not shown"}, "No difference was shown in 1 declared comparison"),
        (
            {"one": "helps", "two": "not shown"},
            "one helps in pixel AP on A (+1.00 points): 1 of 2 declared comparisons decided",
        ),
        (
            {"one": "equivalent", "two": "undecidable"},
            "No difference was shown in 2 declared comparisons; 1 lie within the margin; 1 could not be decided with "
            "so few classes",
        ),
        ({"one": None}, "Nothing was decided: no declared hypothesis has a value"),
    ],
)
def test_the_headline_says_what_was_decided_and_what_was_not(verdicts, headline):
    assert overview.headline(results(**verdicts)) == headline


def test_a_headline_spells_three_verdicts_out_and_counts_the_rest():
    told = overview.headline(results(**dict.fromkeys("abcde", "hurts")))
    assert told.count("hurts in") == 3 and ", and 2 more: 5 of 5" in told


def test_the_matrix_has_references_first_and_differences_to_the_baseline():
    references = {"raw": {"A": [about(0.25)]}, "none": {"A": [{"classes": {"x": {"pixel_ap": None}}}]}}
    found = overview.matrix(results(one="helps"), Arm("base", []), references, ["pixel_ap"])
    assert found["columns"] == [("A", "pixel AP")]
    assert found["rows"] == [
        ("raw", "reference", [("25.00", "-25.00", "")]),
        ("none", "reference", [("–", "–", "")]),
        ("base", "baseline", [("50.00", "", "")]),
        ("one", "arm", [("51.00", "+1.00", "helps")]),
    ]


def image_scores(labels, scores):
    labels, scores = np.array(labels), np.array(scores)
    return ImageScores(np.array([f"{i}.png" for i in range(len(labels))]), labels, labels, scores, scores)


def test_the_mean_roc_curve_has_the_mean_auroc_as_area_and_leaves_one_label_classes_out():
    classes = {
        "sharp": image_scores([0, 0, 1, 1], [1, 2, 3, 4]),  # AUROC 1
        "half": image_scores([0, 1, 0, 1], [1, 2, 3, 4]),  # 0.75
        "good": image_scores([0, 0], [1, 2]),
    }
    curve = score_figures.mean_curve([classes])
    assert np.trapezoid(curve, score_figures.GRID) == pytest.approx(0.875, abs=0.003)
    assert score_figures.mean_curve([{"good": classes["good"]}]) is None
    assert score_figures.roc({"base": [{"good": classes["good"]}]}) is None
    for figure in (score_figures.roc({"base": [classes]}), score_figures.histograms({"base": [classes]})):
        assert figure.startswith("data:image/svg+xml;base64,")


def class_scores(labels, fused, maps=None):
    count = len(labels)
    empty = np.zeros((count, 1))
    thumbnails = np.zeros((count, 2, 2), np.uint8) if maps is None else np.array(maps, np.uint8)
    files = np.array([f"{i}.png" for i in range(count)])
    fused = np.array(fused, dtype=float)
    return ClassScores(
        files, files, np.array(labels), fused, fused, empty, empty, empty, np.zeros(count), thumbnails
    )


def test_worst_misses_are_defects_below_normal_images_by_the_mean_over_the_runs():
    labels = [0, 0, 1, 1, 1]
    stored = {
        "base": {"x": class_scores(labels, [2, 4, 1, 3, 5])},  # shares 1, 0.5, 0
        "arm": {"x": class_scores(labels, [2, 4, 5, 1, 6])},  # shares 0, 1, 0
    }
    chosen = gallery.worst_misses(stored)
    assert [(one.number, one.why.split(" %")[0]) for one in chosen] == [(3, "75"), (2, "50")]
    assert gallery.worst_misses({"base": {"x": class_scores([0, 1], [1, 2])}}) == []


def test_an_images_score_stands_among_the_other_normal_images():
    scores = class_scores([0, 0, 0, 1], [1, 2, 3, 2])
    assert gallery.score_words(scores, 3) == "score 2.0000, above 50 % of normal"
    assert gallery.score_words(scores, 2) == "score 3.0000, above 100 % of normal"
    assert scores.labels.tolist() == [0, 0, 0, 1]
    assert gallery.score_words(class_scores([0, 1], [1, 2]), 0) == "score 1.0000"


def test_the_images_that_disagree_most_come_first():
    same = class_scores([0, 1], [1, 2])
    moved = class_scores([0, 1], [1, 2], [[[0, 0], [0, 0]], [[255, 255], [255, 255]]])
    chosen = gallery.disagreements({"base": {"x": same}, "arm": {"x": moved}})
    assert [one.number for one in chosen] == [1, 0] and chosen[0].why == "3.00 powers of ten apart"
