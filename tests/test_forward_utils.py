"""Prompts, anchors, frozen patches and similarity maps: forward_utils.py."""

import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms.functional import gaussian_blur

from dataset.constants import CLASS_NAMES
from forward_utils import (
    anchors_of_batch,
    calculate_similarity_map,
    class_prompts,
    class_tokens,
    encode_anchors,
    fixed_anchors,
    frozen_image_features,
    frozen_patches,
    get_adapted_single_class_text_embedding,
    get_adapted_single_sentence_text_embedding,
    get_adapted_text_embedding,
    probability_map,
    score_map,
    upsample,
)
from model.adapter import patch_logits
from model.clip import surgery_copy
from model.tokenizer import tokenize


def test_a_class_has_six_normal_and_ten_abnormal_prompts():
    normal, abnormal = class_prompts("screw")
    assert normal == [
        "screw.",
        "a photo of screw.",
        "a screw.",
        "a photo of a screw.",
        "the screw.",
        "a photo of the screw.",
    ]
    assert len(abnormal) == len(set(abnormal)) == 10
    assert {
        "a damaged screw.",
        "a photo of a broken screw.",
        "a screw with flaw.",
        "a photo of a screw with defect.",
        "a screw with damage.",
    } <= set(abnormal)


def test_prompts_name_the_class_by_its_real_name_normal_ones_first():
    tokens, normal = class_tokens("MVTec", "bottle")
    assert tokens.shape == (16, 77) and normal == 6
    assert torch.equal(tokens[0], tokenize("dark bottle.")[0])
    assert torch.equal(tokens[6], tokenize("a damaged dark bottle.")[0])


@pytest.mark.parametrize(("dataset", "name"), [("MVTec", "candle"), ("Nowhere", "bottle")])
def test_an_unknown_class_or_dataset_is_named_with_the_known_ones(dataset, name):
    with pytest.raises(
        ValueError, match=f"class '{name}' of dataset '{dataset}' is unknown: expected one of"
    ):
        class_tokens(dataset, name)


def test_anchors_of_an_unknown_dataset_are_refused_with_the_known_ones(adapted):
    with pytest.raises(
        ValueError, match="dataset 'Nowhere' is unknown: expected one of .*MVTec.*--dataset_config"
    ):
        get_adapted_text_embedding(adapted, "Nowhere", "cpu")


def test_prompt_embeddings_have_unit_length(adapted):
    normal, abnormal = get_adapted_single_sentence_text_embedding(adapted, "MVTec", "screw", "cpu")
    assert normal.shape == (6, 16) and abnormal.shape == (10, 16)
    torch.testing.assert_close(torch.cat([normal, abnormal]).norm(dim=-1), torch.ones(16))


@torch.no_grad()
def test_anchors_are_the_normalised_mean_of_normalised_prompts(clip, adapted):
    for model in (adapted, clip):
        features = model.encode_text(class_tokens("MVTec", "screw")[0])
        unit = features / features.norm(dim=1, keepdim=True)
        want = torch.stack([unit[:6].mean(0), unit[6:].mean(0)], dim=1)
        want = want / want.norm(dim=0, keepdim=True)
        torch.testing.assert_close(
            get_adapted_single_class_text_embedding(model, "MVTec", "screw", "cpu"), want
        )


@pytest.mark.bit_equality
def test_all_classes_of_a_dataset_get_their_anchors(clip):
    anchors = get_adapted_text_embedding(clip, "VisA", "cpu")
    assert list(anchors) == CLASS_NAMES["VisA"]
    assert torch.equal(anchors["pcb3"], get_adapted_single_class_text_embedding(clip, "VisA", "pcb3", "cpu"))


@torch.no_grad()
def test_the_anchors_of_a_batch_are_those_of_its_classes_each_encoded_once(adapted, monkeypatch):
    names, seen, encode = ["screw", "bottle", "screw"], [], adapted.encode_prompts
    want = [get_adapted_single_class_text_embedding(adapted, "MVTec", name, "cpu") for name in names]
    monkeypatch.setattr(adapted, "encode_prompts", lambda *of: seen.append(len(of[0])) or encode(*of))
    got = anchors_of_batch(adapted, "MVTec", names)
    torch.testing.assert_close(got, torch.stack(want), rtol=1e-4, atol=1e-5)
    assert seen == [32]
    seen.clear()
    asked = encode_anchors(adapted, "MVTec", names)
    torch.testing.assert_close(asked, torch.stack(want), rtol=1e-4, atol=1e-5)
    assert seen == [48]  # as often as it was asked for


@pytest.mark.bit_equality
def test_anchors_after_stage_1_are_made_once_and_means_of_training_images_replace_them(
    adapted, clip, monkeypatch
):
    for model in (adapted, clip):
        every, mean = get_adapted_text_embedding(model, "MVTec", "cpu"), torch.ones(16, 2)
        anchors_of = fixed_anchors(model, "MVTec", {"screw": mean})
        with monkeypatch.context() as patched:
            patched.setattr(type(model), "encode_text", None)
            found = anchors_of({"class_name": ["bottle", "screw", "bottle"]})
        assert (
            torch.equal(found, torch.stack([every["bottle"], mean, every["bottle"]]))
            and not found.requires_grad
        )


@pytest.mark.parametrize("levels", [[4], [1, 2, 3, 4], [1], [2, 3]])
@pytest.mark.parametrize("across_batch", [True, False])
def test_frozen_patches_equal_those_of_two_separate_models(clip, new_clip, images, levels, across_batch):
    second = new_clip()
    second.visual.DAPM_replace(3, across_batch)
    pooled, tokens = clip.encode_image(images)[0], second.encode_image(images, levels)[1]
    cls = pooled / pooled.norm(dim=-1, keepdim=True)
    want = [
        F.normalize(second.visual.ln_post(x[:, 1:]) @ second.visual.proj, dim=-1) + cls[:, None]
        for x in tokens
    ]
    for surgery in (surgery_copy(clip, 3, across_batch), second):
        patches, got = frozen_patches(clip, surgery, images, levels)
        torch.testing.assert_close(got, cls, rtol=1e-5, atol=1e-5)
        assert list(patches) == levels
        for level, expected in zip(levels, want, strict=True):
            torch.testing.assert_close(patches[level], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.bit_equality
def test_a_batchs_frozen_features_are_those_of_its_images_at_each_wanted_level_once(clip, adapted, batch):
    surgery = surgery_copy(clip, 3)
    patches, cls = frozen_image_features(adapted, surgery, [4, 1, 4])(batch)
    wanted, same = frozen_patches(clip, surgery, batch["image"], [1, 4])
    assert list(patches) == [1, 4] and torch.equal(cls, same)
    assert all(torch.equal(patches[level], wanted[level]) for level in (1, 4))


def test_frozen_patches_run_the_shared_trunk_once_and_carry_no_gradient(clip, images):
    calls, first = [], clip.visual.transformer.resblocks[0]
    hook = first.register_forward_hook(lambda *_: calls.append(1))
    patches, _ = frozen_patches(clip, surgery_copy(clip, 3), images.clone().requires_grad_(), [4])
    hook.remove()
    assert len(calls) == 1 and not patches[4].requires_grad


@pytest.fixture
def features():
    """Unit patches [2, 16, 8] and an anchor pair [8, 2]."""
    generator = torch.Generator().manual_seed(2)
    patches = F.normalize(torch.randn(2, 16, 8, generator=generator), dim=-1)
    return patches, F.normalize(torch.randn(8, 2, generator=generator), dim=0)


def test_the_training_map_is_a_softmax_over_upsampled_cosines_times_100(features):
    patches, anchors = features
    got = calculate_similarity_map(patches, anchors, 12)
    logits = (100 * patches @ anchors).transpose(1, 2).reshape(2, 2, 4, 4)
    want = F.interpolate(logits, size=12, mode="bilinear", align_corners=True).softmax(dim=1)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got.sum(dim=1), torch.ones(2, 12, 12))


def test_every_image_may_have_its_own_anchors(features):
    patches, anchors = features
    own = torch.stack([anchors, anchors.flip(1)])
    got = calculate_similarity_map(patches, own, 12)
    torch.testing.assert_close(got[0], calculate_similarity_map(patches[:1], anchors, 12)[0])
    torch.testing.assert_close(got[1], calculate_similarity_map(patches[1:], anchors, 12)[0].flip(0))


@pytest.mark.parametrize(("domain", "kernel", "sigma"), [("Industrial", 7, 1.0), ("Medical", 9, 1.5)])
def test_the_test_map_is_the_blurred_difference_of_the_cosines(domain, kernel, sigma):
    generator = torch.Generator().manual_seed(2)
    patches = F.normalize(torch.randn(2, 36, 8, generator=generator), dim=-1)
    anchors = F.normalize(torch.randn(8, 2, generator=generator), dim=0)
    got = calculate_similarity_map(patches, anchors, 12, test=True, domain=domain)
    score = (100 * patches @ anchors[:, 1] + 1 - 100 * patches @ anchors[:, 0]) / 2
    blurred = gaussian_blur(score.reshape(2, 1, 6, 6), kernel, sigma)
    want = F.interpolate(blurred, size=12, mode="bilinear", align_corners=True)
    assert got.shape == (2, 1, 12, 12)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.bit_equality
def test_upstreams_map_is_the_probability_map_or_the_score_map_of_the_logits():
    patches, anchors = torch.randn(2, 36, 8), torch.randn(8, 2)
    logits = patch_logits(patches, anchors)
    assert torch.equal(calculate_similarity_map(patches, anchors, 12), probability_map(logits, 12))
    for domain in ("Industrial", "Medical"):
        tested = calculate_similarity_map(patches, anchors, 12, test=True, domain=domain)
        assert torch.equal(tested, score_map(logits, 12, domain))


@pytest.mark.bit_equality
def test_upstreams_default_domain_is_medical_and_an_unknown_one_is_refused():
    patches, anchors = torch.randn(1, 36, 8), torch.randn(8, 2)
    medical = calculate_similarity_map(patches, anchors, 12, test=True, domain="Medical")
    assert torch.equal(calculate_similarity_map(patches, anchors, 12, test=True), medical)
    with pytest.raises(ValueError, match="'Kitchen': expected one of"):
        calculate_similarity_map(patches, anchors, 12, test=True, domain="Kitchen")


def test_an_image_of_too_few_patches_to_blur_asks_for_a_larger_one():
    with pytest.raises(ValueError, match="4 x 4 patches are too few for the Medical blur of 9.*--img_size"):
        calculate_similarity_map(torch.randn(1, 16, 8), torch.randn(8, 2), 12, test=True, domain="Medical")


@pytest.mark.parametrize(("side", "size"), [(4, 32), (5, 7), (7, 7), (9, 4), (1, 6)])
def test_upsampling_and_its_gradient_equal_torchs_interpolation(side, size):
    generator = torch.Generator().manual_seed(side)
    maps = torch.randn(2, 3, side, side, generator=generator)
    weight = torch.randn(2, 3, size, size, generator=generator)
    results = []
    for function in (upsample, lambda x, s: F.interpolate(x, size=s, mode="bilinear", align_corners=True)):
        x = maps.clone().requires_grad_()
        y = function(x, size)
        (y * weight).sum().backward()
        results.append((y.detach(), x.grad))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-6, atol=2e-6)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-5, atol=1e-5)
