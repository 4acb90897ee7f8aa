"""The reference without learning: evaluation/local_contrast.py, test.py --local_contrast, as an arm, in the studies."""

import json

import numpy as np
import pytest
import torch
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from scipy.ndimage import gaussian_filter

import compare
import test as test_script
from comparison.arms import read_arm
from comparison.comparable import deviations
from evaluation.local_contrast import SMOOTHING, SURROUNDINGS, LocalContrast, grey_of
from metrics import fused_image_score, unnormalised_image_score
from scripts import demo
from studies.references import REFERENCES
from studies.study import STUDIES


def normalised(pixels):
    """RGB in [0, 1] [B, 3, S, S] as CLIP's input."""
    mean, deviation = (
        torch.tensor(values)[:, None, None] for values in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)
    )
    return (pixels - mean) / deviation


def test_a_map_is_the_blurred_distance_of_grey_from_its_blur():
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    maps, score = LocalContrast(32, "Industrial").score(normalised(pixels), "x")
    for picture, found, peak in zip(pixels.numpy(), maps, score, strict=True):
        grey = np.tensordot((0.299, 0.587, 0.114), picture, 1)
        rest = np.abs(grey - gaussian_filter(grey, SURROUNDINGS * 32, mode="mirror"))
        wanted = gaussian_filter(rest, SMOOTHING * 32, mode="mirror")
        np.testing.assert_allclose(found, 100 * wanted, atol=1e-3)
        assert float(peak) == pytest.approx(wanted.max(), abs=1e-5)


def test_grey_is_brightness_in_zero_to_one():
    white = torch.ones(1, 3, 4, 4)
    torch.testing.assert_close(grey_of(normalised(white)), torch.ones(1, 1, 4, 4))
    torch.testing.assert_close(grey_of(normalised(0 * white)), torch.zeros(1, 1, 4, 4))


def test_a_spot_scores_highest_where_it_is_and_a_larger_image_sees_the_same():
    peaks = []
    for side in (64, 128):
        pixels = torch.full((1, 3, side, side), 0.4)
        pixels[:, :, side // 4 : side // 4 + side // 16, side // 2 : side // 2 + side // 16] = 1
        maps, score = LocalContrast(side, "Industrial").score(normalised(pixels), "x")
        row, column = divmod(int(maps[0].argmax()), side)
        assert side // 4 <= row < side // 4 + side // 16 and side // 2 <= column < side // 2 + side // 16
        peaks.append(float(score))
    assert peaks[0] == pytest.approx(peaks[1], rel=0.1)


@pytest.mark.parametrize("domain", ["Industrial", "Medical"])
def test_every_image_score_ranks_by_the_maps_maximum(domain):
    pixels = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    maps, score = (part.numpy() for part in LocalContrast(16, domain).score(normalised(pixels), "x"))
    order = np.argsort(maps.max(axis=(1, 2)))
    assert (np.argsort(fused_image_score(maps, score, domain)) == order).all()
    own = unnormalised_image_score(maps, score, LocalContrast.levels)
    np.testing.assert_allclose(own, score, rtol=1e-5)


def test_local_contrast_is_evaluated_without_weights_and_compared_as_an_arm(flags, tmp_path, monkeypatch):
    monkeypatch.setattr("evaluation.run.create_backbone", None)  # no backbone is made
    at = flags.index("--clip_weights")
    without_weights = [*flags[:at], *flags[at + 2 :]]
    for name in ("contrast", "again"):
        test_script.main([*without_weights, "--local_contrast", "--save_path", str(tmp_path / name)])
    entry = json.loads((tmp_path / "contrast" / "metrics.json").read_text(encoding="utf-8"))["MVTec"]
    assert 0 < entry["local_contrast"]["mean"]["pixel_auroc"] < 1
    assert (tmp_path / "contrast" / "scores" / "MVTec" / "local_contrast.csv").is_file()
    data = flags[flags.index("--data_root") + 1]
    found = compare.main(
        ["--baseline", str(tmp_path / "contrast"), "--runs", f"other={tmp_path / 'again'}"]
        + ["--datasets", "MVTec", "--data_root", data, "--replicates", "100", "--out", str(tmp_path / "out")]
    )
    (about,) = found["MVTec"]["abouts"]["other"]
    assert about["checkpoint"] == "local_contrast" and deviations(about) == {}
    assert found["MVTec"]["arms"]["other"]["metrics"]["pixel_ap"]["value"] == 0


def test_two_evaluations_without_training_in_one_folder_or_call_are_refused(flags, tmp_path):
    with pytest.raises(ValueError, match="--raw_clip and --local_contrast"):
        test_script.main([*flags, "--raw_clip", "--local_contrast"])
    for flag in ("--raw_clip", "--local_contrast"):
        test_script.main([*flags, flag])
    with pytest.raises(ValueError, match="evaluations of local_contrast, raw_clip"):
        read_arm(str(tmp_path / "run"))


def test_local_contrast_and_rarity_stand_beside_raw_clip_in_the_demo_and_the_study():
    assert list(demo.UNTRAINED.values()) == ["--local_contrast", "--rarity_alone", "--raw_clip"]
    assert all(REFERENCES.items() <= arms.items() for arms in STUDIES.values())
    assert STUDIES["baseline"]["local_contrast"] == (None, ["--local_contrast"])
    assert STUDIES["baseline"]["raw_clip"] == (None, ["--raw_clip"])
