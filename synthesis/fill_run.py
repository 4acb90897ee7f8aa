"""One run of semantic fill, from its settings to its last checkpoint."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from logging import Logger
from pathlib import Path

import torch

from files.fingerprints import fingerprint
from run_folder.config_file import write_config
from run_folder.guarded_step import MOST_LEFT_OUT, LeftOut
from run_folder.manifest import add_start, start
from run_folder.signals import StopSignals
from synthesis.data import Triptychs
from synthesis.memory import estimate_memory, log_memory
from synthesis.saver import STEPS_LEFT_OUT, RunSaver
from synthesis.settings import GROUPS, FillSettings, check_resume, for_its_model
from synthesis.system import FillSystem, assemble, semantic_mode_of
from synthesis.training import Schedule, make_optimizer, train
from synthesis.weights import (
    load_optimizer,
    load_weights_into,
    newest_intact_checkpoint,
    read_config,
    sweep_checkpoints,
)

MASK_LEVEL = 0.02  # how far from black or white a pixel of a black-and-white map may be, in [-1, 1]


def natural_fill_mask(dataset: Sequence[dict], looked_at: int = 16) -> str:
    """ "semantic" when the first maps are black-and-white masks and one of them has something white, else "panel"."""
    maps = [dataset[index]["semantic"] for index in range(min(looked_at, len(dataset)))]
    black_and_white = all((semantic.abs() > 1 - MASK_LEVEL).all() for semantic in maps)
    return "semantic" if black_and_white and any((semantic > 0).any() for semantic in maps) else "panel"


def run(
    settings: FillSettings,
    dataset: Triptychs,
    device: torch.device,
    logger: Logger,
    signals: StopSignals | None = None,
) -> None:
    """Start or resume a run and train it to its end; `signals` None: nobody listens to them."""
    sweep_checkpoints(settings.run.out)
    done, folder = newest_intact_checkpoint(settings.run.out, logger)
    stored = read_config(folder) if folder else {}
    settings = for_its_model(settings, stored)
    if settings.task.fill_mask is None:
        settings = replace(settings, task=replace(settings.task, fill_mask=natural_fill_mask(dataset)))
    own, task, training, record = settings.run, settings.task, settings.training, settings.record()
    logger.info("flags: " + ", ".join(f"{key}={value}" for key, value in sorted(record.items())))
    logger.info(
        f"{len(dataset)} triptychs of {task.size} pixels; fill mask: {task.fill_mask}; device {device}"
    )
    if folder:
        check_resume(stored, settings, len(dataset))
    write_start(settings, dataset, device, logger)
    config = {**record, "examples": len(dataset)}
    log_memory(estimate_memory(own.model, config), device, logger)
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
    left_out, left_before = None, stored.get(STEPS_LEFT_OUT, 0)
    if training.on_nan == "skip":
        left_out = LeftOut(max(0, MOST_LEFT_OUT - left_before), logger.warning)
    elif left_before:  # these stay on record
        config[STEPS_LEFT_OUT] = left_before
    saver = RunSaver(own.out, system, config, optimizer, schedule, signals=signals, left_out=left_out)
    with signals.finishing() if signals is not None else nullcontext():
        train(system, dataset, optimizer, schedule, logger, first_step=done, workers=own.workers, save=saver)
    logger.info(f"done: checkpoints in {Path(own.out)}")


def write_start(settings: FillSettings, dataset: Triptychs, device: torch.device, logger: Logger) -> None:
    """Write the run's config.yaml, and its manifest.json with one start more."""
    found = hashlib.sha256()
    for entry in dataset.entries:
        prints = {panel: fingerprint(file)[1].hex() for panel, file in sorted(entry.files.items())}
        found.update(json.dumps([entry.name, prints]).encode())
    write_config(settings.run.out, [getattr(settings, name) for name in GROUPS], "train_semantic_fill.py")
    rows = {"rows": len(dataset), "triptychs_sha256": found.hexdigest()}
    made_of = {"run": None, "kind": "semantic fill", "model": settings.run.model, "rows": rows}
    add_start(Path(settings.run.out), made_of, start(settings.argv, device), logger)


def log_parameters(system: FillSystem, settings: FillSettings, logger: Logger) -> None:
    """What is trained, counted, not assumed."""
    training, semantic = settings.training, settings.semantic
    mode = semantic_mode_of(settings.record())
    own = sum(parameter.numel() for parameter in system.attention.parameters())
    trained = sum(parameter.numel() for parameter in system.trainable())
    logger.info(f"[INFO] Semantic mode: {mode}")
    if mode == "cross_attention":
        logger.info(
            f"[INFO] Using Cross-Attention with {len(system.attention)} layers, {semantic.semantic_heads} heads"
        )
        logger.info(f"cross-attention: layout {semantic.semantic_layout}, positions {semantic.semantic_pos}")
    inside = f"LoRA (rank {training.lora_rank})" + (" and backbone" if training.train_backbone else "")
    logger.info(f"Added {trained - own} {inside} parameters to optimizer")
    what = {"cross_attention": "semantic cross-attention", "fusion": "semantic fusion", "none": "semantic"}
    logger.info(f"[INFO] Added {own} {what[mode]} parameters to optimizer")
