"""The trainable system: frozen backbone, LoRA, semantic cross-attention or fusion, and encoded prompts."""

from pathlib import Path
from typing import NamedTuple

import torch

from synthesis.attention import SemanticLayers
from synthesis.backbone import Backbone, add_lora, load_backbone, load_prompts
from synthesis.choices import DTYPES, SEMANTIC_MODES
from synthesis.fusion import SemanticFusion, SemanticModule
from synthesis.text import Prompt, Prompts


class FillSystem(NamedTuple):
    """Backbone with LoRA, what brings the semantic map in, and encoded prompts."""

    backbone: Backbone
    attention: SemanticModule  # SemanticLayers (none of them: no semantics) or SemanticFusion
    prompts: Prompts

    def trainable(self) -> list[torch.nn.Parameter]:
        """The transformer's trained parameters (LoRA, or all), then the attention's; all float32."""
        inside = [
            parameter for parameter in self.backbone.transformer.parameters() if parameter.requires_grad
        ]
        return inside + list(self.attention.parameters())


def semantic_mode_of(config: dict) -> str:
    """One of SEMANTIC_MODES; runs from before there were modes had cross-attention, or none with 0 layers."""
    mode = config.get("semantic_mode", "cross_attention")
    return "none" if mode == "cross_attention" and config["semantic_layers"] == 0 else mode


def semantic_module(config: dict) -> SemanticModule:
    """What a config's mode puts between the map and the noisy tokens.

    Raises:
        ValueError: another mode, or see `SemanticCrossAttention`.
    """
    mode = semantic_mode_of(config)
    if mode not in SEMANTIC_MODES:
        raise ValueError(f"--semantic_mode {mode}: expected one of {', '.join(SEMANTIC_MODES)}")
    if mode == "fusion":
        return SemanticFusion()
    return SemanticLayers(
        0 if mode == "none" else config["semantic_layers"],
        heads=config["semantic_heads"],
        layout=config["semantic_layout"],
        positions=config["semantic_pos"],
    )


def assemble(
    model: Path | str,
    config: dict,
    device: torch.device | str = "cpu",
    prompts: dict[str, Prompt] | None = None,
) -> FillSystem:
    """Build the system of a config: frozen backbone, new LoRA, new attention or fusion.

    Args:
        model: see `load_backbone`.
        config: {"dtype", "lora_rank", "lora_alpha", "train_backbone", "prompt", "semantic_layers",
            "semantic_heads", "semantic_layout", "semantic_pos"} and "semantic_mode", if other than
            cross_attention. With "train_backbone" the transformer is not frozen:
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
    attention = semantic_module(config)
    encoded = load_prompts(model, device, dtype)
    for text, prompt in (prompts or {}).items():
        encoded.known[text] = Prompt(*(part.to(device, dtype) for part in prompt))
    encoded.encode([config["prompt"], ""])
    backbone = load_backbone(model, device, dtype)
    add_lora(backbone.transformer, config["lora_rank"], config["lora_alpha"])
    if config["train_backbone"]:
        backbone.transformer.requires_grad_(True)
    return FillSystem(backbone, attention.to(device), encoded)
