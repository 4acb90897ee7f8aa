"""Segmentation losses of AA-CLIP: focal (arXiv 1708.02002) and soft Dice (arXiv 1606.04797)."""

import torch
from torch import nn

SMOOTH = 1e-5  # keeps the one-hot target and the logarithm away from 0 and 1


class FocalLoss(nn.Module):
    """Mean of -(1 - pt)^2 log pt with pt the probability of the true class."""

    def forward(self, prob, mask):
        """prob [B, 2, H, W] in [0, 1], mask [B, 1, H, W] or [B, H, W] of 0/1 -> scalar."""
        mask = mask.reshape(prob.shape[0], *prob.shape[2:])
        target = mask.clamp(SMOOTH, 1 - SMOOTH)
        normal = (1 - mask).clamp(SMOOTH, 1 - SMOOTH)
        pt = normal * prob[:, 0] + target * prob[:, 1] + SMOOTH
        return (-((1 - pt) ** 2) * torch.log(pt)).mean()


class BinaryDiceLoss(nn.Module):
    """1 - mean over the batch of (2 sum p m + 1) / (sum p + sum m + 1)."""

    def forward(self, prob, mask):
        """prob [B, H, W] in [0, 1], mask of as many elements -> scalar."""
        prob, mask = prob.flatten(1), mask.reshape(prob.shape[0], -1)
        overlap = (prob * mask).sum(1)
        return 1 - ((2 * overlap + 1) / (prob.sum(1) + mask.sum(1) + 1)).mean()


focal_loss = FocalLoss()
dice_loss = BinaryDiceLoss()


def calculate_seg_loss(prob, mask):
    """focal(p, m) + dice(p_normal, 1 - m) + dice(p_abnormal, m) (AA-CLIP, Eq. 3).

    Args:
        prob: [B, 2, H, W], probabilities of normal and abnormal.
        mask: [B, 1, H, W], 1 where abnormal.
    """
    return focal_loss(prob, mask) + dice_loss(prob[:, 0], 1 - mask) + dice_loss(prob[:, 1], mask)


def orthogonality_loss(anchors):
    """(mean_B sum_E normal * abnormal)^2 of anchors [B, E, 2]: keeps the two anchors of a class apart."""
    return (anchors[..., 0] * anchors[..., 1]).sum(1).mean() ** 2
