"""What a side of a feedback run learns against: a mixture of the other side's frozen and trained features.

`--feedback_mix` is the trained features' share. At 0 each side learns against frozen features alone, as in AdaptCLIP
(AAAI 2026), which averages the maps of both sides at test; at 1 it learns against trained ones, and the text side
pursues an image side that moves.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.adapter import patch_logits
from model.adapter_cross_attention import AdaptedCLIPWithCrossAttention
from model.cross_attention import Contexts
from model.frozen_cache import LookUp
from model.frozen_patches import frozen_patches

# batch -> ({level: patches [B, L, E] with CLS added}, cls [B, E])
ImageFeatures = Callable[[dict], tuple[dict[int, Tensor], Tensor]]


def mixture(frozen: Tensor, trained: Tensor, share: float, dim: int = -1) -> Tensor:
    """normalize((1 - share) * frozen + share * trained) of vectors of unit length that lie along `dim`.

    At a share of 0 or 1 it is that very tensor.
    """
    if share in (0, 1):
        return trained if share else frozen
    return F.normalize((1 - share) * frozen + share * trained, dim=dim)


def mixed_features(frozen: ImageFeatures, trained: ImageFeatures, share: float) -> ImageFeatures:
    """Image features for stage 1: mixture(frozen patch, trained patch) + cls, at the levels of the frozen ones.

    Args:
        frozen, trained: of forward_utils.frozen_image_features and trained_image_features, patches with CLS added.
        share: of the trained ones; at 0 and 1 the other function is never called.
    """
    if share in (0, 1):
        return trained if share else frozen

    def features(batch):
        patches, cls = frozen(batch)
        own, plain = trained(batch)[0], cls[:, None]
        mixed = {
            level: mixture(one - plain, own[level] - plain, share) + plain for level, one in patches.items()
        }
        return mixed, cls

    return features


def mixed_anchors(
    frozen: Callable[[dict], Tensor], trained: Callable[[dict], Tensor], share: float
) -> Callable[[dict], Tensor]:
    """Function batch -> anchors [B, E, 2] for stage 2: the mixture of each frozen anchor with its trained one."""
    if share in (0, 1):
        return trained if share else frozen
    return lambda batch: mixture(frozen(batch), trained(batch), share, dim=-2)


class BothSides(nn.Module):
    """Maps of both sides, each compared with what it was trained against.

    The image side's: trained patches and mixed anchors. The text side's: mixed patches and trained anchors. A scorer's
    map is the sum over `levels`, so their average up to its scale. The head is the image side's.

    Args:
        model: the trained model.
        surgery: its surgery model, for the frozen patches.
        share: of the trained patches in those the text side learned against: 0 after loop 1, `--feedback_mix` later.
    """

    def __init__(self, model: AdaptedCLIPWithCrossAttention, surgery: nn.Module, share: float):
        super().__init__()
        self.model, self.surgery, self.share = model, surgery, share
        self.levels = [*model.levels, *model.levels]
        self.sees_another_image = model.sees_another_image

    def compare(
        self, image: Tensor, anchors: Tensor, text_contexts: Contexts = ()
    ) -> tuple[list[Tensor], Tensor]:
        """(patch logits [B, L, 2] per level, the image side's first; head cosines [B, 2]), as AdaptedCLIP.compare.

        Args:
            image: [B, 3, H, W].
            anchors: [B, E, 4]: the mixed pair, the trained pair.
            text_contexts: as in AdaptedCLIPWithCrossAttention.forward.
        """
        mixed, trained = anchors.split(2, dim=-1)
        seg, det = self.model(image, text_contexts)
        logits, head = self.model.compare_features(image, seg, det, mixed)
        return logits + [patch_logits(patches, trained) for patches in self.patches(image, seg)], head

    def frozen_arguments(self, image: Tensor, look_up: LookUp) -> dict[str, Any]:
        """Nothing: the frozen patches are of one image at a time and are made anew."""
        return {}

    def patches(self, image: Tensor, seg: list[Tensor]) -> list[Tensor]:
        """What the text side learned against, CLS added: [B, L, E] per level, of trained patches seg [B, L, E].

        Frozen ones are made of one image at a time: under AA-CLIP's surgery attention the batch's other images would
        leak into a score.
        """
        levels, found = self.model.levels, []
        for one in image.split(1):
            patches, cls = frozen_patches(self.model.clipmodel, self.surgery, one, levels)
            found.append(([patches[level] for level in levels], cls))
        cls = torch.cat([cls for _, cls in found])[:, None]
        frozen = [torch.cat(of_level) for of_level in zip(*(own for own, _ in found), strict=True)]
        return [
            mixture(one - cls, own, self.share) + cls if self.share else one
            for one, own in zip(frozen, seg, strict=True)
        ]
