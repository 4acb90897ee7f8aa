"""What the frozen backbone makes of single images, looked up instead of computed again.

An entry is a function of the network and of the image's values alone: its key holds the backbone's weights, structure,
size and arithmetic, the surgery, and the digest of the very tensor the network sees, in which picture, resizing and
augmentation are. A hit is what was computed once, perhaps in a batch of other images: it may round otherwise.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from files.digests import IMAGE_DIGEST as IMAGE_DIGEST
from files.digests import state_digest, tensor_digest
from files.tensor_cache import TensorCache
from model.matrix_products import by_onednn

FORMAT = 1  # of the entries: what they hold by which name
# (names, images [b, 3, H, W] -> {name: [b, ...]}) -> {name: [B, ...]} of a batch's images
LookUp = Callable[[Sequence[str], Callable[[Tensor], dict[str, Tensor]]], dict[str, Tensor]]


class FrozenCache:
    """Features of single images by what they are of.

    `wanted`, `found`: how many were looked up until now, and how many of them were there.

    Args:
        entries: where they lie.
        clip: the frozen backbone.
    """

    def __init__(self, entries: TensorCache, clip: nn.Module):
        self.entries, self.clip = entries, clip
        self.wanted = self.found = 0
        self._backbone = backbone_identity(clip)

    def look_up(
        self,
        image: Tensor,
        digests: Sequence[str] | None,
        names: Sequence[str],
        compute: Callable[[Tensor], dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        """Features of a batch; those of images that lack any are computed together and kept, which waits for a GPU.

        Args:
            image: [B, 3, H, W].
            digests: of the B images, of `image_digests`; None to take them here, which waits for a GPU.
            names: what is wanted; a name says all that it depends on beside the backbone and the image.
            compute: images [b, 3, H, W] -> {name: [b, ...]}, of each image by itself.

        Returns:
            {name: [B, ...]} on the images' device.
        """
        digests = image_digests(image) if digests is None else digests
        arithmetic = json.dumps([FORMAT, self._backbone, arithmetic_of(self.clip, image.device)])
        keys = [[key_of(arithmetic, name, one) for name in names] for one in digests]
        kept = [self._kept(own) for own in keys]
        missing = [row for row, own in enumerate(kept) if own is None]
        self.wanted, self.found = self.wanted + len(kept), self.found + len(kept) - len(missing)
        if not missing:
            return dict(zip(names, map(on_device(image.device), zip(*kept, strict=True)), strict=True))
        everything = len(missing) == len(kept)
        computed = compute(image if everything else torch.stack([image[row] for row in missing]))
        computed = {name: computed[name] for name in names}
        self._keep([keys[row] for row in missing], list(computed.values()))
        if everything:
            return computed
        return {
            name: merged(computed[name], missing, [own and own[place] for own in kept])
            for place, name in enumerate(names)
        }

    def summary(self) -> str:
        """How often it was of use, for the log."""
        return f"feature cache {self.entries.folder}: {self.found} of {self.wanted} images were in it"

    def _kept(self, keys: list[str]) -> list[Tensor] | None:
        """One image's features; None if any is missing."""
        found = []
        for key in keys:
            entry = self.entries.get(key)
            if entry is None:
                return None
            found.append(entry["values"])
        return found

    def _keep(self, keys: list[list[str]], features: list[Tensor]) -> None:
        if self.entries.closed:  # no wait for the device for nothing
            return
        for place, values in enumerate(features):
            for own, value in zip(keys, values.cpu(), strict=True):
                self.entries.put(own[place], {"values": value})


def look_up_of(cache: FrozenCache | None, batch: dict) -> LookUp | None:
    """`FrozenCache.look_up` for the images of a batch, whose digests it may hold; None without a cache."""
    return None if cache is None else partial(cache.look_up, batch["image"], batch.get(IMAGE_DIGEST))


def image_digests(image: Tensor) -> list[str]:
    """SHA-256 of every image of a batch [B, 3, H, W]; images on a GPU are waited for and copied."""
    return [tensor_digest(one) for one in image.cpu()]


def backbone_identity(clip: nn.Module) -> list[str]:
    """What a backbone computes: the weights' SHA-256, and its structure (sizes, activations) in words, hashed."""
    source = clip.source
    weights = source.sha256 if source is not None else state_digest(clip.visual.state_dict())
    visual = clip.visual
    structure = f"{visual}\n{visual.image_size} {visual.patch_size} {visual.positional_embedding.shape}"
    return [weights, hashlib.sha256(structure.encode()).hexdigest()]


def arithmetic_of(clip: nn.Module, device: torch.device) -> list[str]:
    """What moves the rounding of a backbone's products: types, kind of device, library and version, TF32 switches."""
    is_low = torch.is_autocast_enabled(device.type)
    known = [
        str(clip.visual.proj.dtype),
        str(clip.visual.autocast),
        str(torch.get_autocast_dtype(device.type)) if is_low else "no autocast",
        device.type,
        torch.__version__,
        torch.backends.cuda.matmul.fp32_precision,
        torch.backends.cudnn.conv.fp32_precision,
        torch.backends.mkldnn.matmul.fp32_precision,
    ]
    return known + ["oneDNN"] * by_onednn()  # `--matmul auto`; keys of before stay


def key_of(arithmetic: str, name: str, digest: str) -> str:
    """The hexadecimal key of one feature of one image."""
    return hashlib.sha256(json.dumps([arithmetic, name, digest]).encode()).hexdigest()


def on_device(device: torch.device) -> Callable[[Sequence[Tensor]], Tensor]:
    """Function (mapped tensors of one shape) -> their stack on a device; a GPU is not waited for."""

    def stack(rows):
        pinned = device.type == "cuda" and torch.cuda.is_available()
        together = torch.empty(len(rows), *rows[0].shape, dtype=rows[0].dtype, pin_memory=pinned)
        for place, row in zip(together, rows, strict=True):
            place.copy_(row)
        return together.to(device, non_blocking=True)

    return stack


def merged(computed: Tensor, missing: list[int], kept: list[Tensor | None]) -> Tensor:
    """[B, ...] of the rows that were `computed` [b, ...] and those that were kept (None where computed)."""
    places = [place for place, row in enumerate(kept) if row is not None]
    rows = dict(zip(places, on_device(computed.device)([kept[place] for place in places]), strict=True))
    rows |= zip(missing, computed, strict=True)
    return torch.stack([rows[place] for place in range(len(kept))])
