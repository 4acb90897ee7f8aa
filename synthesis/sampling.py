"""Sampling: Euler steps from noise, bit for bit diffusers' FluxFillPipeline, with the semantic map brought in."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import FluxFillPipeline
from torch import Tensor

from synthesis.attention import SemanticLayers
from synthesis.choices import TOKEN_PIXELS, check_side
from synthesis.euler import euler_step, sampling_times
from synthesis.latents import (
    Encoded,
    diptych_mask,
    diptych_of,
    image_ids,
    pack,
    places,
    semantic_tokens,
    unpack,
)
from synthesis.text import Prompt
from synthesis.weights import load_system

LATENT_CHANNELS, LATENT_PIXELS = 16, 8


class Start(NamedTuple):
    """Where sampling begins, on the device."""

    noisy: Tensor  # [B, N, 64] noise in the backbone's type
    encoded: Encoded  # without `clean`, which is to be found
    prompt: Prompt


def load_filler(model: Path | str, checkpoint: Path | str, device: torch.device | str = "cpu") -> "Filler":
    """A Filler with a checkpoint's weights; arguments and errors of `load_system`."""
    system, config = load_system(model, checkpoint, device)
    return Filler(system, config["prompt"])


class Filler:
    """Fills right panels. One generator per image: what an image becomes does not depend on its batch's other seeds."""

    def __init__(self, system, prompt):
        """
        Args:
            system: FillSystem.
            prompt: the text used when `fill` is given none.
        """
        backbone = system.backbone
        self.system, self.prompt = system, prompt
        self.pipeline = FluxFillPipeline(
            scheduler=backbone.scheduler,
            vae=backbone.vae,
            transformer=backbone.transformer,
            text_encoder=None,
            tokenizer=None,
            text_encoder_2=None,
            tokenizer_2=None,
        )

    def fill(
        self,
        visible: Tensor,
        semantic: Tensor | None,
        fill_mask: Tensor,
        prompt: str | None = None,
        seeds: Sequence[int] = (0,),
        steps: int = 28,
        guidance: float | None = None,
    ) -> Tensor:
        """Sample target panels by Euler steps from noise.

        Args:
            visible: [B, 3, S, S] in [-1, 1]; also what the right panel holds outside `fill_mask`.
            semantic: [B, 3, H, H] in [-1, 1]; None samples without injection.
            fill_mask: [B, 1, S, S] of 0 and 1 on the right panel, 1 = fill.
            prompt: None for the training prompt; the text encoders are loaded for a text not known yet.
            seeds: B integers.
            steps: Euler steps.
            guidance: None for the backbone's own.

        Returns:
            [B, 3, S, S] in [-1, 1] on the system's device; pixels outside the mask are the model's too, composite them
            if they must stay.

        Raises:
            ValueError: sizes that do not fit each other or the token grid, or a mask of other values.
        """
        check_inputs(visible, semantic, fill_mask, seeds, steps)
        return self.decode(
            self.denoise(self.start(visible, semantic, fill_mask, prompt, seeds), steps, guidance)
        )

    @torch.no_grad()
    def start(
        self,
        visible: Tensor,
        semantic: Tensor | None,
        fill_mask: Tensor,
        prompt: str | None,
        seeds: Sequence[int],
    ) -> Start:
        """Noise [B, N, 64] and condition of a batch; arguments, their shapes and units as in `fill`."""
        batch, _, side, _ = visible.shape
        backbone, _, prompts = self.system
        device, dtype, rows = backbone.transformer.device, backbone.dtype, side // TOKEN_PIXELS
        visible, mask = visible.to(device), diptych_mask(fill_mask.to(device).float())
        generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        shape = (1, LATENT_CHANNELS, side // LATENT_PIXELS, 2 * side // LATENT_PIXELS)
        for generator in generators:
            # The pipeline's noise of the unmasked diptych, which leaves no trace at t = 1.
            torch.randn(shape, generator=generator, dtype=dtype)
        noise = torch.cat([torch.randn(shape, generator=generator, dtype=dtype) for generator in generators])
        # As the pipeline's preprocessing rounds it.
        diptych = 2 * ((diptych_of(visible, visible) + 1) / 2) - 1
        packed_mask, masked = self.pipeline.prepare_mask_latents(
            mask,
            (diptych * (1 - mask)).to(dtype),
            batch,
            LATENT_CHANNELS,
            1,
            side,
            2 * side,
            dtype,
            device,
            generators,
        )
        tokens, semantic_places = self.encode_semantic(semantic, side, seeds)
        encoded = Encoded(
            clean=None,
            condition=torch.cat((masked, packed_mask), dim=-1),
            semantic=tokens,
            token_places=places(rows, rows, panels=2, device=device),
            semantic_places=semantic_places,
            ids=image_ids(rows, 2 * rows, device=device),
        )
        prompt = prompts.batch([self.prompt if prompt is None else prompt] * batch)
        return Start(pack(noise).to(device), encoded, prompt)

    def encode_semantic(
        self, semantic: Tensor | None, side: int, seeds: Sequence[int]
    ) -> tuple[Tensor | None, Tensor | None]:
        """(tokens [B, M, 64], places [M, 2]) of maps, one by one: a codec's noise is of the image's own seed."""
        if semantic is None:
            return None, None
        vae, device = self.system.backbone.vae, self.system.backbone.transformer.device
        encoded = [
            semantic_tokens(vae, one[None].to(device), side, torch.Generator().manual_seed(int(seed)))
            for one, seed in zip(semantic, seeds, strict=True)
        ]
        return torch.cat([tokens for tokens, _ in encoded]), encoded[0][1]

    @torch.no_grad()
    def denoise(
        self,
        start: Start,
        steps: int,
        guidance: float | None = None,
        watch: Callable[[Tensor], None] | None = None,
    ) -> Tensor:
        """[B, N, 64] the image's tokens after all steps.

        Args:
            watch: is called with what enters each step.
        """
        backbone, attention, _ = self.system
        attention = SemanticLayers(0) if start.encoded.semantic is None else attention
        guidance = backbone.sampling_guidance if guidance is None else guidance
        noisy, encoded, prompt = start
        times = sampling_times(backbone.scheduler, steps, noisy.shape[1], noisy.device)
        for time, next_time in zip(times[:-1], times[1:], strict=True):
            if watch:
                watch(noisy)
            noisy = euler_step(backbone, attention, noisy, encoded, prompt, time, next_time, guidance)
        return noisy

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Right panels [B, 3, S, S] in [-1, 1] of a diptych's tokens."""
        vae, rows = self.system.backbone.vae, round((tokens.shape[1] / 2) ** 0.5)
        latents = unpack(tokens, rows, 2 * rows) / vae.config.scaling_factor + vae.config.shift_factor
        images = (vae.decode(latents, return_dict=False)[0] * 0.5 + 0.5).clamp(0, 1)
        return images[..., rows * TOKEN_PIXELS :].float() * 2 - 1


def check_inputs(
    visible: Tensor, semantic: Tensor | None, fill_mask: Tensor, seeds: Sequence[int], steps: int
) -> None:
    """Raises ValueError for arguments of `Filler.fill` that do not fit."""
    batch, _, side, width = visible.shape
    check_side(side, "visible panel of side")
    if width != side:
        raise ValueError(f"visible panels are {side} x {width} pixels: expected squares")
    if fill_mask.shape != (batch, 1, side, side):
        raise ValueError(f"fill_mask is {tuple(fill_mask.shape)}: expected {(batch, 1, side, side)}")
    if not ((fill_mask == 0) | (fill_mask == 1)).all():
        raise ValueError("fill_mask has values other than 0 and 1: threshold it first (1 = fill)")
    if semantic is not None and (len(semantic) != batch or semantic.shape[-1] != semantic.shape[-2]):
        raise ValueError(f"semantic is {tuple(semantic.shape)}: expected {batch} square maps of 3 channels")
    if len(seeds) != batch:
        raise ValueError(f"{len(seeds)} seeds for {batch} images: give one per image")
    if steps < 1:
        raise ValueError(f"steps is {steps}: expected 1 or more")
