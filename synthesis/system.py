"""The trainable system: frozen backbone, LoRA, semantic cross-attention and encoded prompts, put together."""

from pathlib import Path
from typing import NamedTuple

import torch

from synthesis.attention import SemanticLayers
from synthesis.backbone import Backbone, add_lora, load_backbone, load_prompts
from synthesis.text import Prompt, Prompts

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class FillSystem(NamedTuple):
    """Backbone with LoRA, semantic cross-attention and encoded prompts."""

    backbone: Backbone
    attention: SemanticLayers
    prompts: Prompts

    def trainable(self) -> list[torch.nn.Parameter]:
        """The transformer's trained parameters (LoRA, or all), then the attention's; all float32."""
        inside = [
            parameter for parameter in self.backbone.transformer.parameters() if parameter.requires_grad
        ]
        return inside + list(self.attention.parameters())


def assemble(
    model: Path | str,
    config: dict,
    device: torch.device | str = "cpu",
    prompts: dict[str, Prompt] | None = None,
) -> FillSystem:
    """Build the system of a config: frozen backbone, new LoRA, new attention.

    Args:
        model: see `load_backbone`.
        config: {"dtype", "lora_rank", "lora_alpha", "train_backbone", "prompt", "semantic_layers",
            "semantic_heads", "semantic_layout", "semantic_pos"}. With "train_backbone" the transformer is not frozen:
            meant for tiny and small, whose random weights know nothing that could be lost.
        device: where it goes.
        prompts: {text: Prompt} known already; the config's prompt and the empty one are encoded if not among them.

    Raises:
        ValueError: "train_backbone" in less than float32.
        ValueError, RuntimeError: see the parts.
    """
    dtype = DTYPES[config["dtype"]]
    if config["train_backbone"] and dtype is not torch.float32:
        raise ValueError(
            f"--train_backbone with --dtype {config['dtype']}: what is trained is float32, give that"
        )
    attention = SemanticLayers(
        config["semantic_layers"],
        heads=config["semantic_heads"],
        layout=config["semantic_layout"],
        positions=config["semantic_pos"],
    )
    encoded = load_prompts(model, device, dtype)
    for text, prompt in (prompts or {}).items():
        encoded.known[text] = Prompt(*(part.to(device, dtype) for part in prompt))
    encoded.encode([config["prompt"], ""])
    backbone = load_backbone(model, device, dtype)
    add_lora(backbone.transformer, config["lora_rank"], config["lora_alpha"])
    if config["train_backbone"]:
        backbone.transformer.requires_grad_(True)
    return FillSystem(backbone, attention.to(device), encoded)
