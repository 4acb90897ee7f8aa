"""How much of both stages' gradient a run's attention gets, on batches as it was trained on."""

import statistics
from functools import partial
from itertools import islice

import torch
from torch import Tensor, nn

from files.command import Refusal
from files.logs import quiet_logger
from forward_utils import fixed_anchors, frozen_image_features
from forward_utils_cross_attention import (
    anchors_seeing_images,
    comparison_seeing_prompts,
    scope_named,
    text_context_dictionary,
)
from model.adapter_cross_attention import AdaptedCLIPWithCrossAttention
from run_folder.flags import settings_of
from run_folder.loaded_run import LoadedRun
from run_folder.session import surgery_of
from run_folder.settings import CROSS_ATTENTION_GROUPS, Settings
from training.engine import StepLoss, to_device
from training.loaders import training_loaders
from training.optimisation import only_training, parameters_of
from training.stages import image_stage_loss, loss_levels, text_stage_loss

BATCHES = 8  # of each stage, for the gradients


def training_settings(run: LoadedRun, data: str) -> Settings:
    """What a run was trained with, as its checkpoint has it, with the data's place and in float32.

    Raises:
        RuntimeError: the checkpoint says nothing of it.
    """
    if run.stored is None:
        raise Refusal(
            f"{run.checkpoint} has no settings, which name its training images: explain a run of this project"
        )
    return settings_of(CROSS_ATTENTION_GROUPS, run.stored).change(data_root=data, precision="fp32")


def stage_losses(model: AdaptedCLIPWithCrossAttention, settings: Settings) -> dict[str, StepLoss]:
    """{stage: its loss, a function of a batch}, as train_cross_attention.py trains."""
    dataset, contexts, corrections = settings.data.dataset, settings.contexts, settings.corrections
    levels, surgery = loss_levels(model, corrections), surgery_of(model.clipmodel, settings)
    scope = scope_named(contexts.context_scope, contexts.context_control)
    prompts = text_context_dictionary(model, dataset, contexts.context_control)
    text = partial(
        text_stage_loss,
        patches_of=frozen_image_features(model, surgery, [model.levels[0], *levels]),
        anchors_of=anchors_seeing_images(model, dataset, scope),
        loss_levels=levels,
        norm_weight=settings.training.text_norm_weight,
        cls_weight=corrections.text_cls_weight,
    )
    image = partial(
        image_stage_loss,
        compare=comparison_seeing_prompts(model, prompts),
        anchors_of=fixed_anchors(model, dataset),
        head_temperature=corrections.head_temperature,
    )
    return {"text": text, "image": image}


def gradient_shares(model: AdaptedCLIPWithCrossAttention, settings: Settings) -> dict[str, float]:
    """{stage: share of the squared gradient norm that goes to its attention}, on training batches."""
    losses, stage_shares = stage_losses(model, settings), {}
    loaders = training_loaders(settings, quiet_logger())
    for (stage, loss_of), loader in zip(losses.items(), loaders, strict=True):
        modules, shares = {"text": model.text_modules, "image": model.image_modules}[stage], []
        with only_training(model, modules):
            for _, batch in zip(range(BATCHES), loader, strict=False):
                loss = sum(loss_of(to_device(batch, torch.device("cpu"))).values())
                squares = squared_gradient_norms(loss, modules)
                shares.append(squares[f"{stage}_cross_attn"] / sum(squares.values()))
        stage_shares[stage] = statistics.mean(shares)
    return stage_shares


def squared_gradient_norms(loss: Tensor, modules: dict[str, nn.Module]) -> dict[str, float]:
    """{key: squared norm of a scalar loss's gradient over a module's parameters}; 0 where none reaches it."""
    gradients = iter(torch.autograd.grad(loss, parameters_of(modules), allow_unused=True))
    squares = {}
    for key, module in modules.items():
        of_module = islice(gradients, len(list(module.parameters())))
        reached = [gradient for gradient in of_module if gradient is not None]
        squares[key] = float(torch.stack([part.norm() for part in reached]).norm()) ** 2 if reached else 0.0
    return squares
