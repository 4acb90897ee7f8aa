"""From panels to the tokens FLUX.1-Fill works on: diptychs, packing, masks, ids."""

from typing import NamedTuple

import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from synthesis.attention import places
from synthesis.choices import FILL_MASKS, TOKEN_PIXELS, check_side
from synthesis.codec import DctCodec

CONDITION_IMAGE = 64  # the condition's channels of the masked diptych; those of the mask follow


class Encoded(NamedTuple):
    """A batch ready for the transformer; float32 in training."""

    clean: torch.Tensor | None  # [B, N, 64] x_0, the diptych [visible | target]; None in sampling
    condition: torch.Tensor  # [B, N, 320] masked diptych (64) and mask (256)
    semantic: torch.Tensor | None  # [B, M, 64]; None: sampling without a map
    token_places: torch.Tensor  # [N, 2]
    semantic_places: torch.Tensor | None  # [M, 2]
    ids: torch.Tensor  # [N, 3] position ids of the diptych's tokens


def pack(latents: torch.Tensor) -> torch.Tensor:
    """[B, C, H, W] -> [B, HW/4, 4C]: 2 x 2 latents become one token, channel 4c + 2 * row + column."""
    batch, channels, height, width = latents.shape
    blocks = latents.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return blocks.permute(0, 2, 4, 1, 3, 5).reshape(batch, height * width // 4, 4 * channels)


def unpack(tokens: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """[B, rows * columns, 4C] -> [B, C, 2 * rows, 2 * columns], the inverse of `pack`."""
    blocks = tokens.reshape(tokens.shape[0], rows, columns, -1, 2, 2)
    return blocks.permute(0, 3, 1, 4, 2, 5).reshape(tokens.shape[0], -1, 2 * rows, 2 * columns)


def pack_mask(mask: torch.Tensor) -> torch.Tensor:
    """[B, 1, 16R, 16K] pixels -> [B, RK, 256]: all pixels of a token, channel (8 sy + sx) * 4 + 2 * row + column."""
    batch, _, height, width = mask.shape
    pixels = mask.reshape(batch, height // 8, 8, width // 8, 8).permute(0, 2, 4, 1, 3)
    return pack(pixels.reshape(batch, 64, height // 8, width // 8))


def image_ids(rows: int, columns: int, device: torch.device | None = None) -> torch.Tensor:
    """[rows * columns, 3] position ids of a packed grid: 0, row, column."""
    row, column = torch.meshgrid(
        torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij"
    )
    return torch.stack((torch.zeros_like(row), row, column), dim=-1).flatten(0, 1).float()


def filled_tokens(condition: torch.Tensor) -> torch.Tensor:
    """[B, N, 320] condition -> [B, N] booleans: the tokens with a pixel to be filled."""
    return condition[..., CONDITION_IMAGE:].amax(dim=-1) > 0


def fill_mask_of(semantic: torch.Tensor, mode: str) -> torch.Tensor:
    """Which pixels of the right panel are to be filled.

    Args:
        semantic: [B, 3, S, S] in [-1, 1].
        mode: "semantic" (where the map is brighter than mid grey: a defect mask) or "panel" (everywhere).

    Returns:
        [B, 1, S, S] of 0 and 1, float.

    Raises:
        ValueError: another mode.
    """
    if mode == "panel":
        return torch.ones_like(semantic[:, :1])
    if mode == "semantic":
        return (semantic.mean(1, keepdim=True) > 0).to(semantic.dtype)
    raise ValueError(f"--fill_mask {mode}: expected one of {', '.join(FILL_MASKS)}")


def diptych_mask(fill_mask: torch.Tensor) -> torch.Tensor:
    """[B, 1, S, S] on the right panel -> [B, 1, S, 2S]: nothing of the left panel is filled."""
    return torch.cat((torch.zeros_like(fill_mask), fill_mask), dim=-1)


def diptych_of(visible: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Two panels [B, 3, S, S] -> [B, 3, S, 2S]."""
    return torch.cat((visible, target), dim=-1)


def sample_of(
    distribution: DiagonalGaussianDistribution, generator: torch.Generator | None = None
) -> torch.Tensor:
    """The codec's latents [B, 16, h, w], noise drawn as diffusers draws it but sent to the device without a wait."""
    mean = distribution.mean
    if generator is None:
        return distribution.sample()
    noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype)
    return mean + distribution.std * noise.to(mean.device, non_blocking=True)


def encode_images(
    vae: AutoencoderKL | DctCodec, images: torch.Tensor, generator: torch.Generator | None = None
) -> torch.Tensor:
    """[B, 3, H, W] in [-1, 1] -> tokens [B, HW/256, 64], float32, shifted and scaled as the transformer expects."""
    latents = sample_of(vae.encode(images.to(vae.dtype)).latent_dist, generator)
    return pack((latents.float() - vae.config.shift_factor) * vae.config.scaling_factor)


def semantic_tokens(
    vae: AutoencoderKL | DctCodec, semantic: torch.Tensor, side: int, generator: torch.Generator | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The semantic map alone, at any resolution.

    Args:
        semantic: [B, 3, H, H] in [-1, 1].
        side: the diptych's panel side in pixels; it says how far apart the map's tokens are.

    Returns:
        tokens [B, M, 64], places [M, 2] in tokens of the diptych
    """
    check_side(semantic.shape[-1], "semantic map of side")
    tokens_per_side = semantic.shape[-1] // TOKEN_PIXELS
    unit = side / semantic.shape[-1]
    where = places(tokens_per_side, tokens_per_side, unit=unit, device=semantic.device)
    return encode_images(vae, semantic, generator), where


@torch.no_grad()
def encode_triptych(
    vae: AutoencoderKL | DctCodec,
    visible: torch.Tensor,
    target: torch.Tensor,
    semantic: torch.Tensor,
    fill_mask: torch.Tensor,
    generator: torch.Generator | None = None,
) -> Encoded:
    """Encode a training batch with the frozen codec.

    Args:
        vae: diffusers AutoencoderKL or a codec with its interface.
        visible, target: [B, 3, S, S] in [-1, 1].
        semantic: [B, 3, H, H] in [-1, 1].
        fill_mask: [B, 1, S, S] of 0 and 1, on the target panel; filled pixels are mid grey in the condition.
        generator: of the codec's noise.

    Returns:
        Encoded

    Raises:
        ValueError: a side that is no multiple of 16 pixels.
    """
    side = visible.shape[-1]
    check_side(side)
    diptych, mask = diptych_of(visible, target), diptych_mask(fill_mask)
    rows = side // TOKEN_PIXELS
    semantic, semantic_places = semantic_tokens(vae, semantic, side, generator)
    return Encoded(
        clean=encode_images(vae, diptych, generator),
        condition=torch.cat(
            (encode_images(vae, diptych * (1 - mask), generator), pack_mask(mask).float()), dim=-1
        ),
        semantic=semantic,
        token_places=places(rows, rows, panels=2, device=visible.device),
        semantic_places=semantic_places,
        ids=image_ids(rows, 2 * rows, device=visible.device),
    )
