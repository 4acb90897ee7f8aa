"""Train AA-CLIP with cross-attention in both towers: stage 1 text -> image, stage 2 image -> text."""

from collections.abc import Callable, Sequence
from functools import partial

import torch

from files.command import run_main
from forward_utils import frozen_image_features
from forward_utils_cross_attention import (
    anchors_and_means,
    anchors_seeing_images,
    comparison_seeing_prompts,
    scope_named,
    text_context_dictionary,
)
from model.adapter_cross_attention import AdaptedCLIPWithCrossAttention as Model
from model.clip import CLIP
from model.frozen_cache import FrozenCache
from run_folder.caches import feature_cache, say_how_it_served
from run_folder.flags import parse, settings_of
from run_folder.kinds import CROSS_ATTENTION as KIND
from run_folder.manifest import write_start
from run_folder.resume import begin_run
from run_folder.session import Session, create_adapted_model, create_backbone, surgery_of
from run_folder.settings import CROSS_ATTENTION_GROUPS as GROUPS
from run_folder.settings import Settings
from run_folder.state import TrainState, save_contexts
from training.base_weights import load_base
from training.command import run_training
from training.engine import StagePlan, StepLoss
from training.history import write_history
from training.loaders import training_loaders, unaugmented
from training.stages import (
    image_stage,
    image_stage_loss,
    loss_levels,
    run_stage,
    text_stage,
    text_stage_loss,
    train_and_save,
)


def text_loss(
    model: Model, clip_surgery: CLIP, settings: Settings, cache: FrozenCache | None = None
) -> StepLoss:
    """Stage 1's loss, a function of a batch: anchors whose prompts saw the patches' first level segment them."""
    levels, dataset = loss_levels(model, settings.corrections), settings.data.dataset
    scope = scope_named(settings.contexts.context_scope, settings.contexts.context_control)
    return partial(
        text_stage_loss,
        patches_of=frozen_image_features(model, clip_surgery, [model.levels[0], *levels], cache),
        anchors_of=anchors_seeing_images(model, dataset, scope),
        loss_levels=levels,
        norm_weight=settings.training.text_norm_weight,
        cls_weight=settings.corrections.text_cls_weight,
    )


def image_loss(
    model: Model,
    contexts: dict,
    anchors_of: Callable,
    settings: Settings,
    cache: FrozenCache | None = None,
) -> StepLoss:
    """Stage 2's loss, a function of a batch: patches and head that saw their class's prompts agree with anchors."""
    return partial(
        image_stage_loss,
        compare=comparison_seeing_prompts(model, contexts, cache),
        anchors_of=anchors_of,
        head_temperature=settings.corrections.head_temperature,
    )


def train(session: Session) -> None:
    """Both stages of a run, each from where its checkpoint left it."""
    settings, device, logger, *_ = session
    dataset, save_path = settings.data.dataset, settings.run.save_path
    text_loader, image_loader = training_loaders(settings, logger)  # read before any weight is looked for
    clip = create_backbone(settings, device, logger)
    clip_surgery = surgery_of(clip, settings)
    model = create_adapted_model(clip, settings, device)
    origins, base = load_base(model, settings, logger)
    record = begin_run(session, KIND, clip, text_loader.dataset.samples, base)
    write_start(session, record)
    cache = feature_cache(settings, clip, logger)

    stage, loss = text_stage(KIND, model, save_path), text_loss(model, clip_surgery, settings, cache)
    text = run_stage(session, stage, loss, text_loader, record, origins)

    contexts = text_context_dictionary(model, dataset, settings.contexts.context_control)
    features = frozen_image_features(model, clip_surgery, model.levels[:1], cache)
    text_context, images = settings.contexts.text_context, unaugmented(text_loader)
    anchors_of, means = anchors_and_means(model, dataset, text_context, features, images)

    stage = image_stage(KIND, model, save_path)
    loss = image_loss(model, contexts, anchors_of, settings, cache)
    record = record.built_on(model, stage.file)
    save_contexts(f"{save_path}/text_context_dict.pth", contexts, means, record)
    image = run_stage(session, stage, loss, image_loader, record, origins)
    say_how_it_served(cache, logger)
    write_history(save_path, [{"loop": 1, "text": text.history, "image": image.history}])
    logger.info(f"done: checkpoints in {save_path}")


def train_text_adapter_with_cross_attention(
    adapted_model,
    clip_surgery,
    text_norm_weight,
    train_loader,
    optimizer,
    device,
    start_epoch,
    save_path,
    text_epoch,
    dataset_name,
    img_size,
    logger,
) -> Model:
    """Stage 1 by itself, with AA-CLIP's arguments; returns `adapted_model`."""
    stage = text_stage(KIND, adapted_model, save_path)
    settings = settings_of(GROUPS, {"dataset": dataset_name, "text_norm_weight": text_norm_weight})
    loss = text_loss(adapted_model, clip_surgery, settings)
    state = TrainState(stage.name, stage.modules, optimizer, epoch=start_epoch)
    train_and_save(stage, state, loss, train_loader, StagePlan(text_epoch), device, logger)
    return adapted_model


def train_image_adapter_with_cross_attention(
    model,
    text_embeddings,
    train_loader,
    optimizer,
    scheduler,
    device,
    start_epoch,
    save_path,
    image_epoch,
    img_size,
    logger,
    *,
    contexts,
) -> Model:
    """Stage 2 by itself, as train.train_image_adapter; `contexts` is {class name: TextContext} of its classes."""

    def anchors_of(batch):
        return torch.stack([text_embeddings[name] for name in batch["class_name"]])

    stage = image_stage(KIND, model, save_path)
    loss = image_loss(model, contexts, anchors_of, settings_of(GROUPS, {}))
    state = TrainState(stage.name, stage.modules, optimizer, scheduler, epoch=start_epoch)
    train_and_save(stage, state, loss, train_loader, StagePlan(image_epoch), device, logger)
    return model


def main(argv: Sequence[str] | None = None) -> None:
    run_training(parse(__doc__, GROUPS, argv, {"save_path": KIND.save_path}), train)


if __name__ == "__main__":
    run_main(main, several=True)
