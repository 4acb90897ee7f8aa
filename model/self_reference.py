"""Self-reference: a patch is held against the other patches of its own image, in frozen CLIP.

What an image repeats is normal there; a patch without a like is not. This needs no class and no training, and says
something of classes never seen. Neighbours within one image as the reference: T. Aota, L. T. T. Tong and T. Okatani,
"Zero-Shot Versus Many-Shot: Unsupervised Texture Anomaly Detection", WACV 2023.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.frozen_cache import LookUp
from model.settings import REFERENCE_CONTROLS, SelfReferenceSettings
from model.transfer import send

TYPICAL = 0.25  # rarity of a patch where "neither way" starts to be learned
TYPICAL_PEAK = 0.5  # the same of an image's rarest patches
PEAK = 0.02  # share of an image's patches whose mean rarity speaks for the image


@torch.no_grad()
def rarity(patches: Tensor, share: float) -> Tensor:
    """How unlike the most similar other patches of its image a patch is.

    Args:
        patches: [B, L, C] with at least two patches.
        share: of the L - 1 other patches, those compared with (at least one).

    Returns:
        [B, L], 1 - mean cosine with them; in [0, 2].
    """
    unit = F.normalize(patches.float(), dim=-1)
    cosine = unit @ unit.transpose(1, 2)  # [B, L, L]
    itself = torch.eye(patches.shape[1], dtype=torch.bool, device=patches.device)
    cosine = cosine.masked_fill(
        itself, -torch.inf
    )  # a patch is no reference for itself; not in place: exports
    count = max(1, round(share * (patches.shape[1] - 1)))
    return 1 - cosine.topk(count, dim=-1).values.mean(dim=-1)


def peak(rarities: list[Tensor]) -> Tensor:
    """[B] of an image: mean of its rarest patches; rarities [B, L] per level, averaged over the levels first."""
    mean = torch.stack(rarities).mean(dim=0)
    return mean.topk(max(1, round(PEAK * mean.shape[1])), dim=-1).values.mean(dim=-1)


class SelfReference(nn.Module):
    """Rarity as one more coordinate of the embeddings: weight * (rarity - typical), for patches and for the image.

    Compared with anchors whose abnormal one has 1 in that coordinate and whose normal one has 0, it is added to the
    difference of the two cosines. `weight` and `typical` are learned, one of each per level and one for the image.

    Args:
        levels: number of levels.
        settings: starts of the weights (`self_reference` of the patches, `self_reference_head` of the image, 0 for a
            head score without reference), the share of other patches a patch is compared with, and the control:
            "none"; "constant": every patch counts as typical, no information; "shuffled": the rarities of an image in
            another order of its patches, the same for every image: how rare, but not where.

    Raises:
        ValueError: the share of neighbours or a weight is out of range, or there is no such control.
    """

    def __init__(self, levels: int, settings: SelfReferenceSettings):
        super().__init__()
        weight, head_weight = settings.self_reference, settings.self_reference_head
        neighbours = settings.self_reference_neighbours
        if not 0 < neighbours <= 1:
            raise ValueError(f"--self_reference_neighbours {neighbours}: expected a share in (0, 1]")
        if weight <= 0:
            raise ValueError(f"--self_reference {weight}: expected a weight above 0, or 0 for none")
        if head_weight < 0:
            raise ValueError(f"--self_reference_head {head_weight}: expected a weight above 0, or 0 for none")
        if settings.self_reference_control not in REFERENCE_CONTROLS:
            raise ValueError(
                f"--self_reference_control {settings.self_reference_control}: expected one of "
                f"{', '.join(REFERENCE_CONTROLS)}"
            )
        self.neighbours, self.control = neighbours, settings.self_reference_control
        self.weight = nn.Parameter(torch.full((levels,), float(weight)))
        self.typical = nn.Parameter(torch.full((levels,), TYPICAL))
        self.head_weight = self.typical_peak = None
        if head_weight:
            self.head_weight = nn.Parameter(torch.tensor(float(head_weight)))
            self.typical_peak = nn.Parameter(torch.tensor(TYPICAL_PEAK))

    @torch.no_grad()
    def rarities(
        self, clip: nn.Module, image: Tensor, levels: list[int], look_up: LookUp | None = None
    ) -> list[Tensor]:
        """Rarity [B, L] of every patch per level: a pass of the frozen backbone that no training step changes.

        Args:
            clip: the frozen backbone.
            image: [B, 3, H, W].
            levels: numbers of vision blocks.
            look_up: of model.frozen_cache, for images that were seen before; None to make the pass.
        """
        names = [f"rarity at level {level} among {self.neighbours}" for level in levels]

        def compute(images):
            tokens = clip.encode_image(images, levels)[1]  # [B, N, C] per level, CLS first
            rare = [rarity(clip.visual.ln_post(x[:, 1:]), self.neighbours) for x in tokens]
            return dict(zip(names, rare, strict=True))

        found = compute(image) if look_up is None else look_up(names, compute)
        return [self._controlled(found[name]) for name in names]

    def forward(self, rarities: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """(coordinates of the patches [B, L, 1] per level, of the image [B, 1]) from rarities [B, L] per level."""
        patches = [
            (weight * (rare - typical))[..., None]
            for weight, typical, rare in zip(self.weight, self.typical, rarities, strict=True)
        ]
        if self.head_weight is None:
            return patches, rarities[0].new_zeros(rarities[0].shape[0], 1)
        return patches, (self.head_weight * (peak(rarities) - self.typical_peak))[:, None]

    def with_coordinate(
        self, seg: list[Tensor], det: Tensor, anchors: Tensor, rarities: list[Tensor]
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """(seg, det, anchors), each with one more coordinate, E + 1: rarity's, in which the abnormal anchor has 1.

        Args:
            seg: patches [B, L, E] per level.  det: [B, E].
            anchors: [B, E, 2].
            rarities: [B, L] per level, of `rarities`.
        """
        rare, peak_of_image = self(rarities)
        ends = F.pad(anchors.new_ones(*anchors.shape[:-2], 1, 1), (1, 0))  # [B, 1, 2]: 0 normal, 1 abnormal
        return (
            [torch.cat(pair, dim=-1) for pair in zip(seg, rare, strict=True)],
            torch.cat([det, peak_of_image], dim=-1),
            torch.cat([anchors, ends], dim=-2),
        )

    def _controlled(self, rare):
        """Rarity [B, L] under the control."""
        if self.control == "constant":
            return torch.full_like(rare, TYPICAL)
        if self.control == "shuffled":
            order = torch.randperm(rare.shape[1], generator=torch.Generator().manual_seed(0))
            return rare[:, send(order, rare.device)]
        return rare
