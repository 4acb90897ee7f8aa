"""What is exported: the image side of a scorer, with a class's anchors baked in or as inputs."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from evaluation.scorer import AnomalyScorer
from files.command import Refusal
from model.mixing import BothSides

TEXT_PARTS = (  # of the frozen backbone; anchors are made of them before the export
    "transformer",
    "token_embedding",
    "positional_embedding",
    "ln_final",
    "text_projection",
    "logit_scale",
    "attn_mask",
)


class Given(NamedTuple):
    """Tensors that describe a class: anchors [E, 2], and what images attend to [S, W] or None."""

    anchors: Tensor
    context: Tensor | None = None


class ImageToAnomaly(nn.Module):
    """Images -> (maps [B, S, S], scores [B]), float32, each score of its image alone.

    Args:
        scorer: of a run or of raw CLIP.
        given: the class that is baked in; None for anchors (and context) as inputs.
        half: compute the network in float16; maps and scores are float32 either way.
    """

    def __init__(self, scorer: AnomalyScorer, given: Given | None, half: bool = False):
        super().__init__()
        self.scorer = image_side(scorer)
        self.dtype = torch.float16 if half else torch.float32
        if half:
            self.scorer = copy.deepcopy(self.scorer).half()
        if given is not None:
            self.register_buffer("anchors", given.anchors.detach().clone())
            context = None if given.context is None else given.context.detach().clone()
            self.register_buffer("context", context)
        self.is_baked = given is not None
        self.requires_grad_(False)

    def forward(
        self, image: Tensor, anchors: Tensor | None = None, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            image: [B, 3, S, S], normalised with CLIP's mean and deviation.
            anchors: [E, 2] of one class for all images; None where a class is baked in.
            context: [S, W] of a run with cross-attention.
        """
        if self.is_baked:
            anchors, context = self.anchors, self.context
        maps, head = self.scorer(
            *(None if one is None else one.to(self.dtype) for one in (image, anchors, context))
        )
        peaks = maps.amax(dim=(1, 2)) / (100.0 * self.scorer.levels)
        return maps, 0.5 * peaks + 0.5 * head  # metrics.unnormalised_image_score


def image_side(scorer: AnomalyScorer) -> AnomalyScorer:
    """A scorer that shares its weights, without what only texts go through.

    Raises:
        Refusal: it averages the maps of two sides, whose frozen patches are made image by image.
    """
    if isinstance(scorer.network, BothSides):
        raise Refusal(
            "a run with --feedback_mix below 1 is scored by the maps of both sides, which no graph holds; export it "
            "with --feedback_maps trained"
        )
    scorer = _shallow(scorer)
    network = scorer.network = _shallow(scorer.network)
    of_texts = list(getattr(network, "text_modules", {}).values())
    for name, module in list(network._modules.items()):
        if any(module is one for one in of_texts):
            del network._modules[name]
    name = next(one for one in ("clipmodel", "clip") if one in network._modules)
    clip = network._modules[name] = _shallow(network._modules[name])
    for part in TEXT_PARTS:
        for kept in (clip._modules, clip._parameters, clip._buffers):
            kept.pop(part, None)
    return scorer


def _shallow(module: nn.Module) -> nn.Module:
    """A copy that shares parts and weights, and can lose some of them without its original."""
    copied = copy.copy(module)
    for kept in ("_modules", "_parameters", "_buffers"):
        setattr(copied, kept, dict(getattr(module, kept)))
    return copied
