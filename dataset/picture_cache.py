"""Decoded pictures and masks, and where they are kept so that no later reading decodes them again."""

import hashlib
import json
import os
from typing import NamedTuple

import numpy as np
import PIL
import torch
from PIL import Image

from dataset.image_files import Reading, read_pair
from dataset.jsonl import Sample
from files.atomic import sha256
from files.tensor_cache import TensorCache

FORMAT = 1  # raise it where image_files or mask_values read a file otherwise than before


class Decoded(NamedTuple):
    """A sample's files as the augmentation takes them.

    `picture`: RGB, of the file's size or resized. `mask`: [1, S, S] float 0/1, nearest; None without one.
    `mask_pixels`: how many pixels of the mask are anomalous before it is resized.
    """

    picture: Image.Image
    mask: torch.Tensor | None = None
    mask_pixels: int = 0


def decode(sample: Sample, reading: Reading, img_size: int, whole: bool) -> Decoded:
    """Read a sample's files.

    Args:
        whole: the picture in its file's size, as colour is varied; else resized to `img_size`.

    Raises:
        ValueError: as `read_pair`.
    """
    picture, anomalous = read_pair(sample, reading, any_size=True)
    picture = picture if whole else resize_picture(picture, img_size)
    if anomalous is None:
        return Decoded(picture)
    return Decoded(picture, resize_mask(anomalous, img_size), int(np.count_nonzero(anomalous)))


def resize_picture(picture: Image.Image, img_size: int) -> Image.Image:
    """An RGB picture in `img_size` x `img_size` pixels, bicubic; a copy of one that has this size."""
    from torchvision.transforms import InterpolationMode  # here, because importing it takes a second
    from torchvision.transforms import functional as transform

    return transform.resize(picture, [img_size, img_size], InterpolationMode.BICUBIC)


def resize_mask(anomalous: np.ndarray, img_size: int) -> torch.Tensor:
    """A mask [height, width] bool as it is trained and tested on: [1, S, S] float 0/1, nearest."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as transform

    mask = torch.from_numpy(anomalous.astype(np.float32))[None]
    return transform.resize(mask, [img_size, img_size], InterpolationMode.NEAREST)


class PictureCache:
    """`decode`, looked up by the files' bytes and how they are read; what is found has the bits of what was decoded.

    A file's bytes are read again when its size, times or inode are others than at this process's last look.
    """

    def __init__(self, entries: TensorCache):
        self.entries = entries
        self._digests: dict[str, tuple[tuple[int, ...], str]] = {}

    def decode(self, sample: Sample, reading: Reading, img_size: int, whole: bool) -> Decoded:
        """As the function of this name."""
        try:
            key = self._key(sample, reading, img_size, whole)
        except OSError:  # `decode` says what is wrong with it
            return decode(sample, reading, img_size, whole)
        entry = self.entries.get(key)
        if entry is None:
            decoded = decode(sample, reading, img_size, whole)
            if not self.entries.closed:
                self.entries.put(key, as_tensors(decoded))
            return decoded
        picture = Image.fromarray(entry["picture"].numpy())
        if "mask" not in entry:
            return Decoded(picture)
        return Decoded(picture, entry["mask"].float(), int(entry["mask_pixels"]))

    def _key(self, sample, reading, img_size, whole):
        files = [self._digest(path) for path in (sample.image_path, *sample.mask_paths)]
        how = [FORMAT, PIL.__version__, list(reading), img_size, whole]
        return hashlib.sha256(json.dumps([how, files]).encode()).hexdigest()

    def _digest(self, path):
        """SHA-256 of a file, taken once as long as the file is the same."""
        now = os.stat(path)
        state = (now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_ino, now.st_dev)
        before, digest = self._digests.get(path, (None, ""))
        if before != state:
            digest = sha256(path)
            self._digests[path] = state, digest
        return digest


def as_tensors(decoded: Decoded) -> dict[str, torch.Tensor]:
    """What is kept: "picture" [height, width, 3] uint8, and with a mask "mask" [1, S, S] uint8 and "mask_pixels"."""
    entry = {"picture": torch.from_numpy(np.array(decoded.picture))}
    if decoded.mask is not None:
        entry |= {"mask": decoded.mask.to(torch.uint8), "mask_pixels": torch.tensor(decoded.mask_pixels)}
    return entry
