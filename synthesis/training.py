"""The training loop of semantic fill; everything random is keyed by (seed, step), so a resumed run is the same run."""

import logging
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from diffusers.optimization import get_cosine_schedule_with_warmup
from torch.utils.data import DataLoader, Dataset, default_collate
from tqdm import tqdm

from dataset.randomness import keyed_generator
from synthesis.flow import flow_matching_loss, sample_times
from synthesis.latents import encode_triptych, fill_mask_of
from synthesis.system import FillSystem
from utils import on_terminal

OPTIMIZERS = {"adamw": 1e-4, "prodigy": 1.0}  # name: learning rate
LR_SCHEDULES = (
    "constant",
    "cosine",
)  # cosine rises over the first 20th of the steps and falls to 0 at the last


class Schedule(NamedTuple):
    """How long and on what a run trains."""

    steps: int  # in all, those before a resume included
    batch_size: int
    seed: int
    prompt: str
    fill_mask: str  # "semantic" or "panel"
    text_drop: float = 0.1  # share of examples that see the empty prompt
    semantic_drop: float = 0.1  # share of examples without injection
    fill_share: float | None = None  # see flow_matching_loss
    lr_schedule: str = "constant"  # or "cosine", see LR_SCHEDULES
    gradient_clip: float = 0.5  # largest norm of all gradients together
    log_every: int = 10
    save_every: int = 500


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


def training_loss(
    system: FillSystem, batch: dict[str, torch.Tensor | list[str]], schedule: Schedule, step: int
) -> torch.Tensor:
    """The loss of one step.

    Args:
        system: FillSystem.
        batch: {"visible", "target", "semantic": [B, 3, S, S] in [-1, 1], ...}.
        schedule: Schedule.
        step: keys times, noise and drops.

    Returns:
        scalar
    """
    device = system.backbone.transformer.device
    visible, target, semantic = (batch[name].to(device) for name in ("visible", "target", "semantic"))
    generator = keyed_generator(schedule.seed, "step", step)
    encoded = encode_triptych(
        system.backbone.vae, visible, target, semantic, fill_mask_of(semantic, schedule.fill_mask), generator
    )
    times = sample_times(len(visible), generator).to(device)
    noise = torch.randn(encoded.clean.shape, generator=generator).to(device)
    drops = torch.rand(2, len(visible), generator=generator)
    texts = ["" if drop < schedule.text_drop else schedule.prompt for drop in drops[0]]
    keep_semantic = (drops[1] >= schedule.semantic_drop).to(device)
    return flow_matching_loss(
        system.backbone,
        system.attention,
        encoded,
        system.prompts.batch(texts),
        times,
        noise,
        keep_semantic,
        schedule.fill_share,
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
    save: Callable[[int], None] | None = None,
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
        save: save(step) is called every `save_every` steps and at the end.

    Raises:
        FloatingPointError: the loss or a gradient is not finite.
    """
    loader = DataLoader(
        dataset,
        batch_sampler=batch_indices(len(dataset), schedule, first_step),
        num_workers=workers,
        collate_fn=default_collate,
    )
    lr_scheduler = make_lr_scheduler(optimizer, schedule, first_step)
    parameters, losses, started = system.trainable(), [], time.perf_counter()
    steps = range(first_step, schedule.steps)
    for step, batch in zip(tqdm(steps, disable=not on_terminal(), unit="step"), loader, strict=True):
        loss = training_loss(system, batch, schedule, step)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, schedule.gradient_clip)
        if not (loss.isfinite() and norm.isfinite()):
            raise FloatingPointError(
                f"step {step + 1}: loss {loss.item()}, gradient norm {norm.item()}; lower --lr, or train in float32"
            )
        rate = optimizer.param_groups[0]["lr"]
        optimizer.step()
        if lr_scheduler:
            lr_scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        done = step + 1
        if done % schedule.log_every == 0 or done == schedule.steps:
            seconds = (time.perf_counter() - started) / len(losses)
            logger.info(
                f"step {done}/{schedule.steps} loss {sum(losses) / len(losses):.4f} gradient norm {norm.item():.3f} "
                f"lr {rate:.2e} semantic scale {system.attention.mean_scale():.3e} "
                f"{seconds:.2f} s/step"
            )
            losses, started = [], time.perf_counter()
        if save and (done % schedule.save_every == 0 or done == schedule.steps):
            save(done)
