"""`--feature_cache` and `--image_cache` from the command line: what enters the image tower is counted, in images."""

import json

import pytest
import torch
from flag_words import words
from PIL import Image

import test
import train
import train_cross_attention
from dataset import picture_cache
from model import frozen_cache

IMAGES = 12  # of the data set, in both splits


@pytest.fixture
def entered(monkeypatch):
    """List whose sum is the number of images that entered an image tower."""
    counts, conv = [], torch.nn.Conv2d.forward

    def counting(self, image):
        counts.append(len(image))
        return conv(self, image)

    monkeypatch.setattr(torch.nn.Conv2d, "forward", counting)
    return counts


def images_of(entered):
    total = sum(entered)
    entered.clear()
    return total


def losses(folder):
    stages = json.loads((folder / "history.json").read_text(encoding="utf-8"))["loops"][0]
    return [epoch["loss"] for stage in ("text", "image") for epoch in stages[stage]]


def test_stage_1_runs_without_its_image_models_where_the_pictures_recur(train_flags, tmp_path, entered):
    flags = [*train_flags, *words(surgery_attention="spatial", text_epoch=2)]
    cached = [*flags, *words(feature_cache=tmp_path / "features", image_cache=tmp_path / "pictures")]

    def trained(name, flags, *more):
        train.main([*flags, *words(save_path=tmp_path / name), *more])
        return images_of(entered)

    stage_2 = IMAGES
    assert trained("plain", flags) == 2 * IMAGES + stage_2
    # Every epoch has variants of its own; one picture happens to be left as it is in both.
    assert trained("cached", cached) == 2 * IMAGES - 1 + stage_2
    assert losses(tmp_path / "cached") == pytest.approx(losses(tmp_path / "plain"), rel=1e-4)
    assert trained("another arm", cached, "--text_norm_weight", "0.2") == stage_2
    assert trained("fixed", cached, "--text_augmentation", "fixed", "--seed", "5") == IMAGES + stage_2
    log = (tmp_path / "fixed" / "train.log").read_text(encoding="utf-8")
    assert f"features: {IMAGES} of {2 * IMAGES} images were in it" in log
    settings = torch.load(tmp_path / "fixed" / "text_adapter.pth", weights_only=True)["settings"]
    assert settings["text_augmentation"] == "fixed"


def test_a_run_goes_on_with_or_without_the_caches(train_flags, tmp_path):
    cached = words(feature_cache=tmp_path / "features", image_cache=tmp_path / "pictures")
    train.main([*train_flags, *cached])
    train.main([*train_flags, "--image_epoch", "2"])
    assert len(losses(tmp_path / "run")) == 3


def test_raw_clip_is_evaluated_a_second_time_without_image_tower_and_decoding(
    flags, tmp_path, entered, monkeypatch
):
    cached = words(feature_cache=tmp_path / "features", image_cache=tmp_path / "pictures")
    plain = test.main([*flags, "--raw_clip"])
    first = test.main([*flags, "--raw_clip", *cached, "--batch_size", "5"])
    assert images_of(entered) == 2 * IMAGES
    monkeypatch.setattr(picture_cache, "read_pair", None)
    again = test.main([*flags, "--raw_clip", *cached])
    assert images_of(entered) == 0
    for result in (first, again):
        assert result[0]["mean"] == pytest.approx(plain[0]["mean"], abs=1e-3)


def test_all_checkpoints_share_the_frozen_pass_of_a_self_reference(cross_flags, tmp_path, entered, evaluate):
    folder, features = tmp_path / "run", words(feature_cache=tmp_path / "features")
    more = words(save_path=folder, self_reference=0.3, image_epoch=2)
    train_cross_attention.main([*cross_flags, *more, *features])
    images_of(entered)
    plain = evaluate(folder, "--all")
    assert images_of(entered) == 2 * 2 * IMAGES  # per checkpoint the adapted and the frozen pass
    found = evaluate(folder, "--all", *features)
    assert images_of(entered) == IMAGES + 2 * IMAGES  # the frozen one once
    for one, other in zip(found, plain, strict=True):
        assert one["mean"] == pytest.approx(other["mean"], abs=1e-3)
    evaluate(folder, *features)
    assert images_of(entered) == IMAGES


def test_rarity_alone_and_beside_a_run_looks_its_frozen_pass_up(flags, train_flags, tmp_path, entered):
    features = words(feature_cache=tmp_path / "features")
    plain = test.main([*flags, "--rarity_alone"])
    test.main([*flags, "--rarity_alone", *features])
    images_of(entered)
    again = test.main([*flags, "--rarity_alone", *features])
    assert images_of(entered) == 0
    assert again[0]["mean"] == pytest.approx(plain[0]["mean"], abs=1e-3)
    train.main([*train_flags, *words(image_epoch=2)])
    images_of(entered)
    plain = test.main([*flags, "--all", "--rarity_weight", "0.1"])
    assert images_of(entered) == 2 * 2 * IMAGES  # per checkpoint the adapted and the frozen pass
    found = test.main([*flags, "--all", "--rarity_weight", "0.1", *features])
    assert images_of(entered) == 2 * IMAGES  # rarity alone left the frozen one
    for one, other in zip(found, plain, strict=True):
        assert one["mean"] == pytest.approx(other["mean"], abs=1e-3)


def test_all_checkpoints_share_the_normal_references_and_the_distances_to_them(
    flags, train_flags, tmp_path, entered, monkeypatch
):
    for number, name in enumerate(("bottle", "screw")):
        (tmp_path / "references" / name).mkdir(parents=True)
        Image.new("RGB", (40, 48), (90, 90 + number, 90)).save(tmp_path / "references" / name / "0.png")
    few = words(normal_references=tmp_path / "references", reference_weight=0.5)
    train.main([*train_flags, *words(image_epoch=2)])
    images_of(entered)
    plain = test.main([*flags, "--all", *few])
    assert images_of(entered) == 2 + 2 * 2 * IMAGES  # the references once, however many checkpoints there are
    monkeypatch.setattr(frozen_cache, "image_digests", lambda _: pytest.fail("the loader has them"))
    features = words(feature_cache=tmp_path / "features")
    found = test.main([*flags, "--all", *few, *features])
    assert images_of(entered) == 2 + IMAGES + 2 * IMAGES  # and their distances once
    for one, other in zip(found, plain, strict=True):
        assert one["mean"] == pytest.approx(other["mean"], abs=1e-3)
    test.main([*flags, "--raw_clip", *few, *features])
    assert images_of(entered) == 2 + IMAGES  # raw CLIP's own pass


def test_a_cache_that_cannot_hold_anything_stops_the_command_at_its_begin(flags, tmp_path):
    with pytest.raises(ValueError, match="--feature_cache_gb 0.0: expected more than 0"):
        test.main([*flags, "--raw_clip", *words(feature_cache=tmp_path / "features", feature_cache_gb=0)])
