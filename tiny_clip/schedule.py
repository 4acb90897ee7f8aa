"""The course of the pretraining: its stages, from cheap to full steps, and the learning rate."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

WARM_UP_STEPS = 100
# The learning rate is constant before, and falls linearly to zero over this last part of the run.
DECAY_SHARE = 0.4


@dataclass(frozen=True)
class Stage:
    """A part of the run: share of all steps, image sizes in pixels (in turn), patches kept, images per process."""

    share: float
    image_sizes: tuple
    kept_patches: int | None
    batch: int


# Cheap steps first; then around the size the demo runs at, in the end with every patch.
STAGES = (
    Stage(0.47, (64,), 40, 96),
    Stage(0.46, (128, 112, 128, 144), 100, 64),
    Stage(0.07, (128,), None, 48),
)


def stage_at(step: int, steps: int) -> Stage:
    """The stage of a step, by the shares."""
    end = 0.0
    for stage in STAGES:
        end += stage.share
        if step < round(end * steps):
            return stage
    return STAGES[-1]


def schedule(step: int, steps: int) -> float:
    """Factor of the learning rate: linear warm-up, constant, linear decay to zero."""
    warm_up = min(WARM_UP_STEPS, steps // 10 + 1)
    return min((step + 1) / warm_up, 1.0, (steps - step) / (DECAY_SHARE * steps))


def set_learning_rate(optimizers: Sequence[torch.optim.Optimizer], rate: float) -> None:
    """Give every parameter group of every optimiser this rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
