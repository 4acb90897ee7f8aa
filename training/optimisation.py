"""Optimisers, learning-rate schedules, and what trains while all else is frozen."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

ATTENTIONS = ("text_cross_attn", "image_cross_attn")  # keys of the modules that --cross_attn_lr is for


@contextmanager
def only_training(model: nn.Module, modules: dict[str, nn.Module]) -> Iterator[None]:
    """Training mode for `modules` ({key: module} of the model) alone, and gradients for nothing else.

    Afterwards the whole model is in evaluation mode, and what wanted gradients before does so again.
    """
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval().requires_grad_(False)
    for module in modules.values():
        module.train().requires_grad_(True)
    try:
        yield
    finally:
        model.eval().requires_grad_(False)
        for parameter in wanted:
            parameter.requires_grad_(True)


def parameters_of(modules: dict[str, nn.Module]) -> list[nn.Parameter]:
    """All parameters of {key: module}."""
    return [parameter for module in modules.values() for parameter in module.parameters()]


def parameter_groups(
    modules: dict[str, nn.Module], lr: float, attention_lr: float | None = None
) -> list[dict[str, Any]]:
    """What an optimiser takes: all parameters of {key: module} as one group, or the attentions' as a second one.

    Schedules are factors on every group's own rate.

    Args:
        attention_lr: of `--cross_attn_lr`; None for that of all.
    """
    if attention_lr is None:
        return [{"params": parameters_of(modules), "lr": lr}]
    apart = {key: module for key, module in modules.items() if key in ATTENTIONS}
    others = {key: module for key, module in modules.items() if key not in apart}
    return [
        {"params": parameters_of(group), "lr": rate} for group, rate in ((others, lr), (apart, attention_lr))
    ]


def adam(
    modules: dict[str, nn.Module], lr: float, fused: bool = False, attention_lr: float | None = None
) -> torch.optim.Adam:
    """AA-CLIP's optimiser over the parameters of some modules; `fused`: its step as one kernel (`--fused_adam`)."""
    groups = parameter_groups(modules, lr, attention_lr)
    return torch.optim.Adam(groups, lr=lr, betas=(0.5, 0.999), fused=fused or None)


def image_schedule(
    milestones: Sequence[float], optimizer: torch.optim.Optimizer, epochs: int, steps_per_epoch: int
) -> torch.optim.lr_scheduler.MultiStepLR:
    """Stage 2's learning rate: halved at the milestones (as `milestones_in_steps` reads them), counted in batches."""
    steps = milestones_in_steps(milestones, epochs * steps_per_epoch)
    return torch.optim.lr_scheduler.MultiStepLR(optimizer, steps, gamma=0.5)


def milestones_in_steps(milestones: Sequence[float], steps: int) -> list[int]:
    """LR milestones as batches: values all below 1 are fractions of the run's `steps`.

    Raises:
        ValueError: fractions and steps are mixed, or a value is not positive.
    """
    if all(0 < value < 1 for value in milestones):
        return [max(1, round(value * steps)) for value in milestones]
    if all(value >= 1 and value == int(value) for value in milestones):
        return [int(value) for value in milestones]
    raise ValueError(
        f"--milestones {milestones}: give whole steps (16000 32000) or fractions of the run (0.5 0.8)"
    )
