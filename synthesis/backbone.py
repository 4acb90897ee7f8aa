"""The frozen network: FLUX.1-Fill from a folder or the hub, or a tiny one with its geometry, built from a seed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxFillPipeline,
    FluxTransformer2DModel,
)
from diffusers.training_utils import cast_training_params
from peft import LoraConfig

from files.command import Refusal
from synthesis.choices import LICENCE, TINY_MODELS
from synthesis.codec import DctCodec
from synthesis.model_folder import check_model_folder
from synthesis.text import Prompts, tiny_text_pipeline

TINY_SEED = 20
LORA_TARGETS = (  # a regular expression on module names: the image's path through the transformer
    r"x_embedder|transformer_blocks\.\d+\.(norm1\.linear|attn\.to_[qkv]|attn\.to_out\.0|ff\.net\.2)"
    r"|single_transformer_blocks\.\d+\.(norm\.linear|proj_mlp|proj_out|attn\.to_[qkv])"
)
SCHEDULE = {  # FLUX.1 [dev]'s: more noise levels near 1 for longer sequences
    "shift": 3.0,
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}


class Backbone(NamedTuple):
    """What is frozen, and how it is used."""

    name: str
    transformer: FluxTransformer2DModel
    vae: torch.nn.Module  # AutoencoderKL or DctCodec
    scheduler: FlowMatchEulerDiscreteScheduler
    dtype: torch.dtype
    sampling_guidance: float  # FLUX.1-Fill is distilled for 30; the tiny ones only ever see training's 1


def load_backbone(
    model: Path | str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Backbone:
    """Load or build the frozen network.

    Args:
        model: "tiny", "small", a folder in diffusers' layout, or a hub id such as black-forest-labs/FLUX.1-Fill-dev.
        device: where transformer and codec go.
        dtype: of transformer and codec.

    Raises:
        ValueError: a transformer that is no FLUX.1-Fill (384 channels in, 64 out).
        ValueError: a folder that check_model_folder refuses.
        RuntimeError: the weights cannot be found or reached; the message has the licence notice.
    """
    if model in TINY_MODELS:
        transformer, vae = tiny_transformer(model), DctCodec()
        scheduler, guidance = FlowMatchEulerDiscreteScheduler(**SCHEDULE), 1.0
    else:
        transformer, vae, scheduler = load_weights(model, dtype)
        guidance = 30.0
    for module in (transformer, vae):
        torch.nn.Module.to(
            module, device, dtype
        )  # diffusers' own `to` warns about a dtype, with nothing to keep
        module.requires_grad_(False).eval()
    return Backbone(str(model), transformer, vae, scheduler, dtype, guidance)


def load_prompts(
    model: Path | str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Prompts:
    """An empty `Prompts` for a model's text encoders; arguments as in `load_backbone`.

    Encode before loading the transformer where memory is short: T5 alone takes 9 GiB in bfloat16.
    """
    if model in TINY_MODELS:
        return Prompts(tiny_text_pipeline, prompt_length(model), device, dtype)

    def load_text():
        check_model_folder(model)
        with licence_on_failure(model):
            return FluxFillPipeline.from_pretrained(
                model, transformer=None, vae=None, dtype=dtype, use_safetensors=True
            )

    return Prompts(load_text, prompt_length(model), device, dtype)


def load_weights(
    model: Path | str, dtype: torch.dtype
) -> tuple[FluxTransformer2DModel, AutoencoderKL, FlowMatchEulerDiscreteScheduler]:
    """(transformer, vae, scheduler) from a folder or the hub."""
    check_model_folder(model)
    with licence_on_failure(model):
        kind = {"dtype": dtype, "use_safetensors": True}  # a pickle could run code
        transformer = FluxTransformer2DModel.from_pretrained(model, subfolder="transformer", **kind)
        vae = AutoencoderKL.from_pretrained(model, subfolder="vae", **kind)
        scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(model, subfolder="scheduler")
    channels = (transformer.config.in_channels, transformer.out_channels)
    if channels != (384, 64):
        raise ValueError(
            f"--model {model}: its transformer has {channels[0]} channels in and {channels[1]} out, expected 384 "
            "and 64: give a FLUX.1-Fill model"
        )
    return transformer, vae, scheduler


@contextmanager
def licence_on_failure(model: Path | str) -> Iterator[None]:
    """Turn a failed load into a message with remedy and licence notice."""
    try:
        yield
    except OSError as error:  # what diffusers, transformers and the hub raise for missing or refused files
        where = "folder in diffusers' layout" if Path(model).exists() else "hub model"
        raise Refusal(
            f"--model {model}: cannot load this {where} ({str(error).splitlines()[0]}). Give a folder with "
            f"model_index.json, a hub id you have access to, or {' or '.join(TINY_MODELS)}. {LICENCE}"
        ) from error


def tiny_config(name: str) -> dict[str, Any]:
    """FLUX.1-Fill's packed geometry with few narrow layers."""
    layers, heads = TINY_MODELS[name]
    return {
        "patch_size": 1,
        "in_channels": 384,
        "out_channels": 64,
        "num_layers": layers,
        "num_single_layers": layers,
        "attention_head_dim": 16,
        "num_attention_heads": heads,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 32,
        "guidance_embeds": True,
        "axes_dims_rope": (4, 4, 8),
    }


def tiny_transformer(name: str) -> FluxTransformer2DModel:
    """The transformer of `tiny_config`, random from a fixed seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(TINY_SEED)
        return FluxTransformer2DModel(**tiny_config(name))


def prompt_length(model: Path | str) -> int:
    """Tokens of a model's T5 sequence; longer prompts are cut."""
    return 32 if model in TINY_MODELS else 512


def add_lora(
    transformer: FluxTransformer2DModel, rank: int = 32, alpha: float = 32
) -> list[torch.nn.Parameter]:
    """Add trainable LoRA weights in float32 to a frozen transformer; Gaussian start, no effect before the first step.

    Returns:
        the trainable parameters.

    Raises:
        ValueError: a rank below 1.
    """
    if rank < 1:
        raise ValueError(f"--lora_rank {rank}: expected 1 or more")
    transformer.add_adapter(
        LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=LORA_TARGETS)
    )
    cast_training_params(transformer, dtype=torch.float32)
    return [parameter for parameter in transformer.parameters() if parameter.requires_grad]
