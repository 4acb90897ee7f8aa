"""Train AA-CLIP with cross-attention in both towers: stage 1 text -> image, stage 2 image -> text."""

import argparse
from functools import partial
from pathlib import Path

import torch

import options
from checkpoints import save_checkpoint
from engine import image_stage_loss, text_stage_loss, train_stage
from forward_utils import frozen_patches
from forward_utils_cross_attention import (
    CONTEXT_SCOPES,
    anchors_with_context,
    fixed_anchors,
    mean_anchors,
    own_anchors,
    text_context_dictionary,
    text_context_groups,
)
from initialisation import load_base, summarise
from model.clip import surgery_copy
from runs import (
    adam,
    create_backbone,
    create_cross_attention_model,
    declare_datasets,
    image_schedule,
    only_training,
    open_run,
    record_of,
    resume_stage,
    save_stage,
    training_loaders,
    unaugmented,
)
from utils import close_logger

TEXT_FILE, IMAGE_FILE = "text_adapter_cross_attn.pth", "image_adapter_cross_attn.pth"


def text_modules(model):
    """What stage 1 trains, by checkpoint key."""
    return {"text_adapter": model.text_adapter, "text_cross_attn": model.text_cross_attn}


def image_modules(model):
    """What stage 2 trains, by checkpoint key."""
    return {"image_adapter": model.image_adapter, "image_cross_attn": model.image_cross_attn}


def text_loss(model, patches_of, args, device):
    """Stage 1's loss of a batch: prompts attend to the first level of the patches they will be compared with."""
    first, scope = model.levels[0], CONTEXT_SCOPES[args.context_scope]

    def anchors_of(class_names, patches):
        anchors = anchors_with_context(model, args.dataset, scope(patches[first], class_names), device)
        return torch.stack([anchors[name] for name in class_names])

    levels = model.levels if args.text_loss_levels == "all" else model.levels[-1:]
    return partial(text_stage_loss, patches_of=patches_of, anchors_of=anchors_of, loss_levels=levels,
                   norm_weight=args.text_norm_weight, cls_weight=args.text_cls_weight)  # fmt: skip


def image_loss(model, contexts, anchors_of, args):
    """Stage 2's loss of a batch: images attend to the prompts of their class."""

    def encode(batch):
        return model(batch["image"], text_context_groups(contexts, batch["class_name"]))

    return partial(image_stage_loss, encode=encode, anchors_of=anchors_of, head_temperature=args.head_temperature)


def build_parser():
    """The flags of train.py and those of the cross-attention."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    options.add_model_flags(parser)
    options.add_cross_attention_flags(parser)
    options.add_data_flags(parser, dataset="VisA", shot=32)
    options.add_training_flags(parser)
    options.add_base_flags(parser)
    options.add_oddity_flags(parser)
    options.add_run_flags(parser, save_path="ckpt/cross_attention")
    return parser


def main(argv=None):
    args = options.parse(build_parser(), argv)
    device, logger, lock = open_run(args, "train.log")
    declare_datasets(args)
    clip = create_backbone(args, device)
    clip_surgery = surgery_copy(clip, args.surgery_until_layer, across_batch=args.surgery_attention == "batch")
    model = create_cross_attention_model(clip, args, device)
    text_loader, image_loader = training_loaders(args, logger)
    save_path, record = Path(args.save_path), record_of(args)
    origins = load_base(model, args.load_base_text_adapter, args.load_base_image_adapter)

    modules = text_modules(model)
    optimizer = adam(modules, args.text_lr)
    done = resume_stage(save_path / TEXT_FILE, modules, "text_optimizer", optimizer, None, args, logger)
    summarise(origins, modules, save_path / TEXT_FILE, done, logger)
    wanted = sorted({model.levels[0], *(model.levels if args.text_loss_levels == "all" else model.levels[-1:])})

    def save_text(epoch):
        save_stage(save_path / TEXT_FILE, epoch, modules, "text_optimizer", optimizer, record=record)

    with only_training(model, modules):
        step_loss = text_loss(model, lambda image: frozen_patches(clip, clip_surgery, image, wanted), args, device)
        train_stage("text", step_loss, text_loader, optimizer, device, start_epoch=done, epochs=args.text_epoch,
                    logger=logger, save=save_text)  # fmt: skip

    def first_patches(image):
        return frozen_patches(clip, clip_surgery, image, model.levels[:1])[0][model.levels[0]]

    contexts = text_context_dictionary(model, args.dataset, device)
    means = {}
    if args.text_context == "train_mean":
        images = unaugmented(text_loader.dataset, args.text_batch_size)
        means = mean_anchors(model, args.dataset, images, first_patches, device)
    if args.text_context == "image":
        anchors_of = own_anchors(model, args.dataset, first_patches, device)
    else:
        anchors_of = fixed_anchors(model, args.dataset, means, device)
    save_checkpoint(save_path / "text_context_dict.pth", {
        "text_context": {name: context._asdict() for name, context in contexts.items()}, "mean_anchors": means
    })  # fmt: skip

    modules = image_modules(model)
    optimizer = adam(modules, args.image_lr)
    scheduler = image_schedule(args, optimizer, args.image_epoch, len(image_loader))
    done = resume_stage(save_path / IMAGE_FILE, modules, "image_optimizer", optimizer, scheduler, args, logger)
    summarise(origins, modules, save_path / IMAGE_FILE, done, logger)

    def save_image(epoch):
        files = [save_path / f"image_adapter_cross_attn_{epoch}.pth", save_path / IMAGE_FILE]
        save_stage(files, epoch, modules, "image_optimizer", optimizer, scheduler, record)

    with only_training(model, modules):
        step_loss = image_loss(model, contexts, anchors_of, args)
        train_stage("image", step_loss, image_loader, optimizer, device, start_epoch=done, epochs=args.image_epoch,
                    logger=logger, save=save_image, scheduler=scheduler)  # fmt: skip
    logger.info(f"done: checkpoints in {save_path}")
    close_logger(logger)
    lock.release()


if __name__ == "__main__":
    main()
