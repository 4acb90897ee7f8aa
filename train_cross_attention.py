"""Train AA-CLIP with cross-attention in both towers: stage 1 text -> image, stage 2 image -> text."""

import argparse
from functools import partial
from pathlib import Path

import torch

import options
from checkpoints import save_checkpoint
from context_controls import controlled_scope
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
    log_settings,
    only_training,
    open_run,
    record_of,
    resume_stage,
    save_stage,
    training_loaders,
    unaugmented,
)


def text_modules(model):
    """What stage 1 trains, by checkpoint key."""
    return {"text_adapter": model.text_adapter, "text_cross_attn": model.text_cross_attn}


def image_modules(model):
    """What stage 2 trains, by checkpoint key."""
    return model.image_modules


def loss_levels(model, args):
    """The levels stage 1 segments."""
    return model.levels if args.text_loss_levels == "all" else model.levels[-1:]


def text_loss(model, patches_of, args, device):
    """Stage 1's loss of a batch: prompts attend to the first level of the patches they will be compared with."""
    first, scope = model.levels[0], controlled_scope(CONTEXT_SCOPES[args.context_scope], args.context_control)

    def anchors_of(batch, patches):
        anchors = anchors_with_context(model, args.dataset, scope(patches[first], batch["class_name"]), device)
        return torch.stack([anchors[name] for name in batch["class_name"]])

    return partial(text_stage_loss, patches_of=patches_of, anchors_of=anchors_of, loss_levels=loss_levels(model, args),
                   norm_weight=args.text_norm_weight, cls_weight=args.text_cls_weight)  # fmt: skip


def image_loss(model, contexts, anchors_of, args):
    """Stage 2's loss of a batch: images attend to the prompts of their class."""

    def encode(batch):
        return model(batch["image"], text_context_groups(contexts, batch["class_name"]))

    return partial(image_stage_loss, encode=encode, anchors_of=lambda batch: model.with_reference(anchors_of(batch)),
                   head_temperature=args.head_temperature)  # fmt: skip


def frozen_paths(model, clip_surgery, args):
    """Stage 1's frozen image side: (batch -> what the loss and the prompts see, batch -> first-level patches)."""
    first = model.levels[0]
    wanted = sorted({first, *loss_levels(model, args)})
    return (
        lambda batch: frozen_patches(model.clipmodel, clip_surgery, batch["image"], wanted),
        lambda batch: frozen_patches(model.clipmodel, clip_surgery, batch["image"], [first])[0][first],
    )


def anchors_after_stage_1(model, first_patches, text_set, args, device):
    """Function (batch) -> anchors [B, E, 2] as `--text_context` wants them, and those of `train_mean` by class."""
    if args.text_context == "image":
        return own_anchors(model, args.dataset, first_patches, device), {}
    means = {}
    if args.text_context == "train_mean":
        means = mean_anchors(model, args.dataset, unaugmented(text_set, args.text_batch_size), first_patches, device)
    return fixed_anchors(model, args.dataset, means, device), means


def save_context(path, contexts, means):
    """Write what images attend to, and the anchors of `--text_context train_mean` ({} otherwise)."""
    tokens = {name: context._asdict() for name, context in contexts.items()}
    save_checkpoint(path, {"text_context": tokens, "mean_anchors": means})


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
    with open_run(args, "train.log") as (device, logger):
        train(args, device, logger)


def train(args, device, logger):
    """Both stages of a run, each from where its checkpoint left it."""
    log_settings(args, device, logger)
    declare_datasets(args)
    clip = create_backbone(args, device)
    clip_surgery = surgery_copy(clip, args.surgery_until_layer, across_batch=args.surgery_attention == "batch")
    model = create_cross_attention_model(clip, args, device)
    text_loader, image_loader = training_loaders(args, logger)
    save_path, record = Path(args.save_path), record_of(args)
    origins = load_base(model, args.load_base_text_adapter, args.load_base_image_adapter)
    patches_of, first_patches = frozen_paths(model, clip_surgery, args)

    text_file, modules = save_path / "text_adapter_cross_attn.pth", text_modules(model)
    optimizer = adam(modules, args.text_lr)
    done = resume_stage(text_file, modules, "text_optimizer", optimizer, None, args, logger)
    summarise(origins, modules, text_file, done, logger)
    with only_training(model, modules):
        train_stage("text", text_loss(model, patches_of, args, device), text_loader, optimizer, device,
                    start_epoch=done, epochs=args.text_epoch, logger=logger,
                    save=partial(save_stage, text_file, modules=modules, optimizer_key="text_optimizer",
                                 optimizer=optimizer, record=record))  # fmt: skip

    contexts = text_context_dictionary(model, args.dataset, device, args.context_control)
    anchors_of, means = anchors_after_stage_1(model, first_patches, text_loader.dataset, args, device)
    save_context(save_path / "text_context_dict.pth", contexts, means)

    image_file, modules = save_path / "image_adapter_cross_attn.pth", image_modules(model)
    optimizer = adam(modules, args.image_lr)
    scheduler = image_schedule(args, optimizer, args.image_epoch, len(image_loader))
    done = resume_stage(image_file, modules, "image_optimizer", optimizer, scheduler, args, logger)
    summarise(origins, modules, image_file, done, logger)

    def save(epoch):
        files = [save_path / f"image_adapter_cross_attn_{epoch}.pth", image_file]
        save_stage(files, epoch, modules, "image_optimizer", optimizer, scheduler, record)

    with only_training(model, modules):
        train_stage("image", image_loss(model, contexts, anchors_of, args), image_loader, optimizer, device,
                    start_epoch=done, epochs=args.image_epoch, logger=logger, save=save,
                    scheduler=scheduler)  # fmt: skip
    logger.info(f"done: checkpoints in {save_path}")


if __name__ == "__main__":
    main()
