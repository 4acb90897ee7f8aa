"""What a stage starts from: a baseline's adapters or fresh ones, said in one line per module."""

import math
from dataclasses import fields
from functools import partial
from logging import Logger
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.adapter import AdaptedCLIP
from model.settings import MUST_AGREE
from run_folder.checkpoints import load_modules
from run_folder.identity import (
    Identity,
    compare_identity,
    prompts_identity,
    text_side,
    warn_of_unchecked,
)
from run_folder.settings import Settings

CRITICAL = 2.225  # of sqrt(n) * D at 0.01 %: Kolmogorov-Smirnov, sqrt(-ln(alpha / 2) / 2)
# {module's key: (file, epochs), words, or None to say nothing}
Origins = dict[str, tuple[str, int] | str | None]


def load_base(model: AdaptedCLIP, settings: Settings, logger: Logger) -> tuple[Origins, dict[str, str]]:
    """Load a baseline's adapters into a model, strictly.

    They must have been trained on the model's backbone, with its adapter flags and prompts; of both, the image side on
    the text side.

    Args:
        settings: `base` names AA-CLIP checkpoints (`text_adapter.pth`, `image_adapter.pth`); None for a command without
            these flags.

    Returns:
        ({"text_adapter" or "image_adapter": (file, epochs)} of what was loaded, {key: SHA-256 of its file})

    Raises:
        FileNotFoundError, RuntimeError: a file that is missing, damaged, of another kind or does not fit stops the run.
    """
    base, dataset = settings.base, settings.data.dataset
    if base is None:
        return {}, {}
    files = {"text_adapter": base.load_base_text_adapter, "image_adapter": base.load_base_image_adapter}
    arithmetic = {
        one.name: getattr(settings.model, one.name)
        for one in fields(settings.model)
        if one.metadata["at_test"] == MUST_AGREE
    }
    wanted = Identity(settings=arithmetic, prompts=prompts_identity(dataset), backbone=model.clipmodel.source)
    origins, digests, text = {}, {}, None
    for key, file in files.items():
        if not file:
            continue
        unchecked = []
        asked = wanted if key == "text_adapter" else wanted._replace(text=text)
        content = load_modules(
            file, {key: getattr(model, key)}, ["epoch"], partial(check_base, file, asked, unchecked)
        )
        warn_of_unchecked(unchecked, file, logger)
        origins[key], digests[key] = (file, content["epoch"]), content.sha256
        if key == "text_adapter":
            text = text_side(content, model.text_modules.keys() & content.keys()).text
    return origins, digests


def check_base(path: str, wanted: Identity, unchecked: list[str], content: dict[str, Any]) -> None:
    """`compare_identity` for `load_modules`; what the file does not say goes into `unchecked`."""
    unchecked += compare_identity(path, content, wanted)


def summarise(
    origins: Origins, modules: dict[str, nn.Module], own_file: Path, done: int, logger: Logger
) -> None:
    """Log where each module's weights come from, and warn of a trained file that looks untrained.

    Args:
        origins: from `load_base`, or words for what else a module's weights come from.
        modules: {key: module} of the stage.
        own_file, done: the run's own checkpoint and the epochs it had done (0: none yet).
    """
    for key, module in modules.items():
        origin = origins.get(key, "fresh")
        if origin is None:
            continue
        origin = (own_file, done) if done else origin
        if isinstance(origin, str):
            logger.info(f"{key}: {origin}")
            continue
        file, epochs = origin
        logger.info(f"{key}: loaded, trained {epochs} epochs ({file})")
        if looks_untrained(module):
            logger.warning(
                f"{key}: {file} says it was trained, but its weights cannot be told from their random initialisation "
                "(Kolmogorov-Smirnov test against xavier_uniform): check that it is the right file"
            )


def looks_untrained(module: nn.Module) -> bool:
    """Whether every weight matrix of a module still looks drawn from xavier_uniform.

    A matrix counts as trained once one entry leaves the initial interval or its distribution differs from the uniform
    one (Kolmogorov-Smirnov at 0.01 %, so that a module of many matrices is not cleared by chance).
    """
    matrices = [child.weight for child in module.modules() if isinstance(child, nn.Linear)]
    return bool(matrices) and all(
        _is_uniform(matrix.detach().double().flatten(), *matrix.shape) for matrix in matrices
    )


def _is_uniform(values: Tensor, fan_out: int, fan_in: int) -> bool:
    bound = math.sqrt(6 / (fan_in + fan_out))
    if values.abs().max() > bound * (1 + 1e-6):
        return False
    expected = (values.sort().values / bound + 1) / 2
    count = len(values)
    steps = torch.arange(count + 1, dtype=torch.float64, device=values.device) / count
    distance = torch.maximum((steps[1:] - expected).abs().max(), (expected - steps[:-1]).abs().max())
    return float(distance) * math.sqrt(count) < CRITICAL
