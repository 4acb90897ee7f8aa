"""Train semantic fill: FLUX.1-Fill with LoRA learns by flow matching to fill the right half of a diptych, told where by
a semantic map through a small cross-attention."""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import Field, dataclass, fields, replace
from logging import Logger
from pathlib import Path
from typing import Any

import torch

try:
    from synthesis.backbone import LICENCE
    from synthesis.system import DTYPES, FillSystem, assemble
    from synthesis.training import LR_SCHEDULES, OPTIMIZERS, Schedule, make_optimizer, train
    from synthesis.weights import (
        load_optimizer,
        load_weights_into,
        newest_intact_checkpoint,
        read_config,
        save_system,
        sweep_checkpoints,
    )
except ModuleNotFoundError as error:
    if error.name not in ("diffusers", "peft", "transformers", "tokenizers", "accelerate"):
        raise
    raise SystemExit(
        f"semantic fill needs {error.name}: pip install -r requirements-synthesis.txt"
    ) from error

from model.settings import option
from run_folder.flags import build_parser
from run_folder.session import open_run
from run_folder.settings import RunSettings
from synthesis.attention import LAYOUTS, POSITIONS
from synthesis.data import Triptychs
from synthesis.latents import FILL_MASKS, check_side

PROMPT = "left: a scene; right: the same scene, changed where it is marked"
MASK_LEVEL = 0.02  # how far from black or white a pixel of a black-and-white map may be, in [-1, 1]


@dataclass(frozen=True)
class FillRunSettings:
    """run"""

    model: str = option(
        "tiny",
        "folder or hub id of FLUX.1 Fill; tiny or small: random, built from a seed",
        moves_numbers=False,
    )
    data: str | None = option(
        None, "folder of triptychs, or a triptych.jsonl", moves_numbers=False, required=True
    )
    out: str | None = option(
        None,
        "the run's folder; one with checkpoints resumes",
        moves_numbers=False,
        required=True,
        metavar="SAVE_PATH",
    )
    seed: int = option(111, "seed of new weights, order, times, noise and drops")
    device: str | None = option(None, "torch device; default CUDA if there, else CPU", moves_numbers=False)
    workers: int = option(0, "data loader processes; never changes a number", moves_numbers=False)


@dataclass(frozen=True)
class SemanticSettings:
    """semantic cross-attention"""

    semantic_layers: int = option(1, "one after another; 0 = no semantics")
    semantic_heads: int = option(8)
    semantic_layout: str = option("33k", "33,088 or 16,897 parameters", choices=LAYOUTS)
    semantic_pos: str = option("local", "none cannot place anything", choices=POSITIONS)


@dataclass(frozen=True)
class TaskSettings:
    """task"""

    size: int = option(512, "panel side in pixels, a multiple of 16")
    fill_mask: str | None = option(
        None,
        "what is filled; default: semantic for black-and-white maps, else panel",
        choices=FILL_MASKS,
    )
    prompt: str = option(PROMPT, "the one prompt of all examples")
    text_drop: float = option(0.1, "share of examples with the empty prompt")
    semantic_drop: float = option(0.1, "share of examples without semantic map")


@dataclass(frozen=True)
class FillTrainingSettings:
    """training"""

    steps: int = option(1000, "in all, those before a resume included", moves_numbers=False)
    batch_size: int = option(1, "triptychs per step")
    optimizer: str = option("adamw", choices=tuple(OPTIMIZERS))
    lr: float | None = option(None, f"default by optimizer: {OPTIMIZERS}")
    lr_schedule: str = option(
        "constant",
        "cosine: rises over the first 20th of the steps, falls to 0 at the last",
        choices=LR_SCHEDULES,
    )
    fill_share: float | None = option(
        None, "share of the loss on tokens to be filled; default: all tokens count alike"
    )
    gradient_clip: float = option(0.5, "largest norm of all gradients together")
    lora_rank: int = option(32)
    lora_alpha: int = option(32)
    train_backbone: bool = option(
        False, "train the whole transformer too: for tiny and small, which know nothing"
    )
    dtype: str = option(
        "float32", "of the frozen weights; what is trained is always float32", choices=tuple(DTYPES)
    )
    gradient_checkpointing: bool = option(False, "less memory, more time", moves_numbers=False)
    log_every: int = option(10, "steps per log line", moves_numbers=False)
    save_every: int = option(500, "steps per checkpoint; one more at the end", moves_numbers=False)


@dataclass(frozen=True)
class FillSettings:
    """All settings of a run of semantic fill, by group."""

    run: FillRunSettings
    semantic: SemanticSettings
    task: TaskSettings
    training: FillTrainingSettings

    def options(self) -> Iterator[tuple[str, Field, Any]]:
        """(key in config.json, field, value) of every flag; --out is stored as save_path."""
        for name in GROUPS:
            group = getattr(self, name)
            for one in fields(group):
                yield "save_path" if one.name == "out" else one.name, one, getattr(group, one.name)

    def record(self) -> dict[str, Any]:
        """{key: value}, as a checkpoint's config.json has them."""
        return {key: value for key, _, value in self.options()}


GROUPS = {  # in the order of --help
    "run": FillRunSettings,
    "semantic": SemanticSettings,
    "task": TaskSettings,
    "training": FillTrainingSettings,
}


def parse_flags(argv: Sequence[str] | None = None) -> FillSettings:
    """Settings from a command line.

    Raises:
        SystemExit: 2, with the reason on standard error.
    """
    parser = build_parser(__doc__, GROUPS)
    parser.epilog, parser.formatter_class = LICENCE, argparse.ArgumentDefaultsHelpFormatter
    values = vars(parser.parse_args(argv))
    made = {
        name: group(**{one.name: values[one.name] for one in fields(group)}) for name, group in GROUPS.items()
    }
    return FillSettings(**made)


def check(settings: FillSettings) -> None:
    """Raises ValueError for flags no run can have."""
    values = settings.record()
    check_side(values["size"])
    for flag in ("steps", "batch_size", "log_every", "save_every"):
        if values[flag] < 1:
            raise ValueError(f"--{flag} {values[flag]}: expected 1 or more")
    for flag in ("text_drop", "semantic_drop", "fill_share"):
        if values[flag] is not None and not 0 <= values[flag] <= 1:
            raise ValueError(f"--{flag} {values[flag]}: expected a share between 0 and 1")
    for flag in ("gradient_clip", "lr"):
        if values[flag] is not None and not values[flag] > 0:
            raise ValueError(f"--{flag} {values[flag]}: expected a positive number")


def natural_fill_mask(dataset: Sequence[dict], looked_at: int = 16) -> str:
    """ "semantic" when the first maps are black-and-white masks and one of them has something white, else "panel"."""
    maps = [dataset[index]["semantic"] for index in range(min(looked_at, len(dataset)))]
    black_and_white = all((semantic.abs() > 1 - MASK_LEVEL).all() for semantic in maps)
    return "semantic" if black_and_white and any((semantic > 0).any() for semantic in maps) else "panel"


def check_resume(stored: dict[str, Any], settings: FillSettings, examples: int) -> None:
    """Raises ValueError when a run's flags or number of triptychs differ from its checkpoint's."""
    may_differ = {key for key, one, _ in settings.options() if not one.metadata["moves_numbers"]}
    if settings.training.lr_schedule == "cosine":
        may_differ -= {"steps"}  # the rate depends on the last one
    differing = [
        f"{key} {stored.get(key)} -> {value}"
        for key, value in {**settings.record(), "examples": examples}.items()
        if key not in may_differ and stored.get(key) != value
    ]
    if differing:
        raise ValueError(
            f"--out {settings.run.out} holds a run with other settings ({'; '.join(differing)}): "
            "repeat its flags to resume it, or choose another folder"
        )


def main(argv: Sequence[str] | None = None) -> None:
    settings = parse_flags(argv)
    check(settings)
    own = settings.run
    dataset = Triptychs(own.data, settings.task.size)
    with open_run(RunSettings(own.seed, own.out, own.device, own.workers), "train.log") as (device, logger):
        run(settings, dataset, device, logger)


def run(settings: FillSettings, dataset: Triptychs, device: torch.device, logger: Logger) -> None:
    """Start or resume a run and train it to its end."""
    if settings.task.fill_mask is None:
        settings = replace(settings, task=replace(settings.task, fill_mask=natural_fill_mask(dataset)))
    own, task, training, record = settings.run, settings.task, settings.training, settings.record()
    logger.info("flags: " + ", ".join(f"{key}={value}" for key, value in sorted(record.items())))
    logger.info(
        f"{len(dataset)} triptychs of {task.size} pixels; fill mask: {task.fill_mask}; device {device}"
    )
    sweep_checkpoints(own.out)
    done, folder = newest_intact_checkpoint(own.out, logger)
    if folder:
        check_resume(read_config(folder), settings, len(dataset))
    config = {**record, "examples": len(dataset)}
    system = assemble(own.model, config, device)
    if training.gradient_checkpointing:
        system.backbone.transformer.enable_gradient_checkpointing()
    optimizer = make_optimizer(training.optimizer, system.trainable(), training.lr)
    log_parameters(system, settings, logger)
    if folder:
        load_weights_into(system, folder, training.train_backbone)
        load_optimizer(optimizer, folder)
        logger.info(f"resumed {folder.name}")
    schedule = Schedule(**{name: record[name] for name in Schedule._fields})
    if done >= training.steps:
        logger.info(f"nothing to do: {done} steps are trained, --steps is {training.steps}")
        return
    train(
        system,
        dataset,
        optimizer,
        schedule,
        logger,
        first_step=done,
        workers=own.workers,
        save=lambda step: save_system(own.out, step, system, config, optimizer),
    )
    logger.info(f"done: checkpoints in {Path(own.out)}")


def log_parameters(system: FillSystem, settings: FillSettings, logger: Logger) -> None:
    """What is trained, counted, not assumed."""
    training, attention = settings.training, settings.semantic
    semantic = sum(parameter.numel() for parameter in system.attention.parameters())
    trained = sum(parameter.numel() for parameter in system.trainable())
    inside = f"LoRA (rank {training.lora_rank})" + (" and backbone" if training.train_backbone else "")
    logger.info(f"Added {trained - semantic} {inside} parameters to optimizer")
    logger.info(
        f"Added {semantic} semantic cross-attention parameters to optimizer: "
        f"mode {attention.semantic_layout}, positions {attention.semantic_pos}, "
        f"layers {attention.semantic_layers}, heads {attention.semantic_heads}"
    )


if __name__ == "__main__":
    main()
