"""Train the AA-CLIP baseline: stage 1 adapts the text tower, stage 2 the image tower (arXiv 2503.06661)."""

import argparse
from functools import partial
from pathlib import Path

import torch

import options
from engine import image_stage_loss, text_stage_loss, train_stage
from forward_utils import anchors_of_batch, frozen_patches, get_adapted_text_embedding
from model.adapter import AdaptedCLIP
from model.clip import surgery_copy
from runs import (
    adam,
    create_backbone,
    declare_datasets,
    image_schedule,
    log_settings,
    open_run,
    record_of,
    resume_stage,
    save_stage,
    training_loaders,
)
from utils import setup_seed


def train_text_adapter(
    adapted_model, clip_surgery, text_norm_weight, train_loader, optimizer, device, start_epoch, save_path, text_epoch,
    dataset_name, img_size, logger, *, text_loss_levels="last", text_cls_weight=0.0, record=None,
):  # fmt: skip
    """Stage 1: train `adapted_model.text_adapter` on frozen patches; upstream's arguments.

    Args:
        clip_surgery: the surgery model whose patches are segmented.
        train_loader: iterable of batches {"image", "mask", "label", "class_name"}.
        img_size: side of the images and masks in pixels.
        text_loss_levels, text_cls_weight: corrections of oddities, see engine.text_stage_loss.
        record: runs.Record written into `text_adapter.pth`.

    Returns:
        `adapted_model`.
    """
    model = adapted_model
    levels = model.levels if text_loss_levels == "all" else model.levels[-1:]
    step_loss = partial(
        text_stage_loss,
        patches_of=lambda batch: frozen_patches(model.clipmodel, clip_surgery, batch["image"], levels),
        anchors_of=lambda batch, patches: anchors_of_batch(model, dataset_name, batch["class_name"], device),
        loss_levels=levels,
        norm_weight=text_norm_weight,
        cls_weight=text_cls_weight,
    )

    def save(epoch):
        modules = {"text_adapter": model.text_adapter}
        save_stage(Path(save_path) / "text_adapter.pth", epoch, modules, "text_optimizer", optimizer, record=record)

    train_stage("text", step_loss, train_loader, optimizer, device, start_epoch=start_epoch, epochs=text_epoch,
                logger=logger, save=save)  # fmt: skip
    return model


def train_image_adapter(
    model, text_embeddings, train_loader, optimizer, scheduler, device, start_epoch, save_path, image_epoch, img_size,
    logger, *, head_temperature=1.0, record=None,
):  # fmt: skip
    """Stage 2: train `model.image_adapter` against fixed anchors; upstream's arguments.

    Args:
        text_embeddings: {class name: anchors [E, 2]}, not trained.
        scheduler: stepped after every batch.
        head_temperature: correction of an oddity, see engine.image_stage_loss.
        record: runs.Record written into `image_adapter.pth` and `image_adapter_{n}.pth`.

    Returns:
        `model`.
    """
    step_loss = partial(
        image_stage_loss,
        encode=lambda batch: model(batch["image"]),
        anchors_of=lambda batch: torch.stack([text_embeddings[name] for name in batch["class_name"]]),
        head_temperature=head_temperature,
    )

    def save(epoch):
        files = [Path(save_path) / f"image_adapter_{epoch}.pth", Path(save_path) / "image_adapter.pth"]
        modules = {"image_adapter": model.image_adapter}
        save_stage(files, epoch, modules, "image_optimizer", optimizer, scheduler, record)

    train_stage("image", step_loss, train_loader, optimizer, device, start_epoch=start_epoch, epochs=image_epoch,
                logger=logger, save=save, scheduler=scheduler)  # fmt: skip
    return model


def build_parser():
    """The flags of this script: AA-CLIP's, the run's and the corrections."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    options.add_model_flags(parser)
    options.add_data_flags(parser, dataset="VisA", shot=32)
    options.add_training_flags(parser)
    options.add_oddity_flags(parser)
    options.add_run_flags(parser, save_path="ckpt/baseline")
    return parser


def main(argv=None):
    args = options.parse(build_parser(), argv)
    with open_run(args, "train.log") as (device, logger):
        train(args, device, logger)


def train(args, device, logger):
    """Both stages of a run, each from where its checkpoint left it."""
    log_settings(args, device, logger)
    declare_datasets(args)
    clip = create_backbone(args, device)
    clip_surgery = surgery_copy(clip, args.surgery_until_layer, across_batch=args.surgery_attention == "batch")
    setup_seed(args.seed)  # the adapters' first values do not depend on the backbone
    model = AdaptedCLIP(clip, args.text_adapt_weight, args.image_adapt_weight, args.text_adapt_until,
                        args.image_adapt_until, relu=args.relu).to(device)  # fmt: skip
    text_loader, image_loader = training_loaders(args, logger)
    save_path, record = Path(args.save_path), record_of(args)

    if args.text_epoch == 0 and (save_path / "text_adapter.pth").exists():
        raise ValueError(f"--text_epoch 0 in {save_path}, which holds a text_adapter.pth: choose another --save_path")
    if args.text_epoch > 0:
        modules = {"text_adapter": model.text_adapter}
        optimizer = adam(modules, args.text_lr)
        done = resume_stage(save_path / "text_adapter.pth", modules, "text_optimizer", optimizer, None, args, logger)
        train_text_adapter(model, clip_surgery, args.text_norm_weight, text_loader, optimizer, device, done, save_path,
                           args.text_epoch, args.dataset, args.img_size, logger,
                           text_loss_levels=args.text_loss_levels, text_cls_weight=args.text_cls_weight,
                           record=record)  # fmt: skip
    with torch.no_grad():
        source = model if args.text_epoch > 0 else clip
        text_embeddings = get_adapted_text_embedding(source, args.dataset, device)

    modules = {"image_adapter": model.image_adapter}
    optimizer = adam(modules, args.image_lr)
    scheduler = image_schedule(args, optimizer, args.image_epoch, len(image_loader))
    done = resume_stage(save_path / "image_adapter.pth", modules, "image_optimizer", optimizer, scheduler, args, logger)
    train_image_adapter(model, text_embeddings, image_loader, optimizer, scheduler, device, done, save_path,
                        args.image_epoch, args.img_size, logger, head_temperature=args.head_temperature,
                        record=record)  # fmt: skip
    logger.info(f"done: checkpoints in {save_path}")


if __name__ == "__main__":
    main()
