"""Euler steps along the learned velocity, from noise at time 1 to the image at time 0."""

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux_fill import calculate_shift
from torch import Tensor

from synthesis.backbone import Backbone
from synthesis.flow import predict_velocity
from synthesis.fusion import SemanticModule
from synthesis.latents import Encoded
from synthesis.text import Prompt

THOUSANDTHS = 1000  # diffusers' timesteps are times in these


def euler_step(
    backbone: Backbone,
    attention: SemanticModule,
    noisy: Tensor,
    encoded: Encoded,
    prompt: Prompt,
    time: Tensor,
    next_time: Tensor,
    guidance: float,
) -> Tensor:
    """x at `next_time` from x at `time`: a function of tensors on one device that never waits for it.

    Args:
        noisy: [B, N, 64] in the backbone's type; the rest as in `predict_velocity`.
        time, next_time: scalars, float32, 1 = noise and 0 = image.

    Returns:
        [B, N, 64] in the backbone's type, rounded where diffusers' pipeline and scheduler round.
    """
    times = (time * THOUSANDTHS).expand(len(noisy)).to(noisy.dtype) / THOUSANDTHS
    velocity = predict_velocity(backbone, attention, noisy, encoded, prompt, times, guidance=guidance)
    return (noisy.float() + (next_time - time) * velocity.to(noisy.dtype)).to(noisy.dtype)


def sampling_times(
    scheduler: FlowMatchEulerDiscreteScheduler, steps: int, tokens: int, device: torch.device
) -> Tensor:
    """[steps + 1] times from 1 to 0 for a diptych of `tokens` tokens."""
    names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    known = [scheduler.config[name] for name in names if name in scheduler.config]
    levels = np.linspace(1.0, 1 / steps, steps)
    scheduler.set_timesteps(sigmas=levels, mu=calculate_shift(tokens, *known), device=device)
    return scheduler.sigmas
