"""Thresholds from normal scores: their rank, their guarantee, what they are stored for."""

import json
import math

import numpy as np
import pytest

from evaluation.photographs.calibration import (
    Calibration,
    calibrated,
    pictures_needed,
    refuse_abnormal,
    store,
    threshold_for,
)


def test_the_threshold_lies_above_the_score_of_the_conformal_rank():
    scores = list(range(1, 20))  # 19 pictures, 5 %: above all of them
    assert calibrated(scores, 0.05).threshold == math.nextafter(19.0, math.inf)
    assert calibrated(scores, 0.1).threshold == math.nextafter(18.0, math.inf)
    assert calibrated(scores[::-1], 0.1) == calibrated(scores, 0.1)


@pytest.mark.parametrize(("rate", "needed"), [(0.05, 19), (0.01, 99), (0.1, 9), (0.07, 14)])
def test_too_few_pictures_are_refused_with_how_many_are_needed(rate, needed):
    assert pictures_needed(rate) == needed
    calibrated(range(needed), rate)
    with pytest.raises(ValueError, match=f"needs {needed} normal pictures, got {needed - 1}"):
        calibrated(range(needed - 1), rate)


def test_the_stated_rate_is_kept_on_average_and_the_interval_covers_the_draws():
    random, rates, inside = np.random.default_rng(2), [], 0
    for _ in range(3000):
        found = calibrated(random.random(39), 0.1)  # of uniform scores the true rate is 1 - threshold
        rates.append(1 - found.threshold)
        inside += found.interval[0] <= rates[-1] <= found.interval[1]
    assert np.mean(rates) == pytest.approx(0.1, abs=0.005)
    assert inside / 3000 == pytest.approx(0.9, abs=0.02)


def test_equal_scores_are_all_normal():
    assert not any(score >= calibrated([0.5] * 30, 0.1).threshold for score in [0.5] * 30)


@pytest.mark.parametrize("rate", [0, 1, -0.1, math.nan])
def test_a_rate_out_of_range_is_refused(rate):
    with pytest.raises(ValueError, match="expected a share between 0 and 1"):
        calibrated([0.1] * 50, rate)


def test_a_threshold_is_found_for_the_same_weights_words_and_tiles_alone(tmp_path):
    file, scored = tmp_path / "thresholds.json", {"text": "bolt", "tile": None}
    store(file, Calibration(0.3, 0.05, 20, (0.0, 0.1)), scored)
    store(file, Calibration(0.4, 0.05, 30, (0.0, 0.1)), scored)
    store(file, Calibration(0.5, 0.05, 30, (0.0, 0.1)), scored | {"tile": 0.25})
    assert threshold_for(file, scored) == 0.4 and len(json.loads(file.read_text())) == 2
    with pytest.raises(ValueError, match="'bolt' differ in tile"):
        threshold_for(file, scored | {"tile": 0.5})
    with pytest.raises(ValueError, match="no threshold for 'nut' .* it has 'bolt'"):
        threshold_for(file, scored | {"text": "nut"})
    file.write_text("{}")
    with pytest.raises(ValueError, match="delete it and calibrate again"):
        threshold_for(file, scored)


def test_pictures_that_rows_call_anomalous_are_refused(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(
            json.dumps({"image_path": f"{name}.png", "label": label, "class_name": "x"}) + "\n"
            for name, label in (("a", 0), ("b", 1))
        )
    )
    refuse_abnormal([tmp_path / "a.png"], rows)
    with pytest.raises(ValueError, match="1 of 2 pictures are anomalous"):
        refuse_abnormal([tmp_path / "a.png", tmp_path / "b.png"], rows)
    with pytest.raises(ValueError, match="no row names 1 of 2 pictures, such as .*c.png"):
        refuse_abnormal([tmp_path / "a.png", tmp_path / "c.png"], rows)
