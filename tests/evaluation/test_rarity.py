"""Rarity without training, alone and on top of a run: evaluation/rarity.py, test.py --rarity_alone, --rarity_weight."""

import json

import pytest
import torch

import compare
import test as test_script
import train_cross_attention
from evaluation.rarity import WithRarity
from model.context_controls import another_image
from model.self_reference import TYPICAL, TYPICAL_PEAK, peak, rarity
from run_folder.loaded_run import load_run


class Fixed(torch.nn.Module):
    """A network that compares every image alike."""

    def compare(self, image, anchors, *contexts):
        return [torch.full((len(image), 16, 2), 3.0)] * 2, torch.full((len(image), 2), 0.5)


@torch.no_grad()
def test_rarity_is_added_to_the_differences_of_patches_and_head(clip, images):
    weighed = WithRarity(clip, [1, 2], 0.5, Fixed())
    logits, head = weighed.compare(images, torch.zeros(len(images), 4, 2))
    tokens = clip.encode_image(images, [1, 2])[1]
    rare = [rarity(clip.visual.ln_post(x[:, 1:]), 0.08) for x in tokens]
    for found, wanted in zip(logits, rare, strict=True):
        torch.testing.assert_close(found[..., 0], torch.full_like(wanted, 3.0))
        torch.testing.assert_close(found[..., 1], 3 + 100 * 0.5 * (wanted - TYPICAL))
    torch.testing.assert_close(head[:, 1], 0.5 + 0.5 * (peak(rare) - TYPICAL_PEAK))
    assert torch.equal(head[:, 0], torch.full_like(head[:, 0], 0.5))


@torch.no_grad()
def test_alone_it_looks_at_no_anchor_and_shuffled_it_is_another_images(clip, images):
    alone, shuffled = WithRarity(clip, [1, 2]), WithRarity(clip, [1, 2], control="shuffled")
    anchors = torch.randn(len(images), 4, 2)
    (own, _), (same, _), (others, _) = (
        alone.compare(images, anchors),
        alone.compare(images, 2 * anchors),
        shuffled.compare(images, anchors),
    )
    for ours, again, theirs in zip(own, same, others, strict=True):
        assert torch.equal(ours, again) and not torch.equal(ours, theirs)
        assert torch.equal(ours[another_image(len(images))], theirs)
    with pytest.raises(ValueError, match="a batch of one image has none"):
        shuffled.compare(images[:1], anchors[:1])


@torch.no_grad()
def test_a_network_that_names_its_levels_twice_gets_their_rarities_twice(clip, images):
    once, twice = (WithRarity(clip, levels).compare(images, None) for levels in ([1, 2], [1, 2, 1, 2]))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip([*once[0], *once[0]], twice[0], strict=True))
    torch.testing.assert_close(once[1], twice[1])


def test_another_image_is_never_the_own_and_mostly_not_the_next():
    for count in (2, 3, 28, 32):
        other = another_image(count)
        assert sorted(other.tolist()) == list(range(count)) and not (other == torch.arange(count)).any()
    normal = torch.arange(28) >= 14  # as test images stand in a class: the defective ones first
    assert 8 <= int((normal[another_image(28)] == normal).sum()) <= 20


def test_a_weight_that_is_not_above_zero_is_refused(clip):
    with pytest.raises(ValueError, match="--rarity_weight 0.0: expected a weight above 0"):
        WithRarity(clip, [1], 0.0)


def test_rarity_alone_is_evaluated_without_a_run_and_is_an_arm_of_a_comparison(flags, tmp_path):
    for name in ("rare", "again"):
        test_script.main([*flags, "--rarity_alone", "--save_path", str(tmp_path / name)])
    entry = json.loads((tmp_path / "rare" / "metrics.json").read_text(encoding="utf-8"))["MVTec"]
    assert list(entry) == ["rarity_alone"] and entry["rarity_alone"]["mean"]["pixel_auroc"] is not None
    data = flags[flags.index("--data_root") + 1]
    found = compare.main(
        ["--baseline", str(tmp_path / "rare"), "--runs", f"other={tmp_path / 'again'}"]
        + ["--datasets", "MVTec", "--data_root", data, "--replicates", "100", "--out", str(tmp_path / "out")]
    )
    assert found["MVTec"]["arms"]["other"]["metrics"]["pixel_ap"]["value"] == 0
    for refused, words in (
        (["--raw_clip", "--rarity_alone"], "--raw_clip and --rarity_alone are 2 evaluations"),
        (["--rarity_alone", "--rarity_weight", "0.3"], "rarity alone has no run"),
        (["--raw_clip", "--rarity_weight", "0.3"], "leave --raw_clip away"),
        (["--raw_clip", "--rarity_control", "shuffled"], "does nothing without --rarity_alone"),
        (["--rarity_weight", "-1"], "expected a weight above 0"),
    ):
        with pytest.raises(ValueError, match=words):
            test_script.main([*flags, *refused])


@pytest.mark.bit_equality
def test_a_run_with_rarity_stands_beside_the_run_and_leaves_it_as_it_was(cross_flags, evaluate, tmp_path):
    train_cross_attention.main([*cross_flags, "--cross_attn_heads", "4", "--save_path", str(tmp_path)])
    (before,) = evaluate(tmp_path)
    (fused,) = evaluate(tmp_path, "--rarity_weight", "5")
    left_over = ["--batch_size", "5", "--errors", "1"]  # of a class's 6 images
    (shuffled,) = evaluate(tmp_path, "--rarity_weight", "5", "--rarity_control", "shuffled", *left_over)
    (after,) = evaluate(tmp_path)
    assert before["mean"] == after["mean"]
    assert len({result["mean"]["pixel_auroc"] for result in (before, fused, shuffled)}) == 3
    names = list(json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))["MVTec"])
    file = load_run(tmp_path).checkpoint.name
    assert set(names) == {file, f"{file} with rarity 5", f"{file} with rarity 5, shuffled"}
