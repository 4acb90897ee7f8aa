"""A command's life around its work: seed, lock, log and device of a run folder, and the networks it starts from."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from logging import Logger
from pathlib import Path
from typing import NamedTuple

import torch

from dataset import load_dataset_config, load_real_names
from files.atomic import sweep
from files.logs import FILE_ALONE
from model.adapter import AdaptedCLIP
from model.adapter_cross_attention import AdaptedCLIPWithCrossAttention
from model.clip import CLIP, create_model, surgery_copy
from model.compiled import check_compiler, compile_adapters, compile_blocks
from model.matrix_products import matrix_products
from model.recompute import recompute_activations
from model.weights_file import published_as
from run_folder.guarded_step import MOST_LEFT_OUT, LeftOut
from run_folder.processes import Processes, current, joined, locked, run_logger
from run_folder.settings import (
    DataSettings,
    RunSettings,
    Settings,
    TrainingSettings,
    corrections_in,
)
from run_folder.signals import Stopped, StopSignals, stop_signals
from run_folder.trackers import SILENT, Tracker, tracker_of
from run_folder.training_groups import MIXED_PRECISION
from utils import allow_tf32, choose_device, close_logger, seed_generators, setup_seed

PRODUCTS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}  # of the vision blocks, by precision


class Session(NamedTuple):
    """What every part of a command may need.

    `signals`: None where nobody listens to them. `left_out`: None unless steps that are not finite may be left out.
    """

    settings: Settings
    device: torch.device
    logger: Logger
    signals: StopSignals | None = None
    left_out: LeftOut | None = None
    tracker: Tracker = SILENT


@contextmanager
def open_run(run: RunSettings, log_name: str) -> Iterator[tuple[torch.device, Logger]]:
    """Seed everything, lock the run folder, start its log and choose the device; an error is logged on its way out.

    Yields:
        (device, logger)
    """
    setup_seed(run.seed, run.fast)  # before CUDA starts
    with locked(run.save_path):
        logger = run_logger(run.save_path, log_name)
        swept = sweep_run(run.save_path)
        if swept:
            logger.info(f"deleted what killed processes left unfinished: {', '.join(swept)}")
        try:
            device = choose_device(run.device)
            with matrix_products(run.matmul, device, logger, current().tell):
                yield device, logger
        except Stopped as stop:
            logger.warning(str(stop))
            raise
        except BaseException as error:
            logger.error(f"stopped by {type(error).__name__}: {error}", extra=FILE_ALONE)
            raise
        finally:
            close_logger(logger)


def sweep_run(folder: Path | str) -> list[str]:
    """Delete the unfinished files of killed processes in a run's folder, scores and pictures; returns their names."""
    return [name for place in places_of_run(folder) for name in sweep(place)]


def places_of_run(folder: Path | str) -> list[Path]:
    """The folders that a run's files are written into."""
    places = [Path(folder)]
    for pattern in ("scores/*/", "attention/*/", "visualization/*/", "visualization/*/*/"):
        places += Path(folder).glob(pattern)
    return places


@contextmanager
def training_session(settings: Settings) -> Iterator[Session]:
    """The session of a training command: `open_run`, the settings in the log, the user's datasets declared.

    From its begin to its end the process listens to SIGTERM, SIGINT and SIGUSR1. Several processes work on it together
    where they were started so.
    """
    setup_seed(settings.run.seed, settings.run.fast)  # before CUDA starts
    with (
        joined(settings.run.device) as processes,
        open_run(settings.run, "train.log") as (device, logger),
        stop_signals() as signals,
    ):
        record = settings.record()
        logger.info("flags: " + ", ".join(f"{key}={value}" for key, value in sorted(record.items())))
        corrections = corrections_in(record)
        kind = f"corrected: {corrections}" if corrections else "none corrected, as in AA-CLIP"
        logger.info(f"known deviations of AA-CLIP (docs/method.md): {kind}; device {device}")
        choose_arithmetic(settings.training, processes, logger)
        declare_datasets(settings.data)
        can_leave_out = settings.training.on_nan == "skip"
        left_out = LeftOut(MOST_LEFT_OUT, logger.warning) if can_leave_out else None
        tracker = tracker_of(settings, logger)
        try:
            yield Session(settings, device, logger, signals, left_out, tracker)
        finally:
            tracker.close()


def choose_arithmetic(training: TrainingSettings, processes: Processes, logger: Logger) -> None:
    """Turn TF32 on where training asks for it, and log what its numbers depend on.

    Raises:
        ValueError: accelerate was told another precision than the command.
    """
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked != "no" and MIXED_PRECISION.get(asked) != training.precision:
        raise ValueError(
            f"accelerate was told --mixed_precision {asked}, the command has --precision {training.precision}: give "
            "--mixed_precision to the training command, whose checkpoints keep it, or 'no' to accelerate"
        )
    allow_tf32(training.tf32)
    logger.info(
        f"precision {training.precision}, TF32 {'on' if training.tf32 else 'off'}, processes {processes.count}"
    )


def declare_datasets(data: DataSettings) -> None:
    """Register the user's own datasets and real names, before any name is looked up."""
    if data.dataset_config:
        load_dataset_config(data.dataset_config)
    if data.real_names:
        load_real_names(data.real_names)


def create_backbone(settings: Settings, device: torch.device, logger: Logger) -> CLIP:
    """The frozen CLIP the settings name, with its weights; its vision blocks in the precision training asks for."""
    model, training = settings.model, settings.training
    clip = create_model(
        model.model_name,
        model.img_size,
        pretrained="openai",
        device=device,
        require_pretrained=True,
        quick_gelu=settings.network.quick_gelu,
        clip_weights=model.clip_weights,
        vision_autocast=None if training is None else PRODUCTS[training.precision],
    )
    if training is not None:
        recompute_activations(clip, training.activation_checkpointing)
    if compiles(settings):
        check_compiler(device)
        compile_blocks(clip.transformer, clip.visual.transformer)
    known = published_as(clip.source.sha256)
    published = f", OpenAI's {known} as published" if known else ""
    logger.info(
        f"backbone {model.model_name} from {clip.source.file}, SHA-256 {clip.source.sha256}{published}"
    )
    say_what_patches_miss(model.img_size, clip.visual.patch_size[0], logger)
    return clip


def say_what_patches_miss(img_size: int, patch: int, logger: Logger) -> None:
    """Warn where an image is not a whole number of patches: the rest of it is not looked at."""
    rest = img_size % patch
    if rest:
        logger.warning(
            f"--img_size {img_size} is not a multiple of the backbone's {patch}-pixel patches: the last {rest} rows "
            "and columns of every image are not seen, and maps are stretched over them; the nearest sizes that are "
            f"seen whole are {img_size - rest} and {img_size - rest + patch}"
        )


def surgery_of(clip: CLIP, settings: Settings) -> CLIP:
    """The surgery model of a backbone, as the settings want it."""
    across_batch = settings.network.surgery_attention == "batch"
    surgery = surgery_copy(clip, settings.model.surgery_until_layer, across_batch=across_batch)
    if compiles(settings):
        compile_blocks(surgery.visual.transformer)
    return surgery


def compiles(settings: Settings) -> bool:
    """Whether the command trains with `--compile`."""
    return settings.training is not None and settings.training.compile


def create_adapted_model(clip: CLIP, settings: Settings, device: torch.device) -> AdaptedCLIP:
    """The adapted model the settings describe: with cross-attention where they have that group.

    Its first values depend on the seed alone, not on the backbone; the adapters' are the same in every script.
    """
    seed_generators(settings.run.seed)
    model = settings.model
    adapters = (
        model.text_adapt_weight,
        model.image_adapt_weight,
        model.text_adapt_until,
        model.image_adapt_until,
    )
    if settings.cross_attention is None:
        adapted = AdaptedCLIP(clip, *adapters, relu=model.relu)
    else:
        parts = (
            settings.cross_attention,
            settings.self_reference,
            settings.anchor_attention,
            settings.anchor_decoder,
        )
        fork = {name: value for part in parts for name, value in vars(part).items()}
        adapted = AdaptedCLIPWithCrossAttention(clip, *adapters, relu=model.relu, **fork)
    if compiles(settings):
        compile_adapters(adapted)
    return adapted.to(device)
