"""Few normal references: a patch is also held against the patches of k sound pictures of the same thing.

As self-reference does within one image (model/self_reference.py), with another bank: the distance to the most similar
patch of the references is one more coordinate in which the abnormal anchor has 1. Memory of normal patches: J. Jeong et
al., "WinCLIP: Zero-/Few-Shot Anomaly Classification and Segmentation", CVPR 2023, section 4.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evaluation.scorer import AnomalyScorer
from files.digests import IMAGE_DIGEST, tensor_digest
from forward_utils import SIMILARITY_SCALE, score_map
from model.clip import CLIP
from model.frozen_cache import look_up_of
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


class Bank(NamedTuple):
    """The references of a class: unit vectors [k * L, C] per level, and a digest of the images they are of."""

    patches: dict[int, Tensor]
    digest: str

    def to(self, device: torch.device | str) -> "Bank":
        """The same on a device."""
        return self._replace(patches={level: rows.to(device) for level, rows in self.patches.items()})


class ReferenceBanks:
    """The frozen patches of normal references, made class by class where they are asked for.

    No training moves them: all checkpoints of a run are held against the same ones.

    Args:
        clip: the frozen backbone.
        images_of: class name -> the images [3, S, S] of its references.
        keep: banks of earlier classes wait in the host's memory for the next checkpoint; else only the last one stays.
    """

    def __init__(self, clip: CLIP, images_of: Callable[[str], Iterable[Tensor]], keep: bool = False):
        self.clip, self._images_of, self._keep = clip, images_of, keep
        self._kept: dict[tuple, Bank] = {}
        self.of = lru_cache(maxsize=1)(self._of)  # classes come one after the other: one lies on the device

    @property
    def device(self) -> torch.device:
        """Where the backbone is."""
        return self.clip.visual.proj.device

    @torch.no_grad()
    def frozen_patches(self, images: Tensor, levels: Sequence[int]) -> dict[int, Tensor]:
        """{level: patches [B, L, C]} of images [B, 3, S, S]."""
        tokens = self.clip.encode_image(images, levels)[1]
        return {level: self.clip.visual.ln_post(x[:, 1:]) for level, x in zip(levels, tokens, strict=True)}

    def _of(self, class_name: str, levels: tuple[int, ...]) -> Bank:
        """A class's bank on the backbone's device."""
        kept = self._kept.get((class_name, levels))
        if kept is not None:
            return kept.to(self.device)
        bank = self._made(class_name, levels)
        if self._keep:
            self._kept[class_name, levels] = bank.to("cpu")
        return bank

    @torch.no_grad()
    def _made(self, class_name, levels):
        """A class's bank, one picture at a time through the backbone."""
        found, digests = {level: [] for level in levels}, []
        for image in self._images_of(class_name):
            digests.append(tensor_digest(image))
            for level, patches in self.frozen_patches(image[None].to(self.device), levels).items():
                found[level].append(F.normalize(patches[0].float(), dim=-1))
        digest = hashlib.sha256("\n".join(digests).encode()).hexdigest()
        return Bank({level: torch.cat(rows) for level, rows in found.items()}, digest)


class WithReferences(nn.Module):
    """An AnomalyScorer whose maps and head scores also know the distance to normal references.

    Args:
        scorer: the zero-shot scorer; its cache serves the distances too.
        banks: of the references, from the backbone that the scorer's network stands on.
        weight: of the distance, beside a difference of two cosines; 0 is the zero-shot scorer.
    """

    def __init__(self, scorer: AnomalyScorer, banks: ReferenceBanks, weight: float):
        super().__init__()
        self.scorer, self.banks, self.weight = scorer, banks, weight
        self.img_size, self.domain, self.levels = scorer.img_size, scorer.domain, scorer.levels
        self.sees_another_image, self.cache = scorer.sees_another_image, scorer.cache

    @torch.no_grad()
    def score(
        self, image: Tensor, class_name: str, digests: Sequence[str] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Maps [B, S, S] and head scores [B] of images [B, 3, S, S], as AnomalyScorer.score."""
        maps, heads = self.scorer.score(image, class_name, digests)
        extra_maps, extra_heads = self.distances(image, class_name, digests)
        return maps + self.weight * extra_maps, heads + self.weight * extra_heads

    @torch.no_grad()
    def distances(
        self, image: Tensor, class_name: str, digests: Sequence[str] | None = None
    ) -> tuple[Tensor, Tensor]:
        """What a weight of 1 adds: to the maps [B, S, S], as cosines times 100, and to the head scores [B].

        Args:
            digests: as in AnomalyScorer.score.
        """
        blocks = self.scorer.network.levels  # of which a network that averages two sides names each twice
        levels = tuple(sorted(set(blocks)))
        bank = self.banks.of(class_name, levels)
        names = {level: f"distance to references {bank.digest} at level {level}" for level in levels}

        def compute(images):
            patches = self.banks.frozen_patches(images, levels)
            return {names[level]: distance_to(patches[level], bank.patches[level]) for level in levels}

        batch = {"image": image} | ({} if digests is None else {IMAGE_DIGEST: digests})
        look_up = look_up_of(self.cache, batch)
        found = compute(image) if look_up is None else look_up(list(names.values()), compute)
        far = [found[names[level]] for level in blocks]
        maps = [
            score_map(SIMILARITY_SCALE * F.pad(level[..., None], (1, 0)), self.img_size, self.domain) - 0.5
            for level in far
        ]
        return torch.cat(maps, dim=1).sum(dim=1), peak(far) / 2
