"""What training made of a run's attention: how far its weights moved, and how uniform the attention is.

Shares of a gradient say little of it: Adam divides every parameter's gradient by its own running size.
"""

from functools import partial

import torch

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
from run_folder.session import create_adapted_model, surgery_of
from run_folder.settings import CROSS_ATTENTION_GROUPS, Settings
from training.engine import StepLoss, to_device
from training.loaders import training_loaders
from training.optimisation import only_training
from training.stages import image_stage_loss, loss_levels, text_stage_loss
from training.watch import Watch

BATCHES = 8  # of each stage, for the entropies


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


def displacement(model: AdaptedCLIPWithCrossAttention, settings: Settings) -> dict[str, float]:
    """{module: |W - W0| / |W0|}: how far a run's modules lie from the first values that its seed gives them.

    Raises:
        RuntimeError: the run began from another run's adapters, so that a seed does not give its first values.
    """
    if settings.base.load_base_text_adapter or settings.base.load_base_image_adapter:
        raise Refusal("the run began from a baseline's adapters: its seed does not give its first values")
    first = create_adapted_model(model.clipmodel, settings, model.device)
    watch = Watch(first.text_modules | first.image_modules)
    for key, module in watch.modules.items():
        module.load_state_dict(getattr(model, key).state_dict())
    return watch.entry()["displacement"]


@torch.no_grad()
def attention_entropies(model: AdaptedCLIPWithCrossAttention, settings: Settings) -> dict[str, float]:
    """{stage: entropy of its attention's weights as a share of uniform ones'}, on training batches, as it trains."""
    losses, shares = stage_losses(model, settings), {}
    loaders = training_loaders(settings, quiet_logger())
    for (stage, loss_of), loader in zip(losses.items(), loaders, strict=True):
        modules = {"text": model.text_modules, "image": model.image_modules}[stage]
        watch = Watch(modules)
        with only_training(model, modules), watch.looking():
            for _, batch in zip(range(BATCHES), loader, strict=False):
                loss_of(to_device(batch, torch.device("cpu")))
        shares[stage] = watch.entry()["attention_entropy"][f"{stage}_cross_attn"]
    return shares
