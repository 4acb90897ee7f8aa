"""The CLIP in training: its token table holds the captions' tokens alone; exported, it has the whole vocabulary."""

import json
from pathlib import Path

import safetensors.torch
import torch
from open_clip.model import CLIP

from files.atomic import replacing


def model_config(config: Path | str) -> dict:
    """The open_clip model config in a file."""
    return json.loads(Path(config).read_text())


def build_model(config: Path | str, seed: int, token_ids: torch.Tensor) -> tuple[CLIP, torch.Tensor]:
    """(open_clip CLIP whose embedding holds only the captions' tokens, full embedding [vocabulary, W] for the export).

    The words that no caption uses keep their initial values; leaving them out saves the optimiser most of its work.
    """
    torch.manual_seed(seed)
    model = CLIP(**model_config(config))
    full = model.token_embedding.weight.detach().clone()
    model.token_embedding = torch.nn.Embedding.from_pretrained(full[token_ids].clone(), freeze=False)
    return model, full


def export(model: CLIP, full_embedding: torch.Tensor, token_ids: torch.Tensor, path: Path | str) -> None:
    """Write open_clip's state dict in fp16, the trained token rows put back into the full table; atomic.

    Image positions stay fp32: torch on a CPU cannot resize fp16, and open_clip resizes them as they come from the file.
    """
    state = {key: value.detach().half().contiguous() for key, value in model.state_dict().items()}
    table = full_embedding.clone()
    table[token_ids] = model.token_embedding.weight.detach()
    state["token_embedding.weight"] = table.half()
    state["visual.positional_embedding"] = model.visual.positional_embedding.detach().clone()
    with replacing(path) as file:
        file.write(safetensors.torch.save(state))
