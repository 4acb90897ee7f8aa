"""Few normal references: a patch is also held against the patches of k sound pictures of the same thing.

As self-reference does within one image (model/self_reference.py), with another bank: the distance to the most similar
patch of the references is one more coordinate in which the abnormal anchor has 1. Memory of normal patches: J. Jeong et
al., "WinCLIP: Zero-/Few-Shot Anomaly Classification and Segmentation", CVPR 2023, section 4.
"""

from collections.abc import Callable, Iterable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evaluation.scorer import AnomalyScorer
from forward_utils import SIMILARITY_SCALE, score_map
from model.clip import CLIP
from model.self_reference import peak

PATCHES_AT_ONCE = (
    4096  # of the bank, held against a batch: what the comparison takes does not grow with the bank
)


@torch.no_grad()
def distance_to(patches: Tensor, bank: Tensor) -> Tensor:
    """1 - cosine with the most similar patch of a bank: [B, L, C] and unit vectors [N, C] -> [B, L], in [0, 2]."""
    unit = F.normalize(patches.float(), dim=-1)
    nearest = [(unit @ part.T).amax(dim=-1) for part in bank.split(PATCHES_AT_ONCE)]
    return 1 - torch.stack(nearest).amax(dim=0)


class WithReferences(nn.Module):
    """An AnomalyScorer whose maps and head scores also know the distance to normal references.

    Args:
        scorer: the zero-shot scorer.
        clip: the frozen backbone, whose patches are compared; no training changes them.
        images_of: class name -> the images [3, S, S] of its references.
        weight: of the distance, beside a difference of two cosines; 0 is the zero-shot scorer.
    """

    def __init__(
        self, scorer: AnomalyScorer, clip: CLIP, images_of: Callable[[str], Iterable[Tensor]], weight: float
    ):
        super().__init__()
        self.scorer, self.clip, self.weight = scorer, clip, weight
        self.img_size, self.domain, self.levels = scorer.img_size, scorer.domain, scorer.levels
        self.sees_another_image = scorer.sees_another_image
        self._images_of = images_of
        self._bank = lru_cache(maxsize=1)(self._bank_of)  # classes come one after the other

    @torch.no_grad()
    def score(self, image: Tensor, class_name: str) -> tuple[Tensor, Tensor]:
        """Maps [B, S, S] and head scores [B] of images [B, 3, S, S], as AnomalyScorer.score."""
        maps, heads = self.scorer.score(image, class_name)
        extra_maps, extra_heads = self.distances(image, class_name)
        return maps + self.weight * extra_maps, heads + self.weight * extra_heads

    @torch.no_grad()
    def distances(self, image: Tensor, class_name: str) -> tuple[Tensor, Tensor]:
        """What a weight of 1 adds: to the maps [B, S, S], as cosines times 100, and to the head scores [B]."""
        bank = self._bank(class_name)
        levels = [distance_to(patches, own) for patches, own in zip(self._patches(image), bank, strict=True)]
        maps = [
            score_map(SIMILARITY_SCALE * F.pad(level[..., None], (1, 0)), self.img_size, self.domain) - 0.5
            for level in levels
        ]
        return torch.cat(maps, dim=1).sum(dim=1), peak(levels) / 2

    def _patches(self, image):
        """Frozen patches [B, L, C] of every level."""
        tokens = self.clip.encode_image(image, self.scorer.network.levels)[1]
        return [self.clip.visual.ln_post(x[:, 1:]) for x in tokens]

    @torch.no_grad()
    def _bank_of(self, class_name):
        """Unit vectors [k * L, C] of every level, one picture at a time through the backbone."""
        device = next(self.clip.parameters()).device
        pictures = [self._patches(image[None].to(device)) for image in self._images_of(class_name)]
        return [
            F.normalize(torch.cat(level, dim=1)[0].float(), dim=-1) for level in zip(*pictures, strict=True)
        ]
