"""The training loop of semantic fill; everything random is keyed by (seed, step), so a resumed run is the same run."""

import logging
import time
from collections.abc import Callable, Iterable

import torch
from diffusers.optimization import get_cosine_schedule_with_warmup
from torch.utils.data import DataLoader, Dataset, default_collate
from tqdm import tqdm

from dataset.randomness import keyed_generator
from run_folder.signals import ignore_stop_signals
from synthesis.choices import LR_SCHEDULES, OPTIMIZERS
from synthesis.debug import loss_with_shapes
from synthesis.guard import StepGuard
from synthesis.saver import RunSaver
from synthesis.system import FillSystem
from synthesis.training_step import Schedule, training_loss
from utils import on_terminal

DEBUG_STEPS = 2  # whose shapes --debug logs


def make_optimizer(
    name: str, parameters: Iterable[torch.nn.Parameter], learning_rate: float | None = None
) -> torch.optim.Optimizer:
    """AdamW or Prodigy (which finds its own step size; arXiv 2306.06101).

    Args:
        learning_rate: None for 1e-4 (adamw) or 1 (prodigy).

    Raises:
        ValueError: another name.
        ModuleNotFoundError: prodigyopt is not installed.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"--optimizer {name}: expected one of {', '.join(OPTIMIZERS)}")
    rate = OPTIMIZERS[name] if learning_rate is None else learning_rate
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01)
    try:
        from prodigyopt import Prodigy
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "--optimizer prodigy needs `pip install prodigyopt`, or use adamw"
        ) from error
    return Prodigy(parameters, lr=rate, weight_decay=0.01, use_bias_correction=True, safeguard_warmup=True)


def batch_indices(length: int, schedule: Schedule, first_step: int) -> list[list[int]]:
    """[[index]] of every step from `first_step` on: one shuffled epoch after another, batches run across their ends."""
    first, last = first_step * schedule.batch_size, schedule.steps * schedule.batch_size
    orders = {}
    for epoch in range(first // length, -(-last // length)):
        orders[epoch] = torch.randperm(
            length, generator=keyed_generator(schedule.seed, "order", epoch)
        ).tolist()
    indices = [orders[place // length][place % length] for place in range(first, last)]
    return [
        indices[place : place + schedule.batch_size] for place in range(0, len(indices), schedule.batch_size)
    ]


def make_loader(
    dataset: Dataset, schedule: Schedule, first_step: int, workers: int, is_pinned: bool
) -> DataLoader:
    """The batches of every step from `first_step` on; pinned ones go to a GPU without waiting for it."""
    return DataLoader(
        dataset,
        batch_sampler=batch_indices(len(dataset), schedule, first_step),
        num_workers=workers,
        collate_fn=default_collate,
        pin_memory=is_pinned,
        worker_init_fn=ignore_stop_signals,
    )


def make_lr_scheduler(
    optimizer: torch.optim.Optimizer, schedule: Schedule, first_step: int
) -> torch.optim.lr_scheduler.LambdaLR | None:
    """The learning rate's course from `first_step` on; None for a constant one.

    Raises:
        ValueError: another name.
    """
    if schedule.lr_schedule not in LR_SCHEDULES:
        raise ValueError(f"--lr_schedule {schedule.lr_schedule}: expected one of {', '.join(LR_SCHEDULES)}")
    if schedule.lr_schedule == "constant":
        return None
    return get_cosine_schedule_with_warmup(
        optimizer,
        num_warmup_steps=schedule.steps // 20,
        num_training_steps=schedule.steps,
        last_epoch=first_step - 1,
    )


def train(
    system: FillSystem,
    dataset: Dataset,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    logger: logging.Logger,
    *,
    first_step: int = 0,
    workers: int = 0,
    save: Callable[[int], None] | RunSaver | None = None,
) -> None:
    """Train LoRA and attention.

    Args:
        system: FillSystem.
        dataset: items {"visible", "target", "semantic": [3, S, S] in [-1, 1], "name"}.
        optimizer: over `system.trainable()`; after a resume as `load_optimizer` restored it.
        schedule: Schedule.
        logger: gets one line per `log_every` steps.
        first_step: steps done before, after a resume.
        workers: loader processes; no number depends on them.
        save: save(step) is called every `save_every` steps and at the end; a RunSaver also saves between them, stops
            the run if a signal asks to, and says what steps may be left out.

    Raises:
        Stopped: a signal asked to stop, and what was done is saved.
        FloatingPointError: the loss or a gradient is not finite; found when the losses are next read, at a log line or
            a checkpoint, and no parameter has moved from that step on.
    """
    is_pinned = system.backbone.transformer.device.type == "cuda"
    loader = make_loader(dataset, schedule, first_step, workers, is_pinned)
    lr_scheduler = make_lr_scheduler(optimizer, schedule, first_step)
    parameters, started = system.trainable(), time.perf_counter()
    saver = save if isinstance(save, RunSaver) else None
    guard = StepGuard(parameters, saver.left_out if saver else None)
    steps = range(first_step, schedule.steps)
    for step, batch in zip(tqdm(steps, disable=not on_terminal(), unit="step"), loader, strict=True):
        rate = optimizer.param_groups[0]["lr"]
        debugger = logger if schedule.debug and step < first_step + DEBUG_STEPS else None
        train_step(system, batch, optimizer, schedule, step, guard=guard, debugger=debugger)
        if lr_scheduler:
            lr_scheduler.step()
        done = step + 1
        is_logged = done % schedule.log_every == 0 or done == schedule.steps
        is_saved = save and (done % schedule.save_every == 0 or done == schedule.steps)
        is_asked = saver is not None and saver.is_asked  # once: a signal may come at any line
        is_in_between = saver and not is_saved and (is_asked or saver.is_due(done))
        seen = guard.read(done) if is_logged or is_saved or is_in_between else []
        if is_logged:
            seconds = (time.perf_counter() - started) / max(1, len(seen))
            log_progress(system, schedule, logger, done, seen, f"lr {rate:.2e}", f"{seconds:.2f} s/step")
            guard.clear()
            started = time.perf_counter()
        if is_saved:
            save(done)
        elif is_in_between:
            saver.in_between(done)
        if is_asked:
            saver.stop(done)


def train_step(
    system: FillSystem,
    batch: dict[str, torch.Tensor | list[str]],
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    step: int,
    *,
    guard: StepGuard,
    debugger: logging.Logger | None = None,
) -> None:
    """One optimiser step, taken where loss and gradient are finite; `debugger`: told the shapes, None: not."""
    if debugger is not None:
        loss = loss_with_shapes(system, batch, schedule, step, debugger)
    else:
        loss = training_loss(system, batch, schedule, step)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(guard.parameters, schedule.gradient_clip)
    guard.step(optimizer, loss, norm, batch.get("name", ()))
    optimizer.zero_grad(set_to_none=True)


def log_progress(
    system: FillSystem,
    schedule: Schedule,
    logger: logging.Logger,
    done: int,
    seen: list[list[float]],
    rate: str,
    speed: str,
) -> None:
    """The lines of a log interval: mean loss, last gradient norm, and how far each semantic layer has opened.

    Args:
        done: steps done.
        seen: [[loss, gradient norm]] of the interval's steps that were taken.
    """
    if not seen:
        logger.info(f"step {done}/{schedule.steps}: every step since the last line was left out")
        return
    loss = sum(step_loss for step_loss, _ in seen) / len(seen)
    logger.info(
        f"step {done}/{schedule.steps} loss {loss:.4f} gradient norm {seen[-1][1]:.3f} {rate} "
        f"semantic scale {system.attention.mean_scale():.3e} {speed}"
    )
    logger.info(f"[Step {done}] Loss: {loss:.4f}")
    for layer, scale in enumerate(system.attention.scales().tolist()):
        logger.info(f"Layer {layer} scale: {scale:.3f}")
