"""Few normal references at test: distances, weights, and what refuses to be mixed with zero-shot results."""

import json
import shutil

import numpy as np
import pytest
import torch
from flag_words import words
from PIL import Image

import calibrate
import predict
import test as test_script
from comparison.comparable import reasons
from dataset import get_dataset
from evaluation import reference_weight
from evaluation.few_shot import (
    RARITY_ALONE,
    RAW_CLIP,
    TRAINED_RUN,
    WEIGHT_FILE,
    images_of,
    references_in,
    references_of_classes,
    weight_for,
)
from evaluation.normal_references import ReferenceBanks, WithReferences, distance_to
from evaluation.reference_weight import choose, value_of
from evaluation.scorer import raw_clip_scorer
from run_folder.flags import parse

SIZE, CLASSES = 32, ("bottle", "screw")


@pytest.fixture
def references(tmp_path):
    """Two sound pictures for every class of the tiny data set."""
    random = np.random.default_rng(8)
    for name in CLASSES:
        folder = tmp_path / "references" / name
        folder.mkdir(parents=True)
        for number in range(2):
            pixels = random.integers(60, 120, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "references"


@pytest.fixture
def raw(model_name, weights, data_root, tmp_path):
    """Flags of test.py for unadapted CLIP on the tiny data set."""
    own = words(raw_clip=True, model_name=model_name, clip_weights=weights, img_size=SIZE)
    return [*own, *words(dataset="MVTec", data_root=data_root, save_path=tmp_path / "raw")]


def test_a_patch_is_as_far_as_its_most_similar_reference_patch(monkeypatch):
    bank = torch.eye(3)[:2]
    patches = torch.tensor([[[2.0, 0.0, 0.0], [0.0, 0.0, 5.0], [3.0, 4.0, 0.0], [-1.0, 0.0, 0.0]]])
    expected = torch.tensor([[0.0, 1.0, 1 - 0.8, 1.0]])
    torch.testing.assert_close(distance_to(patches, bank), expected)
    monkeypatch.setattr("evaluation.normal_references.PATCHES_AT_ONCE", 1)  # in pieces
    torch.testing.assert_close(distance_to(patches, bank), expected)


def test_a_weight_of_0_is_the_zero_shot_scorer_and_a_reference_is_no_distance_from_itself(clip, references):
    scorer = raw_clip_scorer(clip, "MVTec", SIZE)
    pictures = images_of(references_of_classes(references, CLASSES), SIZE, upright=True)
    image = torch.stack(list(pictures("bottle")))
    none = WithReferences(scorer, ReferenceBanks(clip, pictures), 0.0)
    for ours, theirs in zip(none.score(image, "bottle"), scorer.score(image, "bottle"), strict=True):
        assert torch.equal(ours, theirs)
    maps, heads = none.distances(image, "bottle")
    assert maps.abs().max() < 1e-3 and heads.abs().max() < 1e-5
    maps, heads = none.distances(image, "screw")  # of another class
    assert maps.min() > 1e-2 and heads.min() > 1e-3


def test_results_with_references_stand_beside_the_zero_shot_ones_and_name_them(raw, references, tmp_path):
    (zero,) = test_script.main(raw)
    (few,) = test_script.main([*raw, *words(normal_references=references, reference_weight=0.5)])
    entries = json.loads((tmp_path / "raw" / "metrics.json").read_text())["MVTec"]
    assert list(entries) == ["raw_clip", "raw_clip with 2 normal references"]
    stated = entries["raw_clip with 2 normal references"]["few_shot"]
    assert (
        stated["normal_references"] == 2 and stated["weight"] == 0.5 and "few_shot" not in entries["raw_clip"]
    )
    assert few["mean"]["pixel_ap"] != zero["mean"]["pixel_ap"]


def test_a_trained_run_is_tested_with_the_weight_that_lies_in_its_folder(
    raw, references, tmp_path, flags, train_flags
):
    import train

    train.main(train_flags)
    (tmp_path / "run" / WEIGHT_FILE).write_text(json.dumps({"weight": 0.25, "dataset": "VisA"}))
    test_script.main([*flags, *words(normal_references=references, visualize=True, errors=1)])
    entries = json.loads((tmp_path / "run" / "metrics.json").read_text())["MVTec"]
    assert entries["image_adapter.pth with 2 normal references"]["few_shot"]["weight"] == 0.25
    with pytest.raises(ValueError, match="found on VisA, which is tested"):
        weight_for(tmp_path / "run", None, "VisA")
    # Pictures of other references than those of the numbers do not stay.
    pictures = [
        *(tmp_path / "run" / "errors").rglob("*.html"),
        *(tmp_path / "run").rglob("visualization/**/*.png"),
    ]
    assert len(pictures) > 1
    Image.new("RGB", (40, 48), (90, 90, 90)).save(references / "bottle" / "0.png")
    test_script.main([*flags, *words(normal_references=references)])
    assert not any(path.exists() for path in pictures)
    # The run's own size is taken where none is typed, and what has no label says nothing of a weight.
    content = flags[: flags.index("--img_size")] + flags[flags.index("--img_size") + 2 :]
    reference_weight.main([*content, *words(references=1, images=5)])
    kept = json.loads((tmp_path / "run" / WEIGHT_FILE).read_text())
    assert kept["img_size"] == SIZE and kept["raw_clip"] is False
    with pytest.raises(ValueError, match="the weight was found for a trained run"):
        weight_for(tmp_path / "run", None, "VisA", RAW_CLIP)


@pytest.mark.parametrize(
    ("spoil", "more", "message"),
    [
        (None, {}, "needs a weight"),
        (None, {"reference_weight": -1}, "reference_weight -1.0: expected 0 or more"),
        (lambda at: shutil.rmtree(at / "screw"), {"reference_weight": 1}, "no folder screw"),
        (lambda at: (at / "screw" / "0.png").unlink(), {"reference_weight": 1}, r"bottle 2, screw 1"),
        (lambda at: shutil.rmtree(at), {"reference_weight": 1}, "no such folder"),
    ],
)
def test_references_that_do_not_fit_are_refused(raw, references, spoil, more, message):
    if spoil is not None:
        spoil(references)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        test_script.main([*raw, *words(normal_references=references, **more)])


def test_a_tested_picture_is_no_reference(raw, references, data_root):
    shutil.copy(
        data_root / "mvtec_ad" / "screw" / "test" / "good" / "000.png", references / "screw" / "0.png"
    )
    with pytest.raises(
        ValueError, match="000.png is the normal reference .*take references from the training"
    ):
        test_script.main([*raw, *words(normal_references=references, reference_weight=1)])


def test_the_weight_of_training_classes_is_kept_and_not_used_on_them(raw, references, tmp_path):
    reference_weight.main([*raw, *words(references=1, images=5)])
    kept = json.loads((tmp_path / "raw" / WEIGHT_FILE).read_text())
    best = max(kept["means"].values())
    assert kept["means"][str(kept["weight"])] == best and kept["classes"] == 2 and kept["dataset"] == "MVTec"
    with pytest.raises(ValueError, match="was found on MVTec, which is tested here"):
        test_script.main([*raw, *words(normal_references=references)])


def test_a_weight_suits_the_scores_it_was_found_for_alone(raw, tmp_path):
    rare = [word for word in raw if word != "--raw_clip"]
    reference_weight.main([*rare, *words(rarity_alone=True, references=1, images=5)])
    assert weight_for(tmp_path / "raw", None, "VisA", RARITY_ALONE) in reference_weight.WEIGHTS
    for scored_by in (RAW_CLIP, TRAINED_RUN):
        with pytest.raises(
            ValueError, match=f"found for rarity alone, which is not .*, {scored_by}; find it"
        ):
            weight_for(tmp_path / "raw", None, "VisA", scored_by)
    old = {"weight": 0.5, "dataset": "MVTec", "raw_clip": True}  # of a version that knew no other
    (tmp_path / "raw" / WEIGHT_FILE).write_text(json.dumps(old))
    assert weight_for(tmp_path / "raw", None, "VisA", RAW_CLIP) == 0.5
    with pytest.raises(ValueError, match="found for raw CLIP, which is not what is tested, rarity alone"):
        test_script.main([*rare, *words(rarity_alone=True, normal_references=tmp_path, dataset="VisA")])
    with pytest.raises(ValueError, match="have a weight each"):
        reference_weight.main([*raw, "--rarity_alone"])


@pytest.mark.parametrize(
    "content",
    ['{"weight": 0.25}', '{"dataset": "VisA"}', '[0.25]', '{"weight": "0.25", "dataset": "VisA"}',
     '{"weight": -1, "dataset": "VisA"}', '{"weight": NaN, "dataset": "VisA"}'],
)  # fmt: skip
def test_a_stored_weight_of_another_form_is_refused_with_what_is_expected(tmp_path, content):
    (tmp_path / WEIGHT_FILE).write_text(content)
    with pytest.raises(
        ValueError, match=f"{WEIGHT_FILE}: expected the weight .*delete it and find the weight"
    ):
        weight_for(tmp_path, None, "MVTec", RAW_CLIP)


def test_references_that_do_not_fit_are_refused_before_any_weight_is_looked_for(raw, references, monkeypatch):
    monkeypatch.setattr("evaluation.run.create_backbone", lambda *_: pytest.fail("weights were looked for"))
    shutil.rmtree(references / "screw")
    with pytest.raises(FileNotFoundError, match="no folder screw"):
        test_script.main([*raw, *words(normal_references=references, reference_weight=1)])


def test_pictures_without_a_label_say_nothing_of_a_weight(raw, clip, data_root):
    settings = parse("", reference_weight.GROUPS, [*raw, *words(references=1)], reference_weight.DEFAULTS)
    images = get_dataset("MVTec", SIZE, "full_shot", 0, "test", data_root=data_root)["bottle"]
    scorer = raw_clip_scorer(clip, "MVTec", SIZE)
    labelled = reference_weight.of_class(scorer, clip, images, "bottle", settings)
    images.samples += [images.samples[0]._replace(label=None, mask_path=None)]
    found = reference_weight.of_class(scorer, clip, images, "bottle", settings)
    assert found.keys() == labelled.keys() and None not in found.values()


def test_the_best_mean_over_the_classes_wins_and_the_smaller_weight_of_equals():
    by_class = [dict.fromkeys(reference_weight.WEIGHTS, 0.5) for _ in range(2)]
    assert choose(by_class)[0] == 0.0
    by_class[0][0.3], by_class[1][1.0] = 0.8, 0.7
    assert choose(by_class) == (0.3, choose(by_class)[1]) and choose(by_class)[1][0.3] == 0.65


def test_a_weight_is_judged_by_pixels_and_by_pictures():
    maps = np.zeros((2, 8, 8), np.float32)
    parts = {"maps": maps, "extra_maps": maps.copy(), "heads": np.zeros(2), "extra_heads": np.zeros(2)}
    parts |= {"masks": maps > 0, "known": np.array([True, True]), "labels": np.array([0, 1])}
    parts["masks"][1, :4] = True
    parts["extra_maps"][1, :4] = 1.0
    assert value_of(parts, 0.0, 1) == pytest.approx((0.25 + 0.5) / 2)
    assert value_of(parts, 1.0, 1) == 1.0
    parts["known"][:] = False
    assert value_of(parts, 1.0, 1) == 1.0  # pictures alone


def test_photographs_are_scored_with_references_and_thresholds_know_them(
    raw, references, tmp_path, data_root
):
    own = [word for word in raw if word not in ("--dataset", "MVTec", "--data_root", str(data_root))]
    own = own[: own.index("--save_path")]
    few = words(normal_references=references / "bottle", reference_weight=0.5, tile=True)
    shown = words(text="bottle", input=data_root / "mvtec_ad" / "bottle" / "test" / "broken")
    assert predict.main([*own, *shown, "--out", str(tmp_path / "zero")]) == 0
    assert predict.main([*own, *shown, *few, "--out", str(tmp_path / "few")]) == 0
    zero, found = (json.loads((tmp_path / name / "scores.json").read_text()) for name in ("zero", "few"))
    assert found["model"]["few_shot"]["normal_references"] == 2 and "few_shot" not in zero["model"]
    stated = "few-shot, not zero-shot: every patch is also held against 2 normal references, with weight 0.5"
    for name, is_stated in (("few", True), ("zero", False)):
        for file in ("index.html", "predict.log"):
            assert (stated in (tmp_path / name / file).read_text()) == is_stated
    assert {one["file"]: one["score"] for one in found["pictures"]} != {
        one["file"]: one["score"] for one in zero["pictures"]
    }
    thresholds = words(thresholds=tmp_path / "thresholds.json")
    good = words(text="bottle", input=data_root / "mvtec_ad" / "bottle" / "test" / "good")
    assert calibrate.main([*own, *good, *few, *thresholds, "--false_positive_rate", "0.5"]) == 0
    with pytest.raises(ValueError, match="differ in few_shot"):
        predict.main(
            [*own, *shown, *words(tile=True), *thresholds, "--calibrated", "--out", str(tmp_path / "zero")]
        )
    with pytest.raises(ValueError, match="is the normal reference"):
        predict.main([*own, *words(text="bottle", input=references), *few, "--out", str(tmp_path / "few")])


def test_a_folder_without_a_picture_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no picture in it"):
        references_in(tmp_path)


def test_few_shot_and_zero_shot_results_are_not_compared():
    about = {
        "img_size": 32,
        "domain": "Industrial",
        "metrics_version": 1,
        "kind": "baseline",
        "checkpoint": "a.pth",
    }
    about |= {"settings": None, "tested_with": {"quick_gelu": False}}
    few = about | {"few_shot": {"normal_references": 2, "sha256": "x", "weight": 1}}
    assert reasons({}, about, {}, about) == [] and reasons({}, few, {}, few) == []
    (reason,) = reasons({}, about, {}, few)
    assert "normal references are not the same" in reason
