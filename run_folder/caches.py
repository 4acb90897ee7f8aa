"""The caches a command's flags ask for: of decoded pictures, and of what the frozen backbone makes of them."""

from collections.abc import Iterable
from logging import Logger

from dataset import BaseDataset
from dataset.picture_cache import PictureCache
from files.tensor_cache import TensorCache
from model.clip import CLIP
from model.frozen_cache import FrozenCache
from run_folder.settings import Settings


def read_through_caches(sets: Iterable[BaseDataset], settings: Settings, logger: Logger) -> None:
    """Let data sets decode by way of `--image_cache`, and name their images for `--feature_cache`.

    Raises:
        ValueError: a limit is not above 0.
        OSError: the folder cannot be made.
    """
    cache = settings.cache
    if cache is None:
        return
    pictures = None
    if cache.image_cache is not None:
        entries = TensorCache(cache.image_cache, cache.image_cache_gb, "image_cache", logger)
        pictures = PictureCache(entries)
    for images in sets:
        images.read_through(pictures, digests=cache.feature_cache is not None)


def feature_cache(settings: Settings, clip: CLIP, logger: Logger) -> FrozenCache | None:
    """The cache of `--feature_cache` for a backbone; None without the flag. Raises as `read_through_caches`."""
    cache = settings.cache
    if cache is None or cache.feature_cache is None:
        return None
    return FrozenCache(
        TensorCache(cache.feature_cache, cache.feature_cache_gb, "feature_cache", logger), clip
    )


def say_how_it_served(cache: FrozenCache | None, logger: Logger) -> None:
    """One line about the feature cache, at the end of a command."""
    if cache is not None:
        logger.info(cache.summary())
