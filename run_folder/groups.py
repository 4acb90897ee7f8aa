"""Groups of flags that training and testing have: contexts, data, caches, the run itself, its tracker."""

import os
from dataclasses import dataclass

from dataset.mask_values import MASK_READINGS
from model.matrix_products import MATMULS
from model.settings import CONTEXT_CONTROLS, MAY_CHANGE, MUST_AGREE, option


def worker_count(text: str) -> int:
    """The number of data loader processes that --workers names.

    Raises:
        ValueError: neither a whole number from 0 nor auto.
    """
    if text == "auto":
        beside = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)  # torchrun's processes on this machine
        return max(0, min(8, cores() // beside - 1))
    if not text.isdecimal():
        raise ValueError(f"--workers {text}: expected 0 or more processes, or auto")
    return int(text)


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class ContextSettings:
    """contexts of the cross-attention"""

    context_scope: str = option(
        "class",
        "stage 1: a class sees its own images of the batch, or the batch's mean",
        choices=["class", "batch"],
    )
    text_context: str = option(
        "none",
        "image context of the anchors after stage 1",
        at_test=MAY_CHANGE,
        choices=["none", "train_mean", "image"],
    )
    context_control: str = option(
        "none",
        "control of a study: contexts without information, same parameters",
        at_test=MUST_AGREE,
        added_later=True,
        choices=CONTEXT_CONTROLS,
    )


@dataclass(frozen=True)
class MixSettings:
    """what each side of a feedback run learns against"""

    feedback_mix: float = option(
        1.0,
        "share, in 0..1, of the other side's trained features in what a side learns against; the rest are frozen",
        at_test=MUST_AGREE,
        added_later=True,
    )
    feedback_maps: str = option(
        "both",
        "at test with --feedback_mix below 1: the average of both sides' maps, each against what it learned against, "
        "or that of trained patches and anchors alone",
        at_test=MAY_CHANGE,
        added_later=True,
        choices=["both", "trained"],
    )


@dataclass(frozen=True)
class DataSettings:
    """data"""

    dataset: str | None = option("VisA", "dataset name")
    shot: int = option(32, "images per class of few_shot, half abnormal; 0 = all")
    data_root: str | None = option(
        None, "folder that holds the datasets; else AACLIP_DATA, else ./data", moves_numbers=False
    )
    mask_reading: str | None = option(
        None,
        "upstream: every value of a mask that is not 0 is defect, the default for AA-CLIP's eleven datasets; robust: "
        "half of white in JPEG masks and at soft edges, EXIF orientation applied, the default for all others",
        added_later=True,
        choices=MASK_READINGS,
    )
    dataset_config: str | None = option(
        None, "JSON/YAML file that declares own datasets", moves_numbers=False
    )
    real_names: str | None = option(
        None, "JSON/YAML file {dataset: {class: real name}} that overrides prompt names", moves_numbers=False
    )


@dataclass(frozen=True)
class CacheSettings:
    """caches on disk"""

    feature_cache: str | None = option(
        None,
        "folder that keeps what the frozen backbone makes of an image, for later passes, runs and tests; changes "
        "rounding only",
        moves_numbers=False,
        added_later=True,
    )
    feature_cache_gb: float = option(
        50.0, "10^9 bytes it may hold; full, it takes no more", moves_numbers=False, added_later=True
    )
    image_cache: str | None = option(
        None,
        "folder that keeps decoded images and masks; no number changes",
        moves_numbers=False,
        added_later=True,
    )
    image_cache_gb: float = option(
        50.0, "10^9 bytes it may hold; full, it takes no more", moves_numbers=False, added_later=True
    )


@dataclass(frozen=True)
class RunSettings:
    """run"""

    seed: int = option(111, "seed of weights, order, augmentation and k-shot choice")
    save_path: str | None = option("ckpt/baseline", "the run's folder", moves_numbers=False)
    device: str | None = option(None, "torch device; default CUDA if there, else CPU", moves_numbers=False)
    workers: int = option(
        0,
        "data loader processes; never changes a number; auto: one less than the cores, at most 8",
        moves_numbers=False,
        type=worker_count,
    )
    fast: bool = option(
        False,
        "kernels that a GPU may round otherwise in the next run",
        moves_numbers=False,
        added_later=True,
    )
    matmul: str = option(
        "default",
        "float32 products on a CPU: torch's, or oneDNN's where they are faster; another rounding",
        added_later=True,
        choices=MATMULS,
    )


@dataclass(frozen=True)
class TrackerSettings:
    """tracker"""

    tracker: str | None = option(
        None,
        "hand losses, rates, norms, metrics and heatmaps on to this tracker too; its package is optional",
        moves_numbers=False,
        added_later=True,
        choices=["trackio", "tensorboard", "wandb", "mlflow"],
    )
    tracker_project: str = option(
        "aa-clip", "the project its runs are listed under", moves_numbers=False, added_later=True
    )
