"""Sampling: diffusers' FluxFillPipeline as it is, with the semantic map injected by the hook."""

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import FluxFillPipeline
from torch import Tensor

from synthesis.injection import semantic_injection
from synthesis.latents import TOKEN_PIXELS, check_side, diptych_mask, places, semantic_tokens
from synthesis.weights import load_system


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
        self.pipeline.set_progress_bar_config(disable=True)

    @torch.no_grad()
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
        batch, _, side, _ = visible.shape
        check_inputs(visible, semantic, fill_mask, seeds, steps)
        backbone, attention, prompts = self.system
        device = backbone.transformer.device
        visible, fill_mask = visible.to(device), fill_mask.to(device)
        encoded = prompts.batch([self.prompt if prompt is None else prompt] * batch)
        arguments = {
            "image": (torch.cat((visible, visible), dim=-1) + 1) / 2,
            "mask_image": diptych_mask(fill_mask.float()),
            "height": side,
            "width": 2 * side,
            "num_inference_steps": steps,
            "guidance_scale": backbone.sampling_guidance if guidance is None else guidance,
            "prompt_embeds": encoded.tokens,
            "pooled_prompt_embeds": encoded.pooled,
            "generator": [torch.Generator().manual_seed(int(seed)) for seed in seeds],
            "output_type": "pt",
        }
        if semantic is None:
            images = self.pipeline(**arguments).images
        else:
            own_seeds = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
            encoded = [  # one by one: a codec with noise draws it from the image's own seed
                semantic_tokens(backbone.vae, one[None].to(device), side, generator)
                for one, generator in zip(semantic, own_seeds, strict=True)
            ]
            tokens, semantic_places = torch.cat([own for own, _ in encoded]), encoded[0][1]
            rows = side // TOKEN_PIXELS
            token_places = places(rows, rows, panels=2).to(device)
            with semantic_injection(backbone.transformer, attention, tokens, token_places, semantic_places):
                images = self.pipeline(**arguments).images
        return images[..., side:].float() * 2 - 1  # [B, 3, S, S]


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
