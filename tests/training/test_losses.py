"""Losses on two and four pixels, the paper's formulas worked out: forward_utils.py, training/stages.py."""

from math import log

import pytest
import torch

import forward_utils
from forward_utils import BinaryDiceLoss, FocalLoss, calculate_seg_loss, dice_loss, focal_loss
from training.stages import orthogonality_loss

PROB = torch.tensor([[[[0.8, 0.4]], [[0.2, 0.6]]]])  # [1, 2, 1, 2]: (normal, abnormal) of two pixels
MASK = torch.tensor([[[[0.0, 1.0]]]])


def test_focal_loss_is_the_mean_of_minus_one_minus_pt_squared_log_pt():
    pixels = []
    for normal, abnormal, target in ((0.8, 0.2, 0), (0.4, 0.6, 1)):
        low, high = 1e-5, 1 - 1e-5
        pt = normal * (low if target else high) + abnormal * (high if target else low) + 1e-5
        pixels.append(-((1 - pt) ** 2) * log(pt))
    assert float(focal_loss(PROB, MASK)) == pytest.approx(sum(pixels) / 2, rel=1e-6)
    assert float(focal_loss(PROB, MASK)) == pytest.approx((0.04 * -log(0.8) + 0.16 * -log(0.6)) / 2, rel=1e-3)


def test_focal_loss_of_a_perfect_prediction_is_finite_and_almost_zero_and_of_the_opposite_finite():
    perfect = torch.cat([1 - MASK, MASK], dim=1)
    assert abs(float(focal_loss(perfect, MASK))) < 1e-9
    assert float(focal_loss(1 - perfect, MASK)) == pytest.approx(-log(2e-5), rel=1e-3)


@pytest.mark.bit_equality
def test_focal_loss_takes_masks_without_a_channel():
    assert torch.equal(focal_loss(PROB, MASK), focal_loss(PROB, MASK[:, 0]))


def by_hand(prob, target, weights, gamma):
    """Per pixel -alpha_k (1 - p_k)^gamma log p_k of probabilities [K, n] and class numbers [n]."""
    return [-weights[k] * (1 - prob[k][i]) ** gamma * log(prob[k][i]) for i, k in enumerate(target)]


@pytest.mark.parametrize(
    ("alpha", "balance_index", "weights"),
    [
        (None, 0, [1, 1, 1]),
        (0.25, 0, [0.25, 0.75, 0.75]),
        (0.25, 2, [0.75, 0.75, 0.25]),
        ([1, 1, 2], 0, [0.25, 0.25, 0.5]),
        (torch.tensor([3.0, 1.0, 0.0]), 0, [0.75, 0.25, 0.0]),
    ],
)
@pytest.mark.parametrize("gamma", [0, 2, 0.5])
def test_focal_loss_of_three_classes_weights_the_true_one(alpha, balance_index, weights, gamma):
    prob, target = [[0.7, 0.2, 0.1, 0.3], [0.2, 0.5, 0.1, 0.3], [0.1, 0.3, 0.8, 0.4]], [0, 1, 2, 0]
    pixels = by_hand(prob, target, weights, gamma)
    prob, target = torch.tensor(prob).view(1, 3, 2, 2), torch.tensor(target).view(1, 2, 2)
    options = {"alpha": alpha, "gamma": gamma, "balance_index": balance_index, "smooth": None}
    mean, total = FocalLoss(**options), FocalLoss(**options, size_average=False)
    assert float(mean(prob, target)) == pytest.approx(sum(pixels) / 4, rel=1e-5)
    assert float(total(prob, target[:, None])) == pytest.approx(sum(pixels), rel=1e-5)


@pytest.mark.bit_equality
def test_focal_loss_makes_probabilities_of_logits_by_its_first_argument():
    logits = torch.randn(2, 2, 5, 5, generator=torch.Generator().manual_seed(1))
    mask = (logits[:, :1] > 0.3).float()
    found = FocalLoss(lambda x: x.softmax(dim=1))(logits, mask)
    assert torch.equal(found, focal_loss(logits.softmax(dim=1), mask))
    assert torch.equal(found, FocalLoss(lambda x: x.softmax(dim=1))(logits, mask.byte()))


def test_focal_loss_smooths_the_target_over_the_other_classes():
    prob = torch.tensor([0.5, 0.3, 0.2]).view(1, 3, 1)
    pt = 0.9 * 0.5 + 0.05 * 0.3 + 0.05 * 0.2 + 0.1
    found = FocalLoss(smooth=0.1)(prob, torch.zeros(1, 1))
    assert float(found) == pytest.approx(-((1 - pt) ** 2) * log(pt), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"smooth": 1.5}, ValueError, "smooth 1.5: expected a number from 0 to 1"),
        ({"gamma": -1}, ValueError, "gamma -1: expected 0"),
        ({"apply_nonlin": "softmax"}, TypeError, "apply_nonlin is 'softmax': expected a function"),
        ({"alpha": "half"}, TypeError, "alpha is 'half': expected a number"),
        ({"alpha": 25}, ValueError, "alpha 25: expected a weight from 0 to 1"),
        ({"alpha": [1, -1]}, ValueError, "expected weights of the classes, none below 0"),
        ({"alpha": []}, ValueError, "expected weights of the classes"),
    ],
)
def test_focal_loss_refuses_arguments_out_of_range(options, error, message):
    with pytest.raises(error, match=message):
        FocalLoss(**options)


def test_focal_loss_refuses_weights_that_do_not_fit_the_prediction():
    with pytest.raises(ValueError, match="alpha has 3 weights, the prediction 2 classes"):
        FocalLoss(alpha=[1, 1, 1])(PROB, MASK)
    with pytest.raises(ValueError, match="balance_index 2: the prediction has 2 classes"):
        FocalLoss(alpha=0.5, balance_index=2)(PROB, MASK)


def test_dice_loss_is_averaged_over_the_images_of_a_batch():
    prob, mask = torch.tensor([[[0.5, 0.25]], [[1.0, 0.0]]]), torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]]])
    first = (2 * 0.5 + 1) / (0.75 + 1 + 1)
    assert float(dice_loss(prob, mask)) == pytest.approx(1 - (first + 1) / 2)
    assert float(dice_loss(prob, mask[:, None])) == pytest.approx(1 - (first + 1) / 2)


def test_dice_loss_of_two_empty_masks_is_zero():
    assert float(dice_loss(torch.zeros(2, 4, 4), torch.zeros(2, 1, 4, 4))) == 0


def test_the_segmentation_loss_adds_focal_and_both_dice_terms():
    normal = 1 - (2 * 0.8 + 1) / (1.2 + 1 + 1)
    abnormal = 1 - (2 * 0.6 + 1) / (0.8 + 1 + 1)
    want = float(focal_loss(PROB, MASK)) + normal + abnormal
    assert float(calculate_seg_loss(PROB, MASK)) == pytest.approx(want, rel=1e-6)


def test_orthogonality_is_the_squared_mean_of_the_anchor_products():
    anchors = torch.tensor([[[1.0, 0.6], [0.0, 0.8]], [[0.0, 0.2], [1.0, 0.0]]])  # products 0.6 and 0.0
    assert float(orthogonality_loss(anchors)) == pytest.approx(0.3**2)
    opposed = torch.tensor([[[1.0, 0.6], [0.0, 0.8]], [[1.0, -0.6], [0.0, 0.8]]])
    assert float(orthogonality_loss(opposed)) == pytest.approx(0.0)


def test_upstreams_names_are_importable_from_forward_utils():
    assert (
        type(focal_loss) is FocalLoss and type(dice_loss) is BinaryDiceLoss and callable(calculate_seg_loss)
    )
    for name in (
        "FocalLoss",
        "BinaryDiceLoss",
        "focal_loss",
        "dice_loss",
        "calculate_seg_loss",
        "calculate_similarity_map",
        "get_adapted_text_embedding",
        "get_adapted_single_class_text_embedding",
        "get_adapted_single_sentence_text_embedding",
        "metrics_eval",
        "visualize",
    ):
        assert hasattr(forward_utils, name) and name in forward_utils.__all__
