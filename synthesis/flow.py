"""Flow matching: the straight path from an image's tokens to noise, and the loss on its velocity.

Lipman et al., Flow Matching for Generative Modeling, arXiv 2210.02747; times as in Esser et al., arXiv 2403.03206.
"""

import torch
from torch import Tensor
from torch.nn import functional

from synthesis.backbone import Backbone
from synthesis.fusion import SemanticModule
from synthesis.injection import semantic_injection
from synthesis.latents import Encoded, filled_tokens
from synthesis.text import Prompt

TRAINING_GUIDANCE = 1.0  # no guidance: the loss wants the data's own velocity


def sample_times(batch: int, generator: torch.Generator) -> Tensor:
    """[batch] times in (0, 1): sigmoid of a standard normal."""
    return torch.randn(batch, generator=generator).sigmoid()


def interpolate(clean: Tensor, noise: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
    """x_t = (1 - t) x_0 + t x_1 and its velocity x_1 - x_0.

    Args:
        clean, noise: [B, N, 64].
        times: [B].
    """
    weight = times[:, None, None]
    return (1 - weight) * clean + weight * noise, noise - clean


def predict_velocity(
    backbone: Backbone,
    attention: SemanticModule,
    noisy: Tensor,
    encoded: Encoded,
    prompt: Prompt,
    times: Tensor,
    keep_semantic: Tensor | None = None,
    guidance: float = TRAINING_GUIDANCE,
) -> Tensor:
    """The transformer's velocity at x_t, with the semantic map injected.

    Args:
        backbone: Backbone.
        attention: SemanticLayers or SemanticFusion.
        noisy: [B, N, 64] x_t.
        encoded: Encoded, the rest of the condition.
        prompt: Prompt([B, L, D], [B, P]).
        times: [B] in [0, 1].
        keep_semantic: [B] booleans; False leaves the map out of that example.
        guidance: of a guidance-distilled transformer.

    Returns:
        [B, N, 64] float32
    """
    transformer, dtype = backbone.transformer, backbone.dtype
    guidances = torch.full_like(times, guidance) if transformer.config.guidance_embeds else None
    with semantic_injection(
        transformer, attention, encoded.semantic, encoded.token_places, encoded.semantic_places, keep_semantic
    ):
        velocity = transformer(
            hidden_states=torch.cat((noisy, encoded.condition), dim=-1).to(dtype),
            encoder_hidden_states=prompt.tokens,
            pooled_projections=prompt.pooled,
            timestep=times.to(dtype),
            guidance=guidances,
            img_ids=encoded.ids.to(dtype),
            txt_ids=torch.zeros(prompt.tokens.shape[1], 3, device=noisy.device, dtype=dtype),
            return_dict=False,
        )[0]
    return velocity.float()


def flow_matching_loss(
    backbone: Backbone,
    attention: SemanticModule,
    encoded: Encoded,
    prompt: Prompt,
    times: Tensor,
    noise: Tensor,
    keep_semantic: Tensor | None = None,
    fill_share: float | None = None,
) -> Tensor:
    """Mean squared error of the velocity over both panels, a scalar.

    Args:
        encoded, prompt, times, keep_semantic: as in `predict_velocity`.
        noise: [B, N, 64].
        fill_share: None: all tokens count alike. Else in [0, 1]: how much of the loss the mean over the tokens with a
            pixel to be filled makes, the rest being the mean over the other tokens.
    """
    noisy, target = interpolate(encoded.clean, noise, times)
    velocity = predict_velocity(backbone, attention, noisy, encoded, prompt, times, keep_semantic)
    alike = functional.mse_loss(velocity, target)
    if fill_share is None:
        return alike
    filled = filled_tokens(encoded.condition)
    errors = (velocity - target).square().mean(dim=-1)  # [B, N]
    inside, outside = (mean_where(errors, where) for where in (filled, ~filled))
    # A map may be empty. Both answers are computed: asking the device which it is would wait for it.
    return torch.where(filled.any(), fill_share * inside + (1 - fill_share) * outside, alike)


def mean_where(values: Tensor, where: Tensor) -> Tensor:
    """Mean of `values` [B, N] where the booleans `where` [B, N] are True, a scalar; 0 where none is."""
    return (values * where).sum() / where.sum().clamp(min=1)
