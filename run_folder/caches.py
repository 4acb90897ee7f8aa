"""The caches a command's flags ask for: of decoded pictures, and of what the frozen backbone makes of them."""

from collections.abc import Iterable
from logging import Logger

from dataset import BaseDataset
from dataset.picture_cache import PictureCache
from files.command import Refusal
from files.tensor_cache import TensorCache
from model.clip import CLIP
from model.frozen_cache import FrozenCache
from run_folder.processes import current
from run_folder.settings import CacheSettings, Settings


def read_through_caches(sets: Iterable[BaseDataset], settings: Settings, logger: Logger) -> None:
    """Let data sets decode by way of `--image_cache`, and name their images for `--feature_cache`.

    Raises:
        ValueError: a limit is not above 0.
        OSError: the folder cannot be made.
    """
    cache = settings.cache
    if cache is None:
        return
    refuse_shared(cache)
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
    refuse_shared(cache)
    return FrozenCache(
        TensorCache(cache.feature_cache, cache.feature_cache_gb, "feature_cache", logger), clip
    )


def refuse_shared(cache: CacheSettings) -> None:
    """Refuse a cache for several processes, of which the main one alone writes files.

    Raises:
        Refusal: names the flags.
    """
    given = [f"--{flag}" for flag in ("feature_cache", "image_cache") if getattr(cache, flag) is not None]
    if given and current().count > 1:
        raise Refusal(
            f"{' and '.join(given)} with {current().count} processes: process 0 alone writes files, and would keep its "
            "own share of the images only; leave it away, or train in one process"
        )


def say_how_it_served(cache: FrozenCache | None, logger: Logger) -> None:
    """One line about the feature cache, at the end of a command."""
    if cache is not None:
        logger.info(cache.summary())
