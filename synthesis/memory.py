"""How much memory training will need, said before anything is loaded."""

import re
from logging import Logger
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel

from synthesis.backbone import LORA_TARGETS, licence_on_failure, prompt_length, tiny_config
from synthesis.choices import DTYPES, TINY_MODELS, TOKEN_PIXELS
from synthesis.codec import DctCodec
from synthesis.model_folder import check_model_folder
from synthesis.system import semantic_module

GIB = 2**30
# Bytes that one trained float32 value needs: itself, its gradient, the optimizer's moments, and while it steps the
# value before, which the guard against steps that are not finite keeps.
TRAINED_BYTES = {"adamw": 20, "prodigy": 28}
# What a transformer block keeps for its backward pass, in values per token and channel (34 bytes in 16 bit):
# Korthikanti et al., arXiv 2205.05198, without the attention matrix, which fused attention never writes.
BLOCK_VALUES = 17


class MemoryEstimate(NamedTuple):
    """Bytes by what needs them."""

    transformer: float
    codec: float
    trained: float
    activations: float

    @property
    def total(self) -> float:
        return sum(self)


def estimate_memory(model: Path | str, config: dict) -> MemoryEstimate:
    """What training needs at its peak; only the models' config files are read.

    Args:
        model: see `load_backbone`.
        config: what `assemble` takes, and "size", "batch_size", "optimizer", "gradient_checkpointing".

    Raises:
        RuntimeError: no such model, or no access to it.
    """
    transformer, codec = shapes_of(model)
    value_bytes = DTYPES[config["dtype"]].itemsize
    own = transformer.config
    frozen = count(transformer)
    with torch.device("meta"):  # the weights to come are drawn from the global generator: leave it alone
        trained = lora_parameters(transformer, config["lora_rank"]) + count(semantic_module(config))
    if config["train_backbone"]:
        frozen, trained = 0, trained + frozen
    tokens = 2 * (config["size"] // TOKEN_PIXELS) ** 2 + prompt_length(model)
    stream = config["batch_size"] * tokens * own.num_attention_heads * own.attention_head_dim * value_bytes
    blocks = own.num_layers + own.num_single_layers
    kept = blocks + BLOCK_VALUES if config["gradient_checkpointing"] else blocks * BLOCK_VALUES
    return MemoryEstimate(
        transformer=frozen * value_bytes,
        codec=count(codec) * value_bytes,
        trained=trained * TRAINED_BYTES[config["optimizer"]],
        activations=stream * kept,
    )


def shapes_of(model: Path | str) -> tuple[FluxTransformer2DModel, torch.nn.Module]:
    """(transformer, codec) without weights."""
    with torch.device("meta"):
        if model in TINY_MODELS:
            return FluxTransformer2DModel(**tiny_config(model)), DctCodec()
        check_model_folder(model)
        with licence_on_failure(model):
            configs = [
                part.load_config(model, subfolder=folder)
                for part, folder in ((FluxTransformer2DModel, "transformer"), (AutoencoderKL, "vae"))
            ]
        return FluxTransformer2DModel.from_config(configs[0]), AutoencoderKL.from_config(configs[1])


def count(module: torch.nn.Module) -> int:
    """A module's parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def lora_parameters(transformer: FluxTransformer2DModel, rank: int) -> int:
    """How many parameters `add_lora` would add."""
    reached = [one for name, one in transformer.named_modules() if re.fullmatch(LORA_TARGETS, name)]
    return sum(rank * (one.in_features + one.out_features) for one in reached)


def log_memory(estimate: MemoryEstimate, device: torch.device, logger: Logger) -> None:
    """Say what will be needed, and warn when the device has less."""
    parts = ", ".join(f"{name} {readable(value)}" for name, value in estimate._asdict().items())
    logger.info(f"[INFO] Memory estimate: {readable(estimate.total)} ({parts})")
    if device.type != "cuda":
        return
    there = torch.cuda.get_device_properties(device).total_memory
    if estimate.total > there:
        logger.warning(
            f"{device} has {readable(there)}, less than the estimate: lower --size, --batch_size or --lora_rank, "
            "keep --dtype bfloat16 and --gradient_checkpointing"
        )


def readable(size: float) -> str:
    """Bytes as GiB, or MiB below one."""
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / 2**20:.1f} MiB"
