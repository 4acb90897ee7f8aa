"""Bring the semantic map into a diffusers Flux transformer without changing its code: a forward pre-hook."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from synthesis.attention import TOKEN_WIDTH
from synthesis.fusion import SemanticModule


@contextmanager
def semantic_injection(
    transformer: FluxTransformer2DModel,
    attention: SemanticModule,
    semantic: Tensor,
    token_places: Tensor,
    semantic_places: Tensor,
    keep: Tensor | None = None,
) -> Iterator[None]:
    """While open, the noisy part of the transformer's input is changed by the semantic cross-attention or fusion.

    The first 64 of `hidden_states`' 384 channels are the noisy tokens x_t; the condition after them stays as it is.
    The same hook serves training and the unmodified FluxFillPipeline.

    Args:
        transformer: FluxTransformer2DModel, called with `hidden_states` as a keyword.
        attention: SemanticLayers or SemanticFusion.
        semantic, token_places, semantic_places, keep: see `SemanticCrossAttention.forward`.
    """

    def change_noisy_tokens(module, args, kwargs):
        hidden = kwargs["hidden_states"]
        noisy = attention(hidden[..., :TOKEN_WIDTH], semantic, token_places, semantic_places, keep)
        return args, {**kwargs, "hidden_states": torch.cat((noisy, hidden[..., TOKEN_WIDTH:]), dim=-1)}

    hook = transformer.register_forward_pre_hook(change_noisy_tokens, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
