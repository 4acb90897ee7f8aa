"""What a stage starts from: a baseline's adapters or fresh ones, said in one line per module."""

import math

import torch
from torch import nn

from checkpoints import load_checkpoint, load_module

CRITICAL = 2.225  # of sqrt(n) * D at 0.01 %: Kolmogorov-Smirnov, sqrt(-ln(alpha / 2) / 2)


def load_base(model, text_file=None, image_file=None):
    """Load a baseline's adapters into a model, strictly.

    Args:
        text_file, image_file: AA-CLIP checkpoints (`text_adapter.pth`, `image_adapter.pth`), or None.

    Returns:
        {"text_adapter" or "image_adapter": (file, epochs)} of what was loaded.

    Raises:
        FileNotFoundError, RuntimeError: a file that is missing, damaged or does not fit stops the run.
    """
    origins = {}
    for key, file in (("text_adapter", text_file), ("image_adapter", image_file)):
        if file:
            content = load_checkpoint(file, keys=["epoch", key])
            load_module(getattr(model, key), content[key], file)
            origins[key] = (file, content["epoch"])
    return origins


def summarise(origins, modules, own_file, done, logger):
    """Log where each module's weights come from, and warn of a trained file that looks untrained.

    Args:
        origins: from `load_base`.
        modules: {key: module} of the stage.
        own_file, done: the run's own checkpoint and the epochs it had done (0: none yet).
    """
    for key, module in modules.items():
        file, epochs = (own_file, done) if done else origins.get(key, (None, 0))
        if file is None:
            logger.info(f"{key}: fresh")
            continue
        logger.info(f"{key}: loaded, trained {epochs} epochs ({file})")
        if looks_untrained(module):
            logger.warning(
                f"{key}: {file} says it was trained, but its weights cannot be told from their random initialisation "
                "(Kolmogorov-Smirnov test against xavier_uniform): check that it is the right file"
            )


def looks_untrained(module):
    """Whether every weight matrix of a module still looks drawn from xavier_uniform.

    A matrix counts as trained once one entry leaves the initial interval or its distribution differs from the uniform
    one (Kolmogorov-Smirnov at 0.01 %, so that a module of many matrices is not cleared by chance).
    """
    matrices = [child.weight for child in module.modules() if isinstance(child, nn.Linear)]
    return bool(matrices) and all(_is_uniform(matrix.detach().double().flatten(), *matrix.shape) for matrix in matrices)


def _is_uniform(values, fan_out, fan_in):
    bound = math.sqrt(6 / (fan_in + fan_out))
    if values.abs().max() > bound * (1 + 1e-6):
        return False
    expected = (values.sort().values / bound + 1) / 2
    count = len(values)
    steps = torch.arange(count + 1, dtype=torch.float64, device=values.device) / count
    distance = torch.maximum((steps[1:] - expected).abs().max(), (expected - steps[:-1]).abs().max())
    return float(distance) * math.sqrt(count) < CRITICAL
