"""Train semantic fill: FLUX.1-Fill with LoRA learns by flow matching to fill the right half of a diptych, told where by
a semantic map through a small cross-attention."""

import argparse
from collections.abc import Sequence
from logging import Logger
from pathlib import Path
from typing import Any

import torch

try:
    from synthesis.backbone import LICENCE
    from synthesis.system import DTYPES, FillSystem, assemble
    from synthesis.training import LR_SCHEDULES, OPTIMIZERS, Schedule, make_optimizer, train
    from synthesis.weights import checkpoints_of, load_optimizer, load_weights_into, read_config, save_system
except ModuleNotFoundError as error:
    if error.name not in ("diffusers", "peft", "transformers", "tokenizers", "accelerate"):
        raise
    raise SystemExit(
        f"semantic fill needs {error.name}: pip install -r requirements-synthesis.txt"
    ) from error

from run_folder.session import open_run
from run_folder.settings import RunSettings
from synthesis.attention import LAYOUTS, POSITIONS
from synthesis.data import Triptychs
from synthesis.latents import FILL_MASKS, check_side

PROMPT = "left: a scene; right: the same scene, changed where it is marked"
MAY_DIFFER = {  # flags that may change between a run's start and its resume
    "save_path",
    "model",
    "data",
    "device",
    "workers",
    "steps",
    "log_every",
    "save_every",
    "gradient_checkpointing",
}
MASK_LEVEL = 0.02  # how far from black or white a pixel of a black-and-white map may be, in [-1, 1]


def build_parser() -> argparse.ArgumentParser:
    """The flags of this script."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=LICENCE, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    group = parser.add_argument_group("run")
    group.add_argument(
        "--model",
        default="tiny",
        help="folder or hub id of FLUX.1 Fill; tiny or small: random, built from a seed",
    )
    group.add_argument("--data", required=True, help="folder of triptychs, or a triptych.jsonl")
    group.add_argument(
        "--out", dest="save_path", required=True, help="the run's folder; one with checkpoints resumes"
    )
    group.add_argument(
        "--seed", type=int, default=111, help="seed of new weights, order, times, noise and drops"
    )
    group.add_argument("--device", help="torch device; default CUDA if there, else CPU")
    group.add_argument("--workers", type=int, default=0, help="data loader processes; never changes a number")
    group = parser.add_argument_group("semantic cross-attention")
    group.add_argument("--semantic_layers", type=int, default=1, help="one after another; 0 = no semantics")
    group.add_argument("--semantic_heads", type=int, default=8)
    group.add_argument(
        "--semantic_layout", choices=LAYOUTS, default="33k", help="33,088 or 16,897 parameters"
    )
    group.add_argument(
        "--semantic_pos", choices=POSITIONS, default="local", help="none cannot place anything"
    )
    add_task_flags(parser)
    add_training_flags(parser)
    return parser


def add_task_flags(parser: argparse.ArgumentParser) -> None:
    """What is filled, and how often a condition is left out."""
    group = parser.add_argument_group("task")
    group.add_argument("--size", type=int, default=512, help="panel side in pixels, a multiple of 16")
    group.add_argument(
        "--fill_mask",
        choices=FILL_MASKS,
        help="what is filled; default: semantic for black-and-white maps, else panel",
    )
    group.add_argument("--prompt", default=PROMPT, help="the one prompt of all examples")
    group.add_argument("--text_drop", type=float, default=0.1, help="share of examples with the empty prompt")
    group.add_argument(
        "--semantic_drop", type=float, default=0.1, help="share of examples without semantic map"
    )


def add_training_flags(parser: argparse.ArgumentParser) -> None:
    """Optimiser, schedule, LoRA, memory, and how often the run writes."""
    group = parser.add_argument_group("training")
    group.add_argument("--steps", type=int, default=1000, help="in all, those before a resume included")
    group.add_argument("--batch_size", type=int, default=1, help="triptychs per step")
    group.add_argument("--optimizer", choices=tuple(OPTIMIZERS), default="adamw")
    group.add_argument("--lr", type=float, help=f"default by optimizer: {OPTIMIZERS}")
    group.add_argument(
        "--lr_schedule",
        choices=LR_SCHEDULES,
        default="constant",
        help="cosine: rises over the first 20th of the steps, falls to 0 at the last",
    )
    group.add_argument(
        "--fill_share",
        type=float,
        help="share of the loss on tokens to be filled; default: all tokens count alike",
    )
    group.add_argument(
        "--gradient_clip", type=float, default=0.5, help="largest norm of all gradients together"
    )
    group.add_argument("--lora_rank", type=int, default=32)
    group.add_argument("--lora_alpha", type=int, default=32)
    group.add_argument(
        "--train_backbone",
        action="store_true",
        help="train the whole transformer too: for tiny and small, which know nothing",
    )
    group.add_argument(
        "--dtype",
        choices=tuple(DTYPES),
        default="float32",
        help="of the frozen weights; what is trained is always float32",
    )
    group.add_argument("--gradient_checkpointing", action="store_true", help="less memory, more time")
    group.add_argument("--log_every", type=int, default=10, help="steps per log line")
    group.add_argument(
        "--save_every", type=int, default=500, help="steps per checkpoint; one more at the end"
    )


def check(args: argparse.Namespace) -> None:
    """Raises ValueError for flags no run can have."""
    check_side(args.size)
    for flag in ("steps", "batch_size", "log_every", "save_every"):
        if getattr(args, flag) < 1:
            raise ValueError(f"--{flag} {getattr(args, flag)}: expected 1 or more")
    for flag in ("text_drop", "semantic_drop", "fill_share"):
        if getattr(args, flag) is not None and not 0 <= getattr(args, flag) <= 1:
            raise ValueError(f"--{flag} {getattr(args, flag)}: expected a share between 0 and 1")
    for flag in ("gradient_clip", "lr"):
        value = getattr(args, flag)
        if value is not None and not value > 0:
            raise ValueError(f"--{flag} {value}: expected a positive number")


def natural_fill_mask(dataset: Sequence[dict], looked_at: int = 16) -> str:
    """ "semantic" when the first maps are black-and-white masks and one of them has something white, else "panel"."""
    maps = [dataset[index]["semantic"] for index in range(min(looked_at, len(dataset)))]
    black_and_white = all((semantic.abs() > 1 - MASK_LEVEL).all() for semantic in maps)
    return "semantic" if black_and_white and any((semantic > 0).any() for semantic in maps) else "panel"


def check_resume(stored: dict[str, Any], args: argparse.Namespace, examples: int) -> None:
    """Raises ValueError when a run's flags or number of triptychs differ from its checkpoint's."""
    now = {**vars(args), "examples": examples}
    may_differ = MAY_DIFFER - (
        {"steps"} if args.lr_schedule == "cosine" else set()
    )  # the rate depends on the last one
    differing = [
        f"{name} {stored.get(name)} -> {value}"
        for name, value in now.items()
        if name not in may_differ and stored.get(name) != value
    ]
    if differing:
        raise ValueError(
            f"--out {args.save_path} holds a run with other settings ({'; '.join(differing)}): "
            "repeat its flags to resume it, or choose another folder"
        )


def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    check(args)
    dataset = Triptychs(args.data, args.size)
    folder = RunSettings(args.seed, args.save_path, args.device, args.workers)
    with open_run(folder, "train.log") as (device, logger):
        run(args, dataset, device, logger)


def run(args: argparse.Namespace, dataset: Triptychs, device: torch.device, logger: Logger) -> None:
    """Start or resume a run and train it to its end."""
    if args.fill_mask is None:
        args.fill_mask = natural_fill_mask(dataset)
    logger.info("flags: " + ", ".join(f"{key}={value}" for key, value in sorted(vars(args).items())))
    logger.info(
        f"{len(dataset)} triptychs of {args.size} pixels; fill mask: {args.fill_mask}; device {device}"
    )
    last = checkpoints_of(args.save_path)[-1:]
    done, folder = last[0] if last else (0, None)
    if folder:
        check_resume(read_config(folder), args, len(dataset))
    config = {**vars(args), "examples": len(dataset)}
    system = assemble(args.model, config, device)
    if args.gradient_checkpointing:
        system.backbone.transformer.enable_gradient_checkpointing()
    optimizer = make_optimizer(args.optimizer, system.trainable(), args.lr)
    log_parameters(system, args, logger)
    if folder:
        load_weights_into(system, folder, args.train_backbone)
        load_optimizer(optimizer, folder)
        logger.info(f"resumed {folder.name}")
    schedule = Schedule(**{field: getattr(args, field) for field in Schedule._fields})
    if done >= args.steps:
        logger.info(f"nothing to do: {done} steps are trained, --steps is {args.steps}")
        return
    train(
        system,
        dataset,
        optimizer,
        schedule,
        logger,
        first_step=done,
        workers=args.workers,
        save=lambda step: save_system(args.save_path, step, system, config, optimizer),
    )
    logger.info(f"done: checkpoints in {Path(args.save_path)}")


def log_parameters(system: FillSystem, args: argparse.Namespace, logger: Logger) -> None:
    """What is trained, counted, not assumed."""
    semantic = sum(parameter.numel() for parameter in system.attention.parameters())
    trained = sum(parameter.numel() for parameter in system.trainable())
    inside = (
        f"LoRA (rank {args.lora_rank}) and backbone"
        if args.train_backbone
        else f"LoRA (rank {args.lora_rank})"
    )
    logger.info(f"Added {trained - semantic} {inside} parameters to optimizer")
    logger.info(
        f"Added {semantic} semantic cross-attention parameters to optimizer: mode {args.semantic_layout}, positions "
        f"{args.semantic_pos}, layers {args.semantic_layers}, heads {args.semantic_heads}"
    )


if __name__ == "__main__":
    main()
