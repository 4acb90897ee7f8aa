"""Pictures as the model sees them, whole or tile by tile, read by worker processes in batches."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from torch import Tensor, stack
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from dataset.anomaly_dataset import image_tensor
from dataset.image_files import read_image
from evaluation.photographs.tiles import Box, Tiling
from files.given import require_regular


class Place(NamedTuple):
    """Where a view belongs: the number of its picture, that picture's (width, height), and its box; None for whole."""

    picture: int
    size: tuple[int, int]
    box: Box | None


class Unreadable(NamedTuple):
    """A picture that cannot be read, and why."""

    picture: int
    reason: str


class Batch(NamedTuple):
    """Views [b, 3, S, S] (None where there is none), their places, and what could not be read on the way."""

    images: Tensor | None
    places: list[Place]
    unreadable: list[Unreadable]


def read_photograph(path: Path | str) -> Image.Image:
    """An RGB picture, upright.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it is no picture that can be read.
    """
    require_regular(path, "--input")
    return read_image(str(path), "--input")


class Views(IterableDataset):
    """(Place, [3, S, S]) of every view of some pictures, or Unreadable; a picture's views follow one another.

    A picture is decoded once, and its tiles are cut when they are asked for: memory holds one picture per process.

    Args:
        pictures: their paths.
        img_size: S.
        tiling: None for whole pictures.
    """

    def __init__(self, pictures: Sequence[Path], img_size: int, tiling: Tiling | None = None):
        self._pictures, self._img_size, self._tiling = pictures, img_size, tiling

    def __iter__(self) -> Iterator[tuple[Place, Tensor] | Unreadable]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for number in range(first, len(self._pictures), step):
            try:
                picture = read_photograph(self._pictures[number])
            except (OSError, ValueError) as error:
                yield Unreadable(number, str(error))
            else:
                yield from self.views_of(picture, number)

    def views_of(self, picture: Image.Image, number: int = 0) -> Iterator[tuple[Place, Tensor]]:
        """The views of one RGB picture."""
        for box in self.boxes(picture.size) or [None]:
            part = picture if box is None else picture.crop(box)
            yield Place(number, picture.size, box), image_tensor(part, self._img_size)

    def boxes(self, size: tuple[int, int]) -> list[Box]:
        """The tiles of a picture of (width, height); [] where it is seen whole."""
        return [] if self._tiling is None else self._tiling.boxes(size)


def collated(items: Sequence[tuple[Place, Tensor] | Unreadable]) -> Batch:
    """A batch of what Views gives."""
    views = [one for one in items if not isinstance(one, Unreadable)]
    images = stack([image for _, image in views]) if views else None
    return Batch(images, [place for place, _ in views], [one for one in items if isinstance(one, Unreadable)])


def batches(views: Views, batch_size: int, workers: int, pinned: bool) -> DataLoader:
    """Batches of `views`."""
    return DataLoader(views, batch_size, num_workers=workers, collate_fn=collated, pin_memory=pinned)
