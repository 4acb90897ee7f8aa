"""What a stage starts from: a baseline's adapters or fresh ones, said in one line per module."""

import math
from logging import Logger
from pathlib import Path

import torch
from torch import Tensor, nn

from model.adapter import AdaptedCLIP
from run_folder.checkpoints import load_modules
from run_folder.settings import BaseWeights

CRITICAL = 2.225  # of sqrt(n) * D at 0.01 %: Kolmogorov-Smirnov, sqrt(-ln(alpha / 2) / 2)
# {module's key: (file, epochs), words, or None to say nothing}
Origins = dict[str, tuple[str, int] | str | None]


def load_base(model: AdaptedCLIP, base: BaseWeights | None) -> Origins:
    """Load a baseline's adapters into a model, strictly.

    Args:
        base: AA-CLIP checkpoints (`text_adapter.pth`, `image_adapter.pth`); None for a command that starts afresh.

    Returns:
        {"text_adapter" or "image_adapter": (file, epochs)} of what was loaded.

    Raises:
        FileNotFoundError, RuntimeError: a file that is missing, damaged or does not fit stops the run.
    """
    if base is None:
        return {}
    files = {"text_adapter": base.load_base_text_adapter, "image_adapter": base.load_base_image_adapter}
    return {
        key: (file, load_modules(file, {key: getattr(model, key)}, keys=["epoch"])["epoch"])
        for key, file in files.items()
        if file
    }


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
