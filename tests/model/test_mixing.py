"""Mixtures of frozen and trained features, and the maps of both sides: model/mixing.py."""

import pytest
import torch
import torch.nn.functional as F
from cross_attention_world import MODEL

from evaluation.scorer import AnomalyScorer
from files.command import Refusal
from forward_utils import fixed_anchors, frozen_image_features, patch_logits
from forward_utils_cross_attention import (
    text_context_dictionary,
    text_context_groups,
    trained_image_features,
)
from model.adapter_cross_attention import AdaptedCLIPWithCrossAttention
from model.clip import create_model, surgery_copy
from model.frozen_patches import frozen_patches
from model.mixing import BothSides, mixed_anchors, mixed_features, mixture
from scripts.export.graph import image_side

NAMES = ["bottle", "screw", "bottle", "screw"]


def test_a_mixture_is_the_normalised_sum_by_shares_and_at_its_ends_the_very_tensor():
    frozen, trained = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    torch.testing.assert_close(mixture(frozen, trained, 0.5), torch.tensor([[0.5, 0.5]]) * 2**0.5)
    torch.testing.assert_close(mixture(frozen, trained, 0.25), torch.tensor([[3.0, 1.0]]) / 10**0.5)
    torch.testing.assert_close(mixture(frozen.T, trained.T, 0.25, dim=0).T, mixture(frozen, trained, 0.25))
    assert mixture(frozen, trained, 0) is frozen and mixture(frozen, trained, 1.0) is trained


def test_patches_are_mixed_before_cls_is_added_and_only_at_the_frozen_ones_levels():
    cls = torch.tensor([[0.6, 0.8]])
    frozen, trained = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]])
    features = mixed_features(
        lambda batch: ({3: frozen + cls}, cls), lambda batch: ({3: trained + cls, 6: trained}, cls), 0.25
    )
    patches, found = features({})
    assert found is cls and list(patches) == [3]
    torch.testing.assert_close(patches[3], torch.tensor([[[3.0, 1.0]]]) / 10**0.5 + cls)


def test_anchors_are_mixed_each_with_its_own():
    frozen = F.normalize(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), dim=1)  # columns: normal, abnormal
    trained = F.normalize(torch.tensor([[[0.0, 1.0], [1.0, 1.0]]]), dim=1)
    pairs = mixed_anchors(lambda batch: frozen, lambda batch: trained, 0.5)({})
    for column in (0, 1):
        wanted = F.normalize(frozen[0, :, column] + trained[0, :, column], dim=0)
        torch.testing.assert_close(pairs[0, :, column], wanted)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_at_its_ends_what_is_not_needed_is_never_made(share):
    needed = object()
    ends = {share: needed, 1.0 - share: None}
    assert mixed_features(ends[0.0], ends[1.0], share) is needed
    assert mixed_anchors(ends[0.0], ends[1.0], share) is needed


@pytest.fixture
def model(cross_weights):
    torch.manual_seed(5)
    clip = create_model(MODEL, 32, "openai", clip_weights=cross_weights)
    return AdaptedCLIPWithCrossAttention(
        clip, text_adapt_until=2, image_adapt_until=2, relu=False, cross_attn_heads=4
    ).eval()


@pytest.mark.parametrize("share", [0, 0.4])
@torch.no_grad()
def test_each_side_is_compared_with_what_it_was_trained_against(model, batch, share):
    surgery = surgery_copy(model.clipmodel, 3, across_batch=False)
    trained = fixed_anchors(model, "MVTec")(batch)
    mixed = mixed_anchors(fixed_anchors(model.clipmodel, "MVTec"), lambda batch: trained, 0.4)(batch)
    contexts = text_context_dictionary(model, "MVTec")
    groups = text_context_groups(contexts, NAMES)
    both = BothSides(model, surgery, share)
    logits, head = both.compare(batch["image"], torch.cat([mixed, trained], dim=-1), groups)
    of_image, of_head = model.compare(batch["image"], mixed, groups)
    assert len(logits) == len(both.levels) == 2 * len(model.levels)
    frozen = frozen_image_features(model, surgery, model.levels)
    patches, _ = mixed_features(frozen, trained_image_features(model, contexts), share)(batch)
    of_text = [patch_logits(patches[level], trained) for level in model.levels]
    torch.testing.assert_close(logits, [*of_image, *of_text], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(head, of_head)


@torch.no_grad()
def test_a_score_does_not_depend_on_the_batchs_other_images(model, batch):
    surgery, image = surgery_copy(model.clipmodel, 2), batch["image"]
    assert not torch.allclose(  # AA-CLIP's surgery attends across the batch
        frozen_patches(model.clipmodel, surgery, image, [4])[0][4][:1],
        frozen_patches(model.clipmodel, surgery, image[:1], [4])[0][4],
        atol=1e-3,
    )
    both = BothSides(model, surgery, 0.4)
    seg = model(image)[0]
    for together, alone in zip(
        both.patches(image, seg), both.patches(image[:1], [one[:1] for one in seg]), strict=True
    ):
        torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-5)


def test_both_sides_maps_are_not_exported(model):
    both = BothSides(model, surgery_copy(model.clipmodel, 3), 0.4)
    with pytest.raises(Refusal, match="export it with --feedback_maps trained"):
        image_side(AnomalyScorer(both, None, {}, 32, "Industrial"))
