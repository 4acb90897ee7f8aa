"""The feedback loop's schedules: recipe v1 (default), recipe v2, and every part of them as its own flag."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import nn

from model.settings import option
from run_folder.settings import CROSS_ATTENTION_GROUPS, MixSettings, Settings, TrainingSettings
from training.optimisation import milestones_in_steps, parameter_groups

RECIPES = {
    "v1": {
        "optimizer": "adam",
        "betas": [0.5, 0.999],
        "weight_decay": 0.0,
        "schedule": "milestones",
        "warmup_epochs": 0,
        "clip_norm": 0.0,
        "lr_decay_per_loop": 0.5,
        "epoch_decay_per_loop": None,
        "cross_attn_start_loop": 1,
        "plateau_threshold": 0.01,
        "plateau_patience": 0,
    },
    "v2": {
        "optimizer": "adamw",
        "betas": [0.9, 0.999],
        "weight_decay": 0.01,
        "schedule": "cosine",
        "warmup_epochs": 2,
        "clip_norm": 1.0,
        "lr_decay_per_loop": 0.8,
        "epoch_decay_per_loop": 0.8,
        "cross_attn_start_loop": 1,
        "plateau_threshold": 0.01,
        "plateau_patience": 2,
        "text_lr": 2e-5,
        "image_lr": 5e-3,
        "text_epoch": 5,
        "image_epoch": 15,
    },
}
# Recipe v1: parts of the first loop's epochs, in loop 2 and in later ones.
LATER_PART = {"text": (3 / 5, 2 / 5), "image": (1 / 2, 1 / 4)}
FLAGGED_LOOPS = (
    1,
    2,
    3,
)  # loops with epoch flags of their own; the last one's also count for every later loop
# Training without feedback has these flags too; every recipe gives them the same value, so it is their default here.
SHARED_DEFAULTS = {"milestones": [0.5, 0.8]}


class LoopPlan(NamedTuple):
    """What one loop does: epochs and learning rate of both stages, and whether cross-attention is on."""

    loop: int
    text_epochs: int
    image_epochs: int
    text_lr: float
    image_lr: float
    cross_attention: bool
    attention_lr: float | None = None  # of the attentions, where they have one of their own


def epochs_of_loop(stage: str, loop: int) -> Any:
    """The option --loop{n}_{stage}_epoch."""
    later = " and later ones" if loop == FLAGGED_LOOPS[-1] else ""
    v1 = f"--{stage}_epoch" + (f" * {LATER_PART[stage][loop - 2]}" if loop > 1 else "")
    return option(None, f"epochs of the {stage} stage in loop {loop}{later}; v1: {v1}")


def of_recipe(flag: str, meaning: str = "", **argparse_options: Any) -> Any:
    """The option of a recipe's flag, with every recipe's value in its help; None until `fill_in`."""

    def shown(value):
        listed = value if isinstance(value, list) else ["none" if value is None else value]
        return " ".join(one if isinstance(one, str) else f"{one:g}" for one in listed)

    values = ", ".join(f"{name} {shown(recipe[flag])}" for name, recipe in RECIPES.items())
    return option(None, f"{meaning}; {values}" if meaning else values, **argparse_options)


def recipes_help() -> str:
    """What --recipe decides, and which flags of every training a recipe gives values of its own."""
    beside = {one.name for one in fields(TrainingSettings)}
    named = {
        name: ", ".join(f"--{flag} {recipe[flag]}" for flag in recipe if flag in beside)
        for name, recipe in RECIPES.items()
    }
    more = "".join(f"; {name} also {flags}" for name, flags in named.items() if flags)
    return f"values of the flags below that are not given{more}"


@dataclass(frozen=True)
class FeedbackSettings:
    """feedback"""

    num_feedback_loops: int = option(3, "a finished run continues with a larger one")
    recipe: str = option(
        "v1",
        recipes_help(),
        stands_for={flag for recipe in RECIPES.values() for flag in recipe},
        choices=sorted(RECIPES),
    )
    loop1_text_epoch: int | None = epochs_of_loop("text", 1)
    loop1_image_epoch: int | None = epochs_of_loop("image", 1)
    loop2_text_epoch: int | None = epochs_of_loop("text", 2)
    loop2_image_epoch: int | None = epochs_of_loop("image", 2)
    loop3_text_epoch: int | None = epochs_of_loop("text", 3)
    loop3_image_epoch: int | None = epochs_of_loop("image", 3)
    optimizer: str | None = of_recipe("optimizer", choices=["adam", "adamw"])
    betas: list | None = of_recipe("betas", "of the optimiser", type=float, nargs=2)
    weight_decay: float | None = of_recipe("weight_decay", "of the optimiser")
    schedule: str | None = of_recipe(
        "schedule",
        "milestones: of the image stage, the text's rate is constant",
        choices=["milestones", "cosine"],
    )
    warmup_epochs: int | None = of_recipe("warmup_epochs", "linear, at most half of a stage")
    clip_norm: float | None = of_recipe("clip_norm", "largest gradient norm, 0 = none")
    lr_decay_per_loop: float | None = of_recipe("lr_decay_per_loop", "factor on all learning rates")
    epoch_decay_per_loop: float | None = of_recipe(
        "epoch_decay_per_loop", "factor on --text_epoch and --image_epoch; none: the parts named above"
    )
    cross_attn_start_loop: int | None = of_recipe(
        "cross_attn_start_loop", "cross-attention is off in the loops before"
    )
    plateau_threshold: float | None = of_recipe(
        "plateau_threshold", "an epoch is flat whose loss fell by this part at most"
    )
    plateau_patience: int | None = of_recipe(
        "plateau_patience", "flat epochs in a row that end a stage, 0 = never"
    )
    eval_every_loop: str | None = option(
        None, "evaluate on this dataset after every loop", metavar="DATASET", moves_numbers=False
    )


def fill_in(settings: Settings) -> Settings:
    """Give every recipe flag the user did not give its recipe's value.

    Recipe v1 names no learning rate and no first epochs: those of `model/run_defaults.json` and the fields stay.

    Raises:
        ValueError: a value makes no schedule.
    """
    recipe = SHARED_DEFAULTS | RECIPES[settings.feedback.recipe]
    settings = settings.change(
        **{flag: value for flag, value in recipe.items() if flag not in settings.explicit}
    )
    record = settings.record()
    at_least = {
        "num_feedback_loops": 1,
        "cross_attn_start_loop": 1,
        "clip_norm": 0,
        "weight_decay": 0,
        "warmup_epochs": 0,
        "plateau_patience": 0,
        "text_epoch": 0,
        "image_epoch": 0,
    }
    at_least |= {f"loop{loop}_{stage}_epoch": 0 for loop in FLAGGED_LOOPS for stage in ("text", "image")}
    for flag, least in at_least.items():
        if record[flag] is not None and not record[flag] >= least:
            raise ValueError(f"--{flag} {record[flag]}: expected at least {least}")
    if not 0 <= record["feedback_mix"] <= 1:
        raise ValueError(f"--feedback_mix {record['feedback_mix']}: expected a share from 0 to 1")
    for flag in ("lr_decay_per_loop", "epoch_decay_per_loop"):
        if record[flag] is not None and not 0 < record[flag] < math.inf:
            raise ValueError(f"--{flag} {record[flag]}: expected a factor above 0; 1 keeps every loop alike")
    return settings


def plan(settings: Settings) -> list[LoopPlan]:
    """The LoopPlan of every loop."""
    feedback, training = settings.feedback, settings.training
    attention_lr = settings.cross_attention.cross_attn_lr
    return [
        LoopPlan(
            loop,
            epochs_of(settings, "text", loop),
            epochs_of(settings, "image", loop),
            training.text_lr * feedback.lr_decay_per_loop ** (loop - 1),
            training.image_lr * feedback.lr_decay_per_loop ** (loop - 1),
            loop >= feedback.cross_attn_start_loop,
            None if attention_lr is None else attention_lr * feedback.lr_decay_per_loop ** (loop - 1),
        )
        for loop in range(1, feedback.num_feedback_loops + 1)
    ]


def epochs_of(settings: Settings, stage: str, loop: int) -> int:
    """Epochs of a stage in a loop: the loop's own flag, else a part of --text_epoch or --image_epoch.

    Recipe v1's parts make 5, 3, 2 of AA-CLIP's 5 text epochs and 20, 10, 5 of its 20 image epochs.
    """
    feedback = settings.feedback
    given = getattr(feedback, f"loop{min(loop, FLAGGED_LOOPS[-1])}_{stage}_epoch")
    if given is not None:
        return given
    first = getattr(settings.training, f"{stage}_epoch")
    if loop == 1 or first == 0:
        return first
    if feedback.epoch_decay_per_loop is not None:
        part = feedback.epoch_decay_per_loop ** (loop - 1)
    else:
        part = LATER_PART[stage][min(loop, 3) - 2]
    return max(1, round(first * part))


def optimizer(
    feedback: FeedbackSettings,
    modules: dict[str, nn.Module],
    lr: float,
    fused: bool = False,
    attention_lr: float | None = None,
) -> torch.optim.Optimizer:
    """The recipe's optimiser over the parameters of {key: module}; `fused` and rates as in `adam`."""
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[feedback.optimizer]
    return kind(
        parameter_groups(modules, lr, attention_lr),
        lr=lr,
        betas=tuple(feedback.betas),
        weight_decay=feedback.weight_decay,
        fused=fused or None,
    )


def warmup(feedback: FeedbackSettings, epochs: int) -> int:
    """Warm-up epochs of a stage: at most half of it, so that a short stage trains at its rate too."""
    return min(feedback.warmup_epochs, epochs // 2)


def scheduler(
    settings: Settings, optimizer: torch.optim.Optimizer, stage: str, epochs: int, steps_per_epoch: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """The recipe's learning rate over one loop's stage, stepped per batch.

    Warm-up rises linearly to the optimiser's rate; then a cosine falls to 0 at the stage's end, or the image stage's
    rate is halved at the milestones (the text stage's stays, as in AA-CLIP).
    """
    total, rise = epochs * steps_per_epoch, warmup(settings.feedback, epochs) * steps_per_epoch
    halvings = milestones_in_steps(settings.corrections.milestones, total) if stage == "image" else []

    def factor(step):
        if step < rise:
            return (step + 1) / rise
        if settings.feedback.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))
        return 0.5 ** sum(step >= milestone for milestone in halvings)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def plateau(feedback: FeedbackSettings, epochs: int) -> Callable[[list[dict]], bool] | None:
    """Function (history) -> whether the last `--plateau_patience` epochs were all flat; None when the patience is 0.

    An epoch is flat when the loss fell by at most `--plateau_threshold` of its value; warm-up epochs, whose rate is
    small, do not count.
    """
    if feedback.plateau_patience < 1:
        return None
    before = warmup(feedback, epochs)

    def flat(history):
        losses = [entry["loss"] for entry in history]
        falls = [then - now for then, now in zip(losses, losses[1:], strict=False)]
        small = [
            fall <= feedback.plateau_threshold * abs(then) for fall, then in zip(falls, losses, strict=False)
        ]
        recent = small[max(0, before - 1) :][-feedback.plateau_patience :]
        return len(recent) == feedback.plateau_patience and all(recent)

    return flat


GROUPS = {**CROSS_ATTENTION_GROUPS, "mix": MixSettings, "feedback": FeedbackSettings}
