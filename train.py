"""Train the AA-CLIP baseline: stage 1 adapts the text tower, stage 2 the image tower (arXiv 2503.06661)."""

from collections.abc import Callable, Sequence
from functools import partial

import torch

from files.command import run_main
from forward_utils import anchors_of_batch, fixed_anchors, frozen_image_features
from model.adapter import AdaptedCLIP as Model
from model.clip import CLIP
from model.frozen_cache import FrozenCache
from run_folder.caches import feature_cache, say_how_it_served
from run_folder.flags import parse, settings_of
from run_folder.kinds import BASELINE as KIND
from run_folder.manifest import write_start
from run_folder.resume import begin_run
from run_folder.session import Session, create_adapted_model, create_backbone, surgery_of
from run_folder.settings import BASELINE_GROUPS as GROUPS
from run_folder.settings import Settings
from run_folder.state import TrainState
from training.base_weights import load_base
from training.command import run_training
from training.engine import StagePlan, StepLoss
from training.history import write_history
from training.loaders import training_loaders
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
    """Stage 1's loss, a function of a batch: anchors segment frozen patches."""
    levels, dataset = loss_levels(model, settings.corrections), settings.data.dataset
    return partial(
        text_stage_loss,
        patches_of=frozen_image_features(model, clip_surgery, levels, cache),
        anchors_of=lambda batch, patches: anchors_of_batch(model, dataset, batch["class_name"]),
        loss_levels=levels,
        norm_weight=settings.training.text_norm_weight,
        cls_weight=settings.corrections.text_cls_weight,
    )


def image_loss(model: Model, anchors_of: Callable, settings: Settings) -> StepLoss:
    """Stage 2's loss, a function of a batch: adapted patches and head agree with fixed anchors."""
    return partial(
        image_stage_loss,
        compare=lambda batch, anchors: model.compare(batch["image"], anchors),
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

    adapted = settings.training.text_epoch > 0
    anchors_of = fixed_anchors(model if adapted else clip, dataset)

    stage, loss = image_stage(KIND, model, save_path), image_loss(model, anchors_of, settings)
    record = record.built_on(model if adapted else None, stage.file)
    image = run_stage(session, stage, loss, image_loader, record, origins)
    say_how_it_served(cache, logger)
    write_history(save_path, [{"loop": 1, "text": text.history, "image": image.history}])
    logger.info(f"done: checkpoints in {save_path}")


def train_text_adapter(
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


def train_image_adapter(
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
) -> Model:
    """Stage 2 by itself, with AA-CLIP's arguments; `text_embeddings` is {class name: anchors [E, 2]}."""

    def anchors_of(batch):
        return torch.stack([text_embeddings[name] for name in batch["class_name"]])

    stage = image_stage(KIND, model, save_path)
    loss = image_loss(model, anchors_of, settings_of(GROUPS, {}))
    state = TrainState(stage.name, stage.modules, optimizer, scheduler, epoch=start_epoch)
    train_and_save(stage, state, loss, train_loader, StagePlan(image_epoch), device, logger)
    return model


def main(argv: Sequence[str] | None = None) -> None:
    run_training(parse(__doc__, GROUPS, argv, {"save_path": KIND.save_path}), train)


if __name__ == "__main__":
    run_main(main, several=True)
