"""A closed-form image codec with the interface of diffusers' AutoencoderKL: 8 x 8 block DCT, 16 latent channels.

Of each 8 x 8 block it keeps 10 luma and 2 x 3 chroma coefficients of lowest frequency. It needs no training, loses only
detail, and lets a tiny transformer make pictures one can look at.
"""

import math

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import Tensor
from torch.nn import functional

BLOCK = 8
COLOURS = (  # orthonormal rows: luma, red against blue, green against both; with the frequencies u + v kept of each
    ((1 / math.sqrt(3),) * 3, 3),
    ((1 / math.sqrt(2), 0.0, -1 / math.sqrt(2)), 1),
    ((1 / math.sqrt(6), -2 / math.sqrt(6), 1 / math.sqrt(6)), 1),
)


class DctCodec(ModelMixin, ConfigMixin):
    """Encoder and decoder are each other's transpose, so decode(encode(x)) is the nearest image the latents can hold.

    `scaling_factor` and `shift_factor` are FLUX's, `block_out_channels` only says "three halvings" to diffusers.
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 16,
        scaling_factor: float = 0.3611,
        shift_factor: float = 0.1159,
        block_out_channels: tuple = (1, 1, 1, 1),
    ):
        super().__init__()
        kernels, gains = zip(*basis(), strict=True)
        if latent_channels != len(kernels):
            raise ValueError(f"latent_channels {latent_channels}: this codec has {len(kernels)}")
        self.register_buffer("kernels", torch.stack(kernels))  # [16, 3, 8, 8], orthonormal
        self.register_buffer("gains", torch.tensor(gains).view(-1, 1, 1))

    def encode(
        self, x: Tensor, return_dict: bool = True
    ) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """[B, 3, H, W] in [-1, 1] -> a distribution without spread over [B, 16, H/8, W/8]."""
        normal = functional.conv2d(x, self.kernels, stride=BLOCK) * self.gains
        latents = normal / self.config.scaling_factor + self.config.shift_factor
        moments = torch.cat((latents, torch.zeros_like(latents)), dim=1)
        distribution = DiagonalGaussianDistribution(moments, deterministic=True)
        return AutoencoderKLOutput(latent_dist=distribution) if return_dict else (distribution,)

    def decode(self, z: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """[B, 16, H/8, W/8] -> [B, 3, H, W]."""
        normal = (z - self.config.shift_factor) * self.config.scaling_factor
        image = functional.conv_transpose2d(normal / self.gains, self.kernels, stride=BLOCK)
        return DecoderOutput(sample=image) if return_dict else (image,)


def basis() -> list[tuple[Tensor, float]]:
    """[(kernel [3, 8, 8], gain)] by colour and frequency.

    Natural images' amplitudes fall with frequency (Field 1987), so the gains rise with it: photographs' channels have
    standard deviations of about 0.1 to 1.5 beside noise of 1; unscaled they differ more.
    """
    place = torch.arange(BLOCK)
    waves = torch.stack([torch.cos(math.pi * (place + 0.5) * u / BLOCK) for u in range(BLOCK)])
    waves = waves * torch.tensor([math.sqrt((1 if u == 0 else 2) / BLOCK) for u in range(BLOCK)])[:, None]
    kept = []
    for index, (colour, highest) in enumerate(COLOURS):
        for u in range(highest + 1):
            for v in range(highest + 1 - u):
                kernel = torch.tensor(colour)[:, None, None] * waves[u][:, None] * waves[v]
                kept.append((kernel, (0.2 if index == 0 else 0.5) * (1 + u + v)))
    return kept
