"""What flags of semantic fill may say. Nothing here imports diffusers: `--help` and a wrong flag do not wait for it."""

import torch

LICENCE = (
    "The weights of FLUX.1 [dev] and FLUX.1 Fill [dev] are gated and under a non-commercial licence: accept it on the "
    "model's page at huggingface.co, log in with `hf auth login`, and use them and what they generate accordingly."
)
TINY_MODELS = {  # name: (layers of each kind, heads of 16 channels)
    "tiny": (1, 2),
    "small": (2, 8),
}
TOKEN_PIXELS = 16  # 8 by the codec, 2 by packing
FILL_MASKS = ("semantic", "panel")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SEMANTIC_MODES = ("none", "fusion", "cross_attention")
OPTIMIZERS = {"adamw": 1e-4, "prodigy": 1.0}  # name: learning rate
LR_SCHEDULES = (
    "constant",
    "cosine",
)  # cosine rises over the first 20th of the steps and falls to 0 at the last


def check_side(side: int, flag: str = "--size") -> None:
    """Raises ValueError unless a panel of `side` pixels is a whole number of tokens."""
    if side < TOKEN_PIXELS or side % TOKEN_PIXELS:
        raise ValueError(
            f"{flag} {side}: a panel's side must be a multiple of {TOKEN_PIXELS} pixels, e.g. 64 or 512"
        )
