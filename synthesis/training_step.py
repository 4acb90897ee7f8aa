"""One training step of semantic fill up to its loss; everything random is keyed by (seed, step)."""

from typing import NamedTuple

import torch

from dataset.randomness import keyed_generator
from synthesis.flow import flow_matching_loss, sample_times
from synthesis.latents import Encoded, encode_triptych, fill_mask_of
from synthesis.system import FillSystem
from synthesis.text import Prompt


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
    debug: bool = False  # log the shapes of the first two steps


class StepInputs(NamedTuple):
    """What a step's loss is computed from, all on the system's device."""

    encoded: Encoded
    prompt: Prompt
    times: torch.Tensor  # [B]
    noise: torch.Tensor  # [B, N, 64]
    keep_semantic: torch.Tensor  # [B] booleans


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
    return loss_of(system, step_inputs(system, batch, schedule, step), schedule)


def step_inputs(
    system: FillSystem, batch: dict[str, torch.Tensor | list[str]], schedule: Schedule, step: int
) -> StepInputs:
    """Encode a batch and draw times, noise and drops on the CPU, so that a run's numbers are those of any device.

    Arguments as in `training_loss`. What is drawn is sent to the device without waiting until it is there.
    """
    device = system.backbone.transformer.device
    visible, target, semantic = (
        batch[name].to(device, non_blocking=True) for name in ("visible", "target", "semantic")
    )
    generator = keyed_generator(schedule.seed, "step", step)
    encoded = encode_triptych(
        system.backbone.vae, visible, target, semantic, fill_mask_of(semantic, schedule.fill_mask), generator
    )
    times = sample_times(len(visible), generator).to(device, non_blocking=True)
    noise = torch.randn(encoded.clean.shape, generator=generator).to(device, non_blocking=True)
    drops = torch.rand(2, len(visible), generator=generator)
    texts = ["" if drop < schedule.text_drop else schedule.prompt for drop in drops[0]]
    keep_semantic = (drops[1] >= schedule.semantic_drop).to(device, non_blocking=True)
    return StepInputs(encoded, system.prompts.batch(texts), times, noise, keep_semantic)


def loss_of(system: FillSystem, inputs: StepInputs, schedule: Schedule) -> torch.Tensor:
    """The loss of encoded inputs, a scalar: on the device alone, and no shape depends on a value."""
    return flow_matching_loss(system.backbone, system.attention, *inputs, schedule.fill_share)
