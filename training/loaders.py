"""Batches for training."""

from functools import partial
from logging import Logger

from torch.utils.data import DataLoader

from dataset import BaseDataset, EpochSampler, get_dataset
from files.command import Refusal
from run_folder.caches import read_through_caches
from run_folder.processes import current
from run_folder.settings import DataSettings, Settings
from run_folder.signals import ignore_stop_signals
from training.acceleration import ShareLoader
from utils import choose_device

UNSAID_SHOTS = (0, DataSettings.shot)  # all images, and the default, which a run's config.yaml has too


def training_loaders(
    settings: Settings, logger: Logger
) -> tuple[DataLoader, DataLoader] | tuple[ShareLoader, ShareLoader]:
    """(text loader, image loader) over the training set; order and augmentation depend on (seed, epoch) only.

    Of several processes each reads its share of every batch.

    Worker processes live as long as their loader; batches for a GPU lie in pinned memory: copies do not wait.
    """
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
        mask_reading=data.mask_reading,
    )
    if (
        training.training_mode == "full_shot"
        and "shot" in settings.explicit
        and data.shot not in UNSAID_SHOTS
    ):
        logger.warning(
            f"--shot {data.shot}: does nothing with --training_mode full_shot, which takes all images; for "
            f"{data.shot} a class give --training_mode few_shot"
        )
    read_through_caches(sets, settings, logger)
    check_other_images(settings, len(sets[1]))
    text = sets[0].augmentation
    sets[0].augmentation = text._replace(fixed=training.text_augmentation == "fixed")
    sizes = training.text_batch_size, training.image_batch_size
    workers, pinned = settings.run.workers, choose_device(settings.run.device).type == "cuda"
    processes = current()
    make = DataLoader if processes.count == 1 else partial(ShareLoader, processes=processes)
    return tuple(
        make(
            images,
            size,
            sampler=EpochSampler(len(images), seed),
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=pinned,
            worker_init_fn=ignore_stop_signals,
        )
        for images, size in zip(sets, sizes, strict=True)
    )


def check_other_images(settings: Settings, images: int) -> None:
    """Refuse a control that looks at another image where some batch of stage 2 has one alone, before it is met.

    Raises:
        ValueError: names the numbers.
        Refusal: several processes, of which each sees its share of a batch.
    """
    late, size = settings.anchor_attention, settings.training.image_batch_size
    if late is None or late.anchor_attention == "none" or late.anchor_attention_control != "other_image":
        return
    if current().count > 1:
        raise Refusal(
            "--anchor_attention_control other_image: train in one process, which sees whole batches"
        )
    if size < 2 or images % size == 1:
        raise ValueError(
            f"--anchor_attention_control other_image: {images} training images in batches of --image_batch_size "
            f"{size} leave one alone, for which there is no other; choose another size"
        )


def unaugmented(loader: DataLoader | ShareLoader) -> DataLoader:
    """Batches of a training loader's images as they are, in order; of several processes each has them whole."""
    images = loader.dataset
    return DataLoader(
        BaseDataset(images.samples, images.img_size, reading=images.reading).read_through(
            images.pictures, images.digests
        ),
        loader.batch_size,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        worker_init_fn=ignore_stop_signals,
    )
