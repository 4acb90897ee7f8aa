"""Train with feedback: both stages alternate over loops, and the text learns again from the better image features."""

import argparse
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader

import feedback_recipes as recipes
import options
from checkpoints import load_checkpoint, restore_rng, rng_state, save_checkpoint
from dataset import get_dataset
from engine import train_stage
from feedback_evaluation import evaluate_loop, load_loop, modules_of
from forward_utils_cross_attention import text_context_dictionary, trained_paths
from initialisation import load_base, summarise
from learning_curves import complaints, write_history
from model.adapter_cross_attention import AdaptedCLIPWithCrossAttention
from model.clip import surgery_copy
from run_files import FINAL_MODEL, finished_loops, loop_file
from runs import (
    Record,
    check_same_run,
    create_backbone,
    create_cross_attention_model,
    declare_datasets,
    log_settings,
    only_training,
    open_run,
    record_of,
    resume_stage,
    save_stage,
    training_loaders,
)
from train_cross_attention import (
    anchors_after_stage_1,
    frozen_paths,
    image_loss,
    image_modules,
    save_context,
    text_loss,
    text_modules,
)

EXTENDABLE = {"num_feedback_loops"}  # a run may be continued with more loops; nothing before depends on their number


class Run(NamedTuple):
    """What stays the same over the loops of a run."""

    args: argparse.Namespace
    device: torch.device
    logger: object
    model: AdaptedCLIPWithCrossAttention
    clip_surgery: torch.nn.Module
    text_loader: DataLoader
    image_loader: DataLoader
    test_sets: dict  # of --eval_every_loop; {} without
    record: Record
    origins: dict  # from initialisation.load_base

    def file(self, loop, name):
        """Path of one of a loop's files."""
        return loop_file(self.args.save_path, loop, name)


class Stage(NamedTuple):
    """One of a loop's two stages."""

    name: str  # "text" or "image"
    epochs: int
    lr: float
    epoch_offset: int  # epochs of this stage in the loops before
    modules: dict
    loader: DataLoader


def build_parser():
    """The flags of train_cross_attention.py and those of the loop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    options.add_model_flags(parser)
    options.add_cross_attention_flags(parser)
    options.add_data_flags(parser, dataset="VisA", shot=32)
    options.add_training_flags(parser)
    recipes.add_flags(parser)
    options.add_base_flags(parser)
    options.add_oddity_flags(parser)
    options.add_run_flags(parser, save_path="ckpt/feedback")
    parser.add_argument("--eval_every_loop", metavar="DATASET", help="evaluate on this dataset after every loop")
    return parser


def main(argv=None):
    args = recipes.fill_in(options.parse(build_parser(), argv))
    with open_run(args, "train.log") as (device, logger):
        train(args, device, logger)


def train(args, device, logger):
    """All loops of a run, from where its files left it."""
    log_settings(args, device, logger)
    declare_datasets(args)
    plans = recipes.plan(args)
    test_sets = {}
    if args.eval_every_loop:  # before anything is trained, so that a missing dataset stops the run at once
        test_sets = get_dataset(args.eval_every_loop, args.img_size, "full_shot", 0, "test", logger,
                                data_root=args.data_root)  # fmt: skip
    clip = create_backbone(args, device)
    clip_surgery = surgery_copy(clip, args.surgery_until_layer, across_batch=args.surgery_attention == "batch")
    model = create_cross_attention_model(clip, args, device)
    text_loader, image_loader = training_loaders(args, logger)
    origins = load_base(model, args.load_base_text_adapter, args.load_base_image_adapter)
    run = Run(args, device, logger, model, clip_surgery, text_loader, image_loader, test_sets, record_of(args), origins)

    loops, final = resume_loops(run)
    if loops:
        write_history(args.save_path, loops)  # a run killed between its last loop and this file gets it now
    for plan in plans[len(loops) :]:
        logger.info(
            f"loop {plan.loop} of {len(plans)}: text {plan.text_epochs} epochs at lr {plan.text_lr:.3g}, image "
            f"{plan.image_epochs} at {plan.image_lr:.3g}, cross-attention {'on' if plan.cross_attention else 'off'}"
        )
        final = train_loop(run, plan, plans[: plan.loop - 1])
        loops.append({"loop": plan.loop} | final["history"])
        write_history(args.save_path, loops)
    save_checkpoint(
        Path(args.save_path) / FINAL_MODEL,
        {"total_loops": len(plans)} | {key: value for key, value in final.items() if key not in ("rng", "history")},
    )
    logger.info(f"done: checkpoints, history.json and learning_curves.png in {args.save_path}")


def train_loop(run, plan, earlier):
    """One loop: stage 1 on what the image path gives now, then stage 2 on the new text; everything is carried over.

    Args:
        plan: the loop's LoopPlan.  earlier: those of the loops before.

    Returns:
        the content of the loop's loop_{n}_final.pth.
    """
    args, device, model, loop = run.args, run.device, run.model, plan.loop
    model.text_cross_attn_weight = args.text_cross_attn_weight if plan.cross_attention else 0.0
    # In stage 1 the image path is the one the loop before trained: without attention, if that loop had none.
    model.image_cross_attn_weight = args.image_cross_attn_weight if (earlier or [plan])[-1].cross_attention else 0.0
    if loop == 1:
        patches_of, first_patches = frozen_paths(model, run.clip_surgery, args)
    else:
        patches_of, _ = trained_paths(model, text_context_dictionary(model, args.dataset, device, args.context_control))
    text = Stage("text", plan.text_epochs, plan.text_lr, sum(one.text_epochs for one in earlier),
                 text_modules(model), run.text_loader)  # fmt: skip
    text_history = train_one_stage(run, plan, text, text_loss(model, patches_of, args, device))

    contexts = text_context_dictionary(model, args.dataset, device, args.context_control)
    if loop > 1:
        first_patches = trained_paths(model, contexts)[1]
    anchors_of, means = anchors_after_stage_1(model, first_patches, run.text_loader.dataset, args, device)
    save_context(run.file(loop, "text_context_dict"), contexts, means)

    model.image_cross_attn_weight = args.image_cross_attn_weight if plan.cross_attention else 0.0
    image = Stage("image", plan.image_epochs, plan.image_lr, sum(one.image_epochs for one in earlier),
                  image_modules(model), run.image_loader)  # fmt: skip
    image_history = train_one_stage(run, plan, image, image_loss(model, contexts, anchors_of, args))

    content = {"loop": loop, "cross_attention": plan.cross_attention, "mean_anchors": means}
    content |= {key: module.state_dict() for key, module in modules_of(model).items()} | run.record._asdict()
    content |= {"rng": rng_state(), "history": {"text": text_history, "image": image_history}}
    if run.test_sets:  # before the loop counts as finished, so that a killed run does not leave an evaluation out
        evaluate_loop(model, loop, means, run.test_sets, args, device, run.logger)
    save_checkpoint(run.file(loop, "final"), content)
    return content


def train_one_stage(run, plan, stage, step_loss):
    """Train one stage of a loop from where its file left it; returns its epochs (engine.train_stage's history)."""
    args, logger = run.args, run.logger
    file, optimizer_key, history = run.file(plan.loop, f"{stage.name}_adapter"), f"{stage.name}_optimizer", []
    optimizer = recipes.optimizer(args, stage.modules, stage.lr)
    scheduler = recipes.scheduler(args, optimizer, stage.name, stage.epochs, len(stage.loader))
    done = resume_stage(file, stage.modules, optimizer_key, optimizer, scheduler, args, logger,
                        extendable=EXTENDABLE, history=history)  # fmt: skip
    active = active_modules(run.model, stage.modules)
    say_origins(run, plan, active, file, done)

    def save(epoch):
        save_stage(file, epoch, stage.modules, optimizer_key, optimizer, scheduler, run.record, history)

    with only_training(run.model, stage.modules):
        train_stage(stage.name, step_loss, stage.loader, optimizer, run.device, start_epoch=done, epochs=stage.epochs,
                    logger=logger, save=save, scheduler=scheduler, epoch_offset=stage.epoch_offset,
                    clip_norm=args.clip_norm or None, watched=active, history=history,
                    enough=recipes.plateau(args, stage.epochs))  # fmt: skip
    for complaint in complaints(plan.loop, stage.name, history):
        logger.warning(complaint)
    return history


def active_modules(model, modules):
    """The modules of a stage without a cross-attention whose weight is 0: nothing reaches that one."""
    return {key: module for key, module in modules.items() if getattr(model, f"{key}_weight", 1.0)}


def say_origins(run, plan, modules, file, done):
    """Log where each module's weights come from."""
    if plan.loop == 1 or done:
        summarise(run.origins, modules, file, done, run.logger)
        return
    for key in modules:
        run.logger.info(f"{key}: carried over from loop {plan.loop - 1}")


def resume_loops(run):
    """Load the last finished loop, if there is one.

    Returns:
        (the finished loops for learning_curves.write_history, content of the last one's file or None)

    Raises:
        ValueError: more loops are finished than the run is to have.
        RuntimeError: a file is damaged or of a run with other flags.
    """
    finished, loops, content = finished_loops(run.args.save_path), [], None
    wanted = run.args.num_feedback_loops
    if finished and finished[-1][0] > wanted:
        raise ValueError(
            f"--num_feedback_loops {wanted}: {run.args.save_path} already has loop {finished[-1][0]}; give at least "
            f"that many loops, evaluate a shorter run with test.py --loop {wanted}, or start with another --save_path"
        )
    for expected, (loop, path) in enumerate(finished, start=1):
        if loop != expected:
            raise FileNotFoundError(
                f"{path} is there, but not {run.file(expected, 'final').name}: put it back, or delete the later loops "
                "to train them again"
            )
        content = load_checkpoint(path, keys=["loop", "settings", "rng", "history"])
        check_same_run(content["settings"], run.args, path, EXTENDABLE)
        loops.append({"loop": loop} | content["history"])
    if content is not None:
        load_loop(run.model, path)
        restore_rng(content["rng"])
        run.logger.info(f"{path.name}: {len(loops)} loops done, continuing from there")
    return loops, content


if __name__ == "__main__":
    main()
