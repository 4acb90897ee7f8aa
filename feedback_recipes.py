"""The feedback loop's schedules: recipe v1 (default), recipe v2, and every part of them as its own flag."""

import math
from typing import NamedTuple

import torch

from runs import milestones_in_steps

RECIPES = {
    "v1": {
        "optimizer": "adam", "betas": [0.5, 0.999], "weight_decay": 0.0, "schedule": "milestones", "warmup_epochs": 0,
        "clip_norm": 0.0, "lr_decay_per_loop": 0.5, "epoch_decay_per_loop": None, "cross_attn_start_loop": 1,
        "plateau_threshold": 0.01, "plateau_patience": 0, "milestones": [0.5, 0.8],
    },
    "v2": {
        "optimizer": "adamw", "betas": [0.9, 0.999], "weight_decay": 0.01, "schedule": "cosine", "warmup_epochs": 2,
        "clip_norm": 1.0, "lr_decay_per_loop": 0.8, "epoch_decay_per_loop": 0.8, "cross_attn_start_loop": 1,
        "plateau_threshold": 0.01, "plateau_patience": 2, "milestones": [0.5, 0.8], "text_lr": 2e-5, "image_lr": 5e-3,
        "text_epoch": 5, "image_epoch": 15,
    },
}  # fmt: skip
LATER_PART = {"text": (3 / 5, 2 / 5), "image": (1 / 2, 1 / 4)}  # recipe v1: of the first loop's epochs; loop 2, later
OWN_LOOPS = (1, 2, 3)  # loops with epoch flags of their own; the last one's also count for every later loop


class LoopPlan(NamedTuple):
    """What one loop does: epochs and learning rate of both stages, and whether cross-attention is on."""

    loop: int
    text_epochs: int
    image_epochs: int
    text_lr: float
    image_lr: float
    cross_attention: bool


def add_flags(parser):
    """Flags of the loop; parts of a recipe that are not typed take the recipe's value."""
    group = parser.add_argument_group("feedback")
    group.add_argument("--num_feedback_loops", type=int, default=3, help="a finished run continues with a larger one")
    group.add_argument("--recipe", choices=sorted(RECIPES), default="v1", help="values of the flags below not typed")
    for loop in OWN_LOOPS:
        later = " and later ones" if loop == OWN_LOOPS[-1] else ""
        for stage in ("text", "image"):
            v1 = f"--{stage}_epoch" + (f" * {LATER_PART[stage][loop - 2]}" if loop > 1 else "")
            group.add_argument(f"--loop{loop}_{stage}_epoch", type=int,
                               help=f"epochs of the {stage} stage in loop {loop}{later}; v1: {v1}")  # fmt: skip
    group.add_argument("--optimizer", choices=["adam", "adamw"], help="v1 adam, v2 adamw")
    group.add_argument("--betas", type=float, nargs=2, help="v1 0.5 0.999, v2 0.9 0.999")
    group.add_argument("--weight_decay", type=float, help="v1 0, v2 0.01")
    group.add_argument("--schedule", choices=["milestones", "cosine"],
                       help="v1 milestones (of the image stage; the text's rate is constant), v2 cosine")  # fmt: skip
    group.add_argument("--warmup_epochs", type=int, help="linear, at most half of a stage; v1 0, v2 2")
    group.add_argument("--clip_norm", type=float, help="largest gradient norm, 0 = none; v1 0, v2 1")
    group.add_argument("--lr_decay_per_loop", type=float, help="factor on both learning rates; v1 0.5, v2 0.8")
    group.add_argument("--epoch_decay_per_loop", type=float,
                       help="factor on --text_epoch and --image_epoch; v1 none, v2 0.8")  # fmt: skip
    group.add_argument("--cross_attn_start_loop", type=int, help="cross-attention is off in the loops before; 1")
    group.add_argument("--plateau_threshold", type=float, help="an epoch is flat whose loss fell by this part at most")
    group.add_argument("--plateau_patience", type=int, help="flat epochs in a row that end a stage, 0 = never; v2 2")


def fill_in(args):
    """Give every recipe flag the user did not type its recipe's value.

    Recipe v1 names no learning rate and no first epochs: those of `model/run_defaults.json` and options.py stay.

    Raises:
        ValueError: a value makes no schedule.
    """
    for flag, value in RECIPES[args.recipe].items():
        if flag not in args.typed:
            setattr(args, flag, value)
    at_least = {"num_feedback_loops": 1, "cross_attn_start_loop": 1, "clip_norm": 0, "weight_decay": 0,
                "warmup_epochs": 0, "plateau_patience": 0, "text_epoch": 0, "image_epoch": 0}  # fmt: skip
    at_least |= {f"loop{loop}_{stage}_epoch": 0 for loop in OWN_LOOPS for stage in ("text", "image")}
    for flag, least in at_least.items():
        value = getattr(args, flag)
        if value is not None and not value >= least:
            raise ValueError(f"--{flag} {value}: expected at least {least}")
    for flag in ("lr_decay_per_loop", "epoch_decay_per_loop"):
        value = getattr(args, flag)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"--{flag} {value}: expected a factor above 0; 1 keeps every loop alike")
    return args


def plan(args):
    """The LoopPlan of every loop."""
    return [
        LoopPlan(
            loop, epochs_of(args, "text", loop), epochs_of(args, "image", loop),
            args.text_lr * args.lr_decay_per_loop ** (loop - 1), args.image_lr * args.lr_decay_per_loop ** (loop - 1),
            loop >= args.cross_attn_start_loop,
        )
        for loop in range(1, args.num_feedback_loops + 1)
    ]  # fmt: skip


def epochs_of(args, stage, loop):
    """Epochs of a stage in a loop: the loop's own flag, else a part of --text_epoch or --image_epoch.

    Recipe v1's parts make 5, 3, 2 of AA-CLIP's 5 text epochs and 20, 10, 5 of its 20 image epochs.
    """
    typed = getattr(args, f"loop{min(loop, OWN_LOOPS[-1])}_{stage}_epoch")
    if typed is not None:
        return typed
    first = getattr(args, f"{stage}_epoch")
    if loop == 1 or first == 0:
        return first
    if args.epoch_decay_per_loop is not None:
        part = args.epoch_decay_per_loop ** (loop - 1)
    else:
        part = LATER_PART[stage][min(loop, 3) - 2]
    return max(1, round(first * part))


def optimizer(args, modules, lr):
    """The recipe's optimiser over the parameters of {key: module}."""
    parameters = [parameter for module in modules.values() for parameter in module.parameters()]
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[args.optimizer]
    return kind(parameters, lr=lr, betas=tuple(args.betas), weight_decay=args.weight_decay)


def warmup(args, epochs):
    """Warm-up epochs of a stage: at most half of it, so that a short stage trains at its rate too."""
    return min(args.warmup_epochs, epochs // 2)


def scheduler(args, own, stage, epochs, steps_per_epoch):
    """The recipe's learning rate over one loop's stage, stepped per batch.

    Warm-up rises linearly to the optimiser's rate; then a cosine falls to 0 at the stage's end, or the image stage's
    rate is halved at the milestones (the text stage's stays, as in AA-CLIP).
    """
    total, rise = epochs * steps_per_epoch, warmup(args, epochs) * steps_per_epoch
    halvings = milestones_in_steps(args.milestones, total) if stage == "image" else []

    def factor(step):
        if step < rise:
            return (step + 1) / rise
        if args.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))
        return 0.5 ** sum(step >= milestone for milestone in halvings)

    return torch.optim.lr_scheduler.LambdaLR(own, factor)


def plateau(args, epochs):
    """Function (history) -> whether the last `--plateau_patience` epochs were all flat; None when the patience is 0.

    An epoch is flat when the loss fell by at most `--plateau_threshold` of its value; warm-up epochs, whose rate is
    small, do not count.
    """
    if args.plateau_patience < 1:
        return None
    before = warmup(args, epochs)

    def flat(history):
        losses = [entry["loss"] for entry in history]
        falls = [then - now for then, now in zip(losses, losses[1:], strict=False)]
        small = [fall <= args.plateau_threshold * abs(then) for fall, then in zip(falls, losses, strict=False)]
        recent = small[max(0, before - 1) :][-args.plateau_patience :]
        return len(recent) == args.plateau_patience and all(recent)

    return flat
