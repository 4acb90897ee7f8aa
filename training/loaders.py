"""Batches for training."""

from logging import Logger

from torch.utils.data import DataLoader

from dataset import BaseDataset, EpochSampler, get_dataset
from run_folder.settings import Settings


def training_loaders(settings: Settings, logger: Logger) -> tuple[DataLoader, DataLoader]:
    """(text loader, image loader) over the training set; order and augmentation depend on (seed, epoch) only."""
    data, training, seed = settings.data, settings.training, settings.run.seed
    sets = get_dataset(
        data.dataset,
        settings.model.img_size,
        training.training_mode,
        data.shot,
        "train",
        logger,
        data_root=data.data_root,
        seed=seed,
        extra_meta=training.extra_meta,
        extra_ratio=training.extra_ratio,
    )
    sizes = training.text_batch_size, training.image_batch_size
    return tuple(
        DataLoader(images, size, sampler=EpochSampler(len(images), seed), num_workers=settings.run.workers)
        for images, size in zip(sets, sizes, strict=True)
    )


def unaugmented(loader: DataLoader) -> DataLoader:
    """Batches of a training loader's images as they are, in order."""
    images = loader.dataset
    return DataLoader(BaseDataset(images.samples, images.img_size), loader.batch_size)
