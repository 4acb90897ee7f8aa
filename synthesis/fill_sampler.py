"""Samples of semantic fill for what synthesis/generate.py drafts."""

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from synthesis.codec import DctCodec
from synthesis.data import to_tensor
from synthesis.generate import back_to_size, resized
from synthesis.latents import fill_mask_of


class FillSampler:
    """Samples by semantic fill, and sham samples by its codec alone."""

    def __init__(self, filler, size, fill_mask, prompt, steps):
        self.filler, self.size, self.fill_mask, self.prompt, self.steps = (
            filler,
            size,
            fill_mask,
            prompt,
            steps,
        )

    def __call__(self, drafts):
        """RGB bytes [H, W, 3] per draft, of its source's size; drafts are all sham or all not."""
        visible = torch.stack(
            [to_tensor(resized(draft.source, self.size)) for draft in drafts]
        )  # [B, 3, S, S]
        if drafts[0].item.is_sham:
            samples = codec_round_trip(self.filler.pipeline.vae, visible)
        else:
            maps = [np.repeat(draft.label[..., None], 3, axis=-1).astype(np.uint8) * 255 for draft in drafts]
            semantic = torch.stack([to_tensor(resized(pixels, self.size, nearest=True)) for pixels in maps])
            seeds = [int(draft.rng.integers(2**31)) for draft in drafts]
            samples = self.filler.fill(
                visible, semantic, fill_mask_of(semantic, self.fill_mask), self.prompt, seeds, self.steps
            )
        return [back_to_size(sample, draft.source) for sample, draft in zip(samples, drafts, strict=True)]


@torch.no_grad()
def codec_round_trip(vae: AutoencoderKL | DctCodec, images: Tensor) -> Tensor:
    """[B, 3, S, S] in [-1, 1] encoded and decoded, without anything generated."""
    latents = vae.encode(images.to(vae.device, vae.dtype)).latent_dist.mode()
    return vae.decode(latents).sample
