"""Images with masks as tensors: one Dataset for training (augmented, all classes) and testing (one class, as is)."""

import logging
from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL import Image
from torch.utils.data import Dataset

from dataset.augmentation import jitter_colour, move_together
from dataset.image_files import Reading
from dataset.jsonl import Sample
from dataset.picture_cache import Decoded, PictureCache, decode, resize_picture
from dataset.picture_cache import resize_mask as resize_mask
from dataset.randomness import keyed_generator
from files.digests import IMAGE_DIGEST, tensor_digest
from files.logs import quiet_logger
from files.normalisation import CLIP_MEAN, CLIP_STD

UNLABELLED = -1  # stands for no label in batches
WARNED = 20  # samples without a defect pixel that are named, per process


class Augmentation(NamedTuple):
    """How a training set varies its images: always geometry, and colour for stage 2.

    `stage` and `seed` key the draws: the two stages see different variants of the same image. `fixed`: every epoch has
    the variants of the first one.
    """

    stage: str
    colour: bool
    seed: int
    fixed: bool = False


class BaseDataset(Dataset):
    """Samples as dictionaries, ready for a default DataLoader.

    `image` [3, S, S] float, resized bicubic, scaled to [0, 1], normalised with CLIP's mean and deviation;
    `mask` [1, S, S] float 0/1, all zero for normal images; `mask_known` float 0/1, 0 where the mask is all zero because
    nobody knows the defect's place; `label` int 0/1, -1 for unlabelled; `class_name` str; `file_name` str, relative to
    the data root. Colour is varied on the decoded image, geometry on the normalised tensor stacked with the mask.

    What augmentation draws depends on (seed, stage, epoch, index) only: call `set_epoch` before each epoch. Worker
    processes see it, also those that live on from epoch to epoch.
    `read_through` adds a cache of decoded pictures, and `image_digest` to every sample.
    Reading raises ValueError for an image or mask that cannot be decoded or, unless `reading` is AA-CLIP's, whose sizes
    differ.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        img_size: int,
        augmentation: Augmentation | None = None,
        logger: logging.Logger | None = None,
        reading: Reading | None = None,
    ):
        if img_size < 1:
            raise ValueError(f"img_size is {img_size}: expected a positive number of pixels")
        self.samples = list(samples)
        self.img_size = img_size
        self.augmentation = augmentation
        self.logger = logger or quiet_logger()
        self.reading = reading or Reading()
        self.pictures: PictureCache | None = None
        self.digests = False
        self._epoch = torch.zeros((), dtype=torch.int64)
        if augmentation:
            self._epoch.share_memory_()
        self._warned_of: set[str] = set()

    def read_through(self, pictures: PictureCache | None = None, digests: bool = False) -> "BaseDataset":
        """Decode by way of a cache from now on, which changes no value; returns the dataset.

        Args:
            pictures: None to decode every time.
            digests: every sample has its image's `tensor_digest` too, by which a feature cache knows it.
        """
        self.pictures, self.digests = pictures, digests
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose augmentation is drawn; epochs count from 0."""
        self._epoch.fill_(epoch)

    @property
    def epoch(self) -> int:
        """The epoch whose augmentation is drawn."""
        return int(self._epoch)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor | int | str]:
        sample = self.samples[index]
        colour = self.augmentation is not None and self.augmentation.colour
        read = decode if self.pictures is None else self.pictures.decode
        decoded = read(sample, self.reading, self.img_size, whole=colour)
        picture, mask = decoded.picture, self._mask(sample, decoded)  # mask [1, S, S]
        generator = None
        if self.augmentation:
            position = index % len(self.samples)  # -1 and the last index are one sample
            epoch = 0 if self.augmentation.fixed else self.epoch
            generator = keyed_generator(self.augmentation.seed, self.augmentation.stage, epoch, position)
            if colour:
                picture = jitter_colour(picture, generator)
        image = image_tensor(picture, self.img_size)  # [3, S, S]
        if generator:
            image, mask = move_together(image, mask, generator)
        digest = {IMAGE_DIGEST: tensor_digest(image)} if self.digests else {}
        return digest | {
            "image": image,
            "mask": mask,
            "mask_known": torch.tensor(float(sample.mask_known)),
            "label": UNLABELLED if sample.label is None else sample.label,
            "class_name": sample.class_name,
            "file_name": sample.file_name,
        }

    def _mask(self, sample: Sample, decoded: Decoded) -> torch.Tensor:
        if decoded.mask is None:
            return torch.zeros(1, self.img_size, self.img_size)
        if not decoded.mask.any():
            self._warn_of(sample, decoded.mask_pixels)
        return decoded.mask

    def _warn_of(self, sample: Sample, pixels: int) -> None:
        """Once per sample, and for the first few: its mask is empty, or its `pixels` were lost in resizing."""
        if sample.source in self._warned_of or len(self._warned_of) >= WARNED:
            return
        self._warned_of.add(sample.source)
        masks = ", ".join(sample.mask_paths)
        if not pixels:
            self.logger.warning("%s: label is 1 but mask %s is empty", sample.source, masks)
        else:
            self.logger.warning(
                "%s: the %d anomalous pixels of mask %s vanish at img_size %d: none of the image counts as defect",
                sample.source,
                pixels,
                masks,
                self.img_size,
            )
        if len(self._warned_of) == WARNED:
            self.logger.warning(
                "further masks of this kind are not named: python -m dataset.check --img_size %d counts them",
                self.img_size,
            )


def image_tensor(picture: Image.Image, img_size: int) -> torch.Tensor:
    """An RGB picture as networks see it: [3, S, S], resized bicubic, normalised with CLIP's mean and deviation."""
    from torchvision.transforms import functional as transform  # here, because importing it takes a second

    picture = transform.to_tensor(resize_picture(picture, img_size))
    return transform.normalize(picture, CLIP_MEAN, CLIP_STD)


class BaseSingleClassDataset(BaseDataset):
    """The samples of one class, unaugmented, for testing. Raises ValueError if a sample is of another class."""

    def __init__(
        self,
        samples: Sequence[Sample],
        img_size: int,
        class_name: str,
        logger: logging.Logger | None = None,
        reading: Reading | None = None,
    ):
        strangers = sorted({sample.class_name for sample in samples} - {class_name})
        if strangers:
            raise ValueError(
                f"expected samples of class {class_name!r} only, got also {', '.join(strangers)}"
            )
        super().__init__(samples, img_size, logger=logger, reading=reading)
        self.class_name = class_name
