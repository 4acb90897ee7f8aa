"""Rarity without training: self-reference's formula on frozen CLIP, alone or on top of a trained run.

No text and no weights of its own: what it finds, training need not be credited with. Alone it is a reference row as
local contrast is; on top of a run it is the bar for whatever teaches a model to look at its own image.
"""

from typing import Any

import torch
from torch import Tensor, nn

from dataset import DOMAINS
from evaluation.scorer import AnomalyScorer
from model.adapter import SIMILARITY_SCALE
from model.clip import CLIP
from model.context_controls import another_image
from model.frozen_cache import FrozenCache, LookUp
from model.self_reference import SelfReference
from model.settings import SelfReferenceSettings
from model.transfer import send

RARITY_ALONE = "rarity_alone"  # what its evaluation is called
RARITY_CONTROLS = ("none", "shuffled")


class WithRarity(nn.Module):
    """A network whose cosine differences get weight * (rarity - typical) added: patches per level, and the head.

    Neighbours and "typical" are self-reference's starts; the weight is one for patches and head. The rarity of an image
    is no other image's business, hence the control "shuffled": every image gets the rarities of another of its batch
    (evaluation.predictions leaves none alone).

    Args:
        clip: the frozen backbone.
        levels: vision blocks whose patches count, the network's own.
        weight: of the rarity, above 0.
        network: has `compare`, as AdaptedCLIP; None for rarity alone.
        control: "none" or "shuffled".

    Raises:
        ValueError: the weight is not above 0, or there is no such control.
    """

    def __init__(
        self,
        clip: CLIP,
        levels: list[int],
        weight: float = 1.0,
        network: nn.Module | None = None,
        control: str = "none",
    ):
        super().__init__()
        if not weight > 0:
            raise ValueError(f"--rarity_weight {weight}: expected a weight above 0")
        if control not in RARITY_CONTROLS:
            raise ValueError(f"--rarity_control {control}: expected one of {', '.join(RARITY_CONTROLS)}")
        self.clip, self.levels, self.network, self.control = clip, list(levels), network, control
        settings = SelfReferenceSettings(self_reference=weight, self_reference_head=weight)
        self.reference = SelfReference(len(self.levels), settings)  # untrained: the formula

    @property
    def sees_another_image(self) -> bool:
        """Whether an image's scores depend on another image of its batch, by this control or the network's own."""
        return self.control == "shuffled" or getattr(self.network, "sees_another_image", False)

    def compare(
        self,
        image: Tensor,
        anchors: Tensor,
        *contexts: object,
        rarities: list[Tensor] | None = None,
        frozen: dict[str, Any] | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """(patch logits [B, L, 2] per level, head cosines [B, 2]), as AdaptedCLIP.compare.

        Args:
            image: [B, 3, H, W].
            anchors: [B, E, 2]; not looked at by rarity alone.
            contexts: handed on to the network.
            rarities, frozen: of `frozen_arguments` for these images, if they are at hand.

        Raises:
            ValueError: shuffled rarities of a batch of one image.
        """
        rarities = self._at_levels(self._of_blocks(image) if rarities is None else rarities)
        patches, head = self.reference(rarities)  # [B, L, 1] per level, [B, 1]
        logits = [
            SIMILARITY_SCALE * nn.functional.pad(one, (1, 0)) for one in patches
        ]  # normal 0, abnormal rarity
        head = nn.functional.pad(head, (1, 0))
        if self.network is None:
            return logits, head
        own_logits, own_head = self.network.compare(image, anchors, *contexts, **(frozen or {}))
        return [own + one for own, one in zip(own_logits, logits, strict=True)], own_head + head

    def frozen_arguments(self, image: Tensor, look_up: LookUp) -> dict[str, Any]:
        """What `compare` takes that no training changes, as AdaptedCLIP.frozen_arguments; the network's own in it."""
        frozen = {} if self.network is None else self.network.frozen_arguments(image, look_up)
        return {"rarities": self._of_blocks(image, look_up), "frozen": frozen}

    @property
    def _blocks(self):
        return sorted(set(self.levels))  # a network that averages two sides names each of its levels twice

    @torch.no_grad()
    def _of_blocks(self, image, look_up=None):
        return self.reference.rarities(self.clip, image, self._blocks, look_up)

    def _at_levels(self, of_blocks):
        rarity_after = dict(zip(self._blocks, of_blocks, strict=True))
        rarities = [rarity_after[level] for level in self.levels]
        if self.control == "none":
            return rarities
        other = send(another_image(len(rarities[0])), rarities[0].device)
        return [rare[other] for rare in rarities]


def rarity_alone_scorer(
    clip: CLIP, dataset_name: str, img_size: int, control: str = "none", cache: FrozenCache | None = None
) -> AnomalyScorer:
    """The scorer of rarity alone at the backbone's default levels; it asks for no text. `cache` as AnomalyScorer's."""
    return AnomalyScorer(
        WithRarity(clip, clip.default_levels, control=control),
        lambda batch: batch["image"].new_zeros(len(batch["image"]), 1, 2),  # anchors nobody looks at
        {},
        img_size,
        DOMAINS[dataset_name],
        cache,
    )


def scorer_with_rarity(
    scorer: AnomalyScorer, clip: CLIP, weight: float, control: str = "none"
) -> AnomalyScorer:
    """The scorer of a run whose scores get the rarity of its frozen backbone's patches, at the run's levels, added."""
    return AnomalyScorer(
        WithRarity(clip, scorer.network.levels, weight, scorer.network, control),
        scorer.anchors_of,
        scorer.contexts,
        scorer.img_size,
        scorer.domain,
        scorer.cache,
    )


def named_with_rarity(name: str, weight: float, control: str = "none") -> str:
    """What an evaluation of `name` with rarity is called in metrics.json."""
    with_weight = f"{name} with rarity {weight:g}" if weight else name
    return with_weight if control == "none" else f"{with_weight}, {control}"


def complaint_about(weight: float, control: str, alone: bool) -> str | None:
    """Why the flags of rarity cannot go together, or None."""
    if alone and weight:
        return f"--rarity_weight {weight:g}: rarity alone has no run to be weighed against; leave one of the two away"
    if weight < 0:
        return f"--rarity_weight {weight:g}: expected a weight above 0, or 0 for none"
    if control != "none" and not (alone or weight):
        return f"--rarity_control {control}: does nothing without --rarity_alone or --rarity_weight"
    return None
