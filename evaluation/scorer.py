"""From an image and a class to an anomaly map and an image score.

>>> scorer = scorer_of(load_run("ckpt/visa"), "MVTec")
>>> maps, scores = scorer.score(images, "bottle")  # [B, S, S], [B]
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dataset import DOMAINS
from files.digests import IMAGE_DIGEST
from forward_utils import fixed_anchors, score_map
from forward_utils_cross_attention import TextContext
from model.adapter import compare_embeddings
from model.clip import CLIP
from model.cross_attention import Context
from model.frozen_cache import FrozenCache, LookUp, look_up_of
from model.frozen_patches import plain_patches
from model.mixing import BothSides, mixed_anchors
from run_folder.loaded_run import LoadedRun
from run_folder.session import surgery_of


class AnomalyScorer(nn.Module):
    """Scores images of one domain, composed of the parts it is given.

    Args:
        network: has `compare(image, anchors)`, as AdaptedCLIP; with contexts as AdaptedCLIPWithCrossAttention.
        anchors_of: {"image", "class_name"} -> anchors [B, E, 2].
        contexts: {class name: TextContext} its images attend to; {} for nothing.
        img_size: side of the maps in pixels.
        domain: "Industrial" or "Medical"; chooses the blur.
        cache: where what no training changes is looked up; None to compute it.
    """

    def __init__(
        self,
        network: nn.Module,
        anchors_of: Callable[[dict], Tensor],
        contexts: dict[str, TextContext],
        img_size: int,
        domain: str,
        cache: FrozenCache | None = None,
    ):
        super().__init__()
        self.network, self.anchors_of, self.contexts = network, anchors_of, contexts
        self.img_size, self.domain, self.cache = img_size, domain, cache

    @property
    def levels(self) -> int:
        """Number of levels a map sums over."""
        return len(self.network.levels)

    @property
    def sees_another_image(self) -> bool:
        """Whether an image's scores depend on another image of its batch: under a control of a study alone."""
        return getattr(self.network, "sees_another_image", False)

    def forward(
        self,
        image: Tensor,
        anchors: Tensor,
        context: Context | None = None,
        frozen: dict[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Test map summed over the levels [B, S, S], and head score (head . abnormal + 1) / 2 [B].

        No shape depends on a value, so that it can be compiled and exported.

        Args:
            image: [B, 3, H, W].
            anchors: [E, 2] for all images, or [B, E, 2], one pair per image.
            context: prompt tokens that all images attend to, of `class_context`; None for nothing.
            frozen: the network's `frozen_arguments` for these images, if they are at hand.
        """
        anchors = anchors.expand(image.shape[0], -1, -1)  # len() would fix the batch size of an export
        seen = () if context is None else ([(None, context)],)
        return self.joined(*self.network.compare(image, anchors, *seen, **(frozen or {})))

    def joined(self, patch_logits: list[Tensor], head: Tensor) -> tuple[Tensor, Tensor]:
        """`forward`'s results of what the network's `compare` returns, in float32 whatever it computed in."""
        patch_logits, head = [logits.float() for logits in patch_logits], head.float()
        maps = [score_map(logits, self.img_size, self.domain) for logits in patch_logits]
        return torch.cat(maps, dim=1).sum(dim=1), (head[:, 1] + 1) / 2

    def class_anchors(self, name: str) -> Tensor:
        """A class's anchor pair [E, 2], where no image changes it (`--text_context` is not "image")."""
        return self.anchors_of({"class_name": [name]})[0]

    def class_context(self, name: str) -> Context | None:
        """What images of a class attend to: [S, W], two such with `--split_text_context`, or None."""
        context = self.contexts.get(name)
        return None if context is None else context.seen

    @torch.no_grad()
    def score(
        self, image: Tensor, class_name: str, digests: Sequence[str] | None = None
    ) -> tuple[Tensor, Tensor]:
        """`forward` for images [B, 3, H, W] of one class, with the anchors and the context its run was trained with.

        Args:
            digests: of the images, for the cache; None to take them there.
        """
        batch = {"image": image, "class_name": [class_name] * len(image)}
        batch |= {} if digests is None else {IMAGE_DIGEST: digests}
        look_up = look_up_of(self.cache, batch)
        frozen = None if look_up is None else self.network.frozen_arguments(image, look_up)
        return self(image, self.anchors_of(batch), self.class_context(class_name), frozen)


class RawCLIP(nn.Module):
    """Unadapted CLIP: patches of the last block, projected as CLS is, and CLS for the head."""

    def __init__(self, clip: CLIP):
        super().__init__()
        self.clip, self.levels = clip, clip.default_levels[-1:]

    def compare(
        self, image: Tensor, anchors: Tensor, features: dict[str, Tensor] | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """([patch logits [B, L, 2]] of one level, head cosines [B, 2]), as AdaptedCLIP.compare.

        Args:
            image: [B, 3, H, W].
            anchors: [B, E, 2].
            features: of `frozen_arguments` for these images, if they are at hand.
        """
        features = self._features(image) if features is None else features
        return compare_embeddings([features[self._patches]], features["cls"], anchors)

    def frozen_arguments(self, image: Tensor, look_up: LookUp) -> dict[str, Any]:
        """The `features` that `compare` takes, as AdaptedCLIP.frozen_arguments: all there is of an image."""
        return {"features": look_up(["cls", self._patches], self._features)}

    def _features(self, image):
        """{"cls": [B, E], name of the patches: [B, L, E]}, of unit length."""
        pooled, (tokens,) = self.clip.encode_image(image, self.levels)
        patches = plain_patches(self.clip.visual, tokens)
        return {"cls": F.normalize(pooled, dim=-1), self._patches: patches}

    @property
    def _patches(self):
        return f"patches of level {self.levels[0]}"


def scorer_of(run: LoadedRun, dataset_name: str, cache: FrozenCache | None = None) -> AnomalyScorer:
    """The scorer of a trained run for one dataset's classes; `cache` as AnomalyScorer's."""
    network, anchors_of = run.model, run.anchors(dataset_name, cache)
    if run.mix != 1:
        network = BothSides(
            run.model,
            surgery_of(run.model.clipmodel, run.settings),
            0 if run.loop == 1 else run.mix,  # loop 1's text side learned against frozen patches
        )
        anchors_of = partial(
            both_pairs,
            mixed_anchors(fixed_anchors(run.model.clipmodel, dataset_name), anchors_of, run.mix),
            anchors_of,
        )
    return AnomalyScorer(
        network,
        anchors_of,
        run.text_contexts(dataset_name),
        run.settings.model.img_size,
        DOMAINS[dataset_name],
        cache,
    )


def both_pairs(mixed: Callable[[dict], Tensor], trained: Callable[[dict], Tensor], batch: dict) -> Tensor:
    """[B, E, 4]: the mixed pair of anchors and the trained pair of a batch, what BothSides compares with."""
    return torch.cat([mixed(batch), trained(batch)], dim=-1)


def raw_clip_scorer(
    clip: CLIP, dataset_name: str, img_size: int, cache: FrozenCache | None = None
) -> AnomalyScorer:
    """The scorer of the unadapted backbone, what a run has to beat; `cache` as AnomalyScorer's."""
    return AnomalyScorer(
        RawCLIP(clip), fixed_anchors(clip, dataset_name), {}, img_size, DOMAINS[dataset_name], cache
    )
