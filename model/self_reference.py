"""Self-reference: a patch is held against the other patches of its own image, in frozen CLIP.

What an image repeats is normal there; a patch without a like is not. This needs no class and no training, and says
something of classes never seen. Neighbours within one image as the reference: T. Aota, L. T. T. Tong and T. Okatani,
"Zero-Shot Versus Many-Shot: Unsupervised Texture Anomaly Detection", WACV 2023.
"""

import torch
import torch.nn.functional as F
from torch import nn

TYPICAL, TYPICAL_PEAK = 0.25, 0.5  # rarity of a patch, of an image's rarest: where "neither way" starts to be learned
PEAK = 0.02  # share of an image's patches whose mean rarity speaks for the image
CONTROLS = ("none", "constant", "shuffled")


@torch.no_grad()
def rarity(patches, share):
    """How unlike the most similar other patches of its image a patch is.

    Args:
        patches: [B, L, C] with at least two patches.
        share: of the L - 1 other patches, those compared with (at least one).

    Returns:
        [B, L], 1 - mean cosine with them; in [0, 2].
    """
    unit = F.normalize(patches.float(), dim=-1)
    cosine = unit @ unit.transpose(1, 2)
    cosine.diagonal(dim1=1, dim2=2).fill_(-torch.inf)  # a patch is no reference for itself
    count = max(1, round(share * (patches.shape[1] - 1)))
    return 1 - cosine.topk(count, dim=-1).values.mean(dim=-1)


def peak(rarities):
    """[B] of an image: mean of its rarest patches; rarities [B, L] per level, averaged over the levels first."""
    mean = torch.stack(rarities).mean(dim=0)
    return mean.topk(max(1, round(PEAK * mean.shape[1])), dim=-1).values.mean(dim=-1)


class SelfReference(nn.Module):
    """Rarity as one more coordinate of the embeddings: weight * (rarity - typical), for patches and for the image.

    Compared with anchors whose abnormal one has 1 in that coordinate and whose normal one has 0, it is added to the
    difference of the two cosines. `weight` and `typical` are learned, one of each per level and one for the image.

    Args:
        levels: number of levels.
        weight: start of the patches' weights, above 0.
        head_weight: start of the image's weight; 0 leaves the head score without reference.
        neighbours: share of an image's other patches that a patch is compared with, in (0, 1].
        control: "none"; "constant": every patch counts as typical, no information; "shuffled": the rarities of an
            image in another order of its patches, the same for every image: how rare, but not where.

    Raises:
        ValueError: `neighbours` or a weight out of range.
    """

    def __init__(self, levels, weight=0.3, head_weight=1.0, neighbours=0.08, control="none"):
        super().__init__()
        if not 0 < neighbours <= 1:
            raise ValueError(f"--self_reference_neighbours {neighbours}: expected a share in (0, 1]")
        if weight <= 0:
            raise ValueError(f"--self_reference {weight}: expected a weight above 0, or 0 for none")
        if head_weight < 0:
            raise ValueError(f"--self_reference_head {head_weight}: expected a weight above 0, or 0 for none")
        self.neighbours, self.control = neighbours, control
        self.weight = nn.Parameter(torch.full((levels,), float(weight)))
        self.typical = nn.Parameter(torch.full((levels,), TYPICAL))
        self.head_weight = self.typical_peak = None
        if head_weight:
            self.head_weight = nn.Parameter(torch.tensor(float(head_weight)))
            self.typical_peak = nn.Parameter(torch.tensor(TYPICAL_PEAK))

    def forward(self, clip, image, levels):
        """(coordinates of the patches [B, L, 1] per level, of the image [B, 1]).

        Args:
            clip: the frozen backbone.
            image: [B, 3, H, W].
            levels: numbers of vision blocks.
        """
        with torch.no_grad():
            tokens = clip.encode_image(image, levels)[1]
            rarities = [self._controlled(rarity(clip.visual.ln_post(x[:, 1:]), self.neighbours)) for x in tokens]
        patches = [
            (weight * (rare - typical))[..., None]
            for weight, typical, rare in zip(self.weight, self.typical, rarities, strict=True)
        ]
        if self.head_weight is None:
            return patches, rarities[0].new_zeros(len(image), 1)
        return patches, (self.head_weight * (peak(rarities) - self.typical_peak))[:, None]

    def _controlled(self, rare):
        if self.control == "constant":
            return torch.full_like(rare, TYPICAL)
        if self.control == "shuffled":
            order = torch.randperm(rare.shape[1], generator=torch.Generator().manual_seed(0))
            return rare[:, order.to(rare.device)]
        return rare
