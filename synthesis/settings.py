"""The settings of a training run of semantic fill, each one flag and one key of its checkpoints' config.json."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import Field, dataclass, fields, replace
from typing import Any

from model.settings import option
from run_folder.flags import build_parser, take_config
from synthesis.attention import LAYOUTS, POSITIONS
from synthesis.choices import (
    DTYPES,
    FILL_MASKS,
    LICENCE,
    LR_SCHEDULES,
    OPTIMIZERS,
    SEMANTIC_MODES,
    TINY_MODELS,
    check_side,
)

PROMPT = "left: a scene; right: the same scene, changed where it is marked"


@dataclass(frozen=True)
class FillRunSettings:
    """run"""

    model: str = option(
        "tiny",
        "folder or hub id of FLUX.1 Fill; tiny or small: random, built from a seed",
        moves_numbers=False,
    )
    data: str | None = option(
        None, "folder of triptychs, or a triptych.jsonl", moves_numbers=False, required=True
    )
    out: str | None = option(
        None,
        "the run's folder; one with checkpoints resumes",
        moves_numbers=False,
        required=True,
        metavar="SAVE_PATH",
    )
    seed: int = option(111, "seed of new weights, order, times, noise and drops")
    device: str | None = option(None, "torch device; default CUDA if there, else CPU", moves_numbers=False)
    workers: int = option(0, "data loader processes; never changes a number", moves_numbers=False)


@dataclass(frozen=True)
class SemanticSettings:
    """semantic map"""

    semantic_mode: str = option(
        "cross_attention",
        "how the map reaches the noisy tokens; fusion: added through a projection that starts at zero",
        choices=SEMANTIC_MODES,
        added_later=True,
    )
    semantic_layers: int = option(1, "cross_attention: one after another; 0 = no semantics")
    semantic_heads: int = option(8, "cross_attention: heads of each layer; they share its inner width")
    semantic_layout: str = option(
        "33k", "cross_attention: 33,088 or 16,897 parameters a layer", choices=LAYOUTS
    )
    semantic_pos: str = option("local", "cross_attention: none cannot place anything", choices=POSITIONS)


@dataclass(frozen=True)
class TaskSettings:
    """task"""

    size: int = option(512, "panel side in pixels, a multiple of 16")
    fill_mask: str | None = option(
        None,
        "what is filled; default: semantic for black-and-white maps, else panel",
        choices=FILL_MASKS,
    )
    prompt: str = option(PROMPT, "the one prompt of all examples")
    text_drop: float = option(0.1, "share of examples with the empty prompt")
    semantic_drop: float = option(0.1, "share of examples without semantic map")


@dataclass(frozen=True)
class FillTrainingSettings:
    """training"""

    steps: int = option(1000, "in all, those before a resume included", moves_numbers=False)
    batch_size: int = option(1, "triptychs per step")
    optimizer: str = option(
        "adamw", "prodigy finds its own step size (arXiv 2306.06101)", choices=tuple(OPTIMIZERS)
    )
    lr: float | None = option(None, f"default by optimizer: {OPTIMIZERS}")
    lr_schedule: str = option(
        "constant",
        "cosine: rises over the first 20th of the steps, falls to 0 at the last",
        choices=LR_SCHEDULES,
    )
    fill_share: float | None = option(
        None, "share of the loss on tokens to be filled; default: all tokens count alike"
    )
    gradient_clip: float = option(0.5, "largest norm of all gradients together")
    lora_rank: int = option(32, "rank of the low-rank weights added to each linear layer of the image's path")
    lora_alpha: int = option(32, "their factor is alpha / rank")
    train_backbone: bool = option(
        False, "train the whole transformer too: for tiny and small, which know nothing"
    )
    dtype: str | None = option(
        None,
        "of the frozen weights; what is trained is always float32; default: bfloat16 with real weights, float32 for "
        "tiny and small, and in a run that resumes the one it has",
        choices=tuple(DTYPES),
    )
    gradient_checkpointing: bool | None = option(
        None,
        "less memory, more time; default: on with real weights",
        moves_numbers=False,
        action="boolean_optional",
    )
    log_every: int = option(10, "steps per log line", moves_numbers=False)
    save_every: int = option(500, "steps per checkpoint; one more at the end", moves_numbers=False)
    save_every_steps: int = option(
        0,
        "steps between saves to go on from, deleted at the next checkpoint; 0: none",
        moves_numbers=False,
        added_later=True,
    )
    save_every_minutes: float = option(
        10.0, "the same by minutes since the last save; 0: none", moves_numbers=False, added_later=True
    )
    on_nan: str = option(
        "stop",
        "at a loss or gradient that is not finite; skip: leave out up to 10 such steps of a run",
        moves_numbers=False,
        added_later=True,
        choices=("stop", "skip"),
    )
    debug: bool = option(
        False,
        "log the shapes of the first two steps, and show the traceback of an error",
        moves_numbers=False,
        added_later=True,
    )


@dataclass(frozen=True)
class FillSettings:
    """All settings of a run of semantic fill, by group."""

    run: FillRunSettings
    semantic: SemanticSettings
    task: TaskSettings
    training: FillTrainingSettings
    argv: tuple[str, ...] = ()  # the words of the command line

    def options(self) -> Iterator[tuple[str, Field, Any]]:
        """(key in config.json, field, value) of every flag; --out is stored as save_path."""
        for name in GROUPS:
            group = getattr(self, name)
            for one in fields(group):
                yield "save_path" if one.name == "out" else one.name, one, getattr(group, one.name)

    def record(self) -> dict[str, Any]:
        """{key: value}, as a checkpoint's config.json has them."""
        return {key: value for key, _, value in self.options()}


GROUPS = {  # in the order of --help
    "run": FillRunSettings,
    "semantic": SemanticSettings,
    "task": TaskSettings,
    "training": FillTrainingSettings,
}


def parse_flags(description: str, argv: Sequence[str] | None = None) -> FillSettings:
    """Settings from a command line.

    Raises:
        SystemExit: 2, with the reason on standard error.
        FileNotFoundError, ValueError: of `run_folder.config_file.read_config`.
    """
    parser = build_parser(description, GROUPS)
    parser.epilog, parser.formatter_class = LICENCE, argparse.ArgumentDefaultsHelpFormatter
    take_config(parser, GROUPS, argv)
    values = vars(parser.parse_args(argv))
    made = {
        name: group(**{one.name: values[one.name] for one in fields(group)}) for name, group in GROUPS.items()
    }
    return FillSettings(**made, argv=tuple(sys.argv[1:] if argv is None else argv))


def check(settings: FillSettings) -> None:
    """Raises ValueError for flags no run can have."""
    values = settings.record()
    check_side(values["size"])
    for flag in ("steps", "batch_size", "log_every", "save_every"):
        if values[flag] < 1:
            raise ValueError(f"--{flag} {values[flag]}: expected 1 or more")
    for flag in ("save_every_steps", "save_every_minutes"):
        if not values[flag] >= 0:
            raise ValueError(f"--{flag} {values[flag]}: expected 0 (never) or more")
    for flag in ("text_drop", "semantic_drop", "fill_share"):
        if values[flag] is not None and not 0 <= values[flag] <= 1:
            raise ValueError(f"--{flag} {values[flag]}: expected a share between 0 and 1")
    for flag in ("gradient_clip", "lr"):
        if values[flag] is not None and not values[flag] > 0:
            raise ValueError(f"--{flag} {values[flag]}: expected a positive number")


def for_its_model(settings: FillSettings, stored: dict[str, Any]) -> FillSettings:
    """Settings whose precision and checkpointing, where not given, are those of a checkpoint or fit the model.

    Args:
        stored: the config of the run's last checkpoint, {} without one.
    """
    training, is_real = settings.training, settings.run.model not in TINY_MODELS
    fitting = "bfloat16" if is_real and not training.train_backbone else "float32"
    checkpointing = training.gradient_checkpointing
    training = replace(
        training,
        dtype=training.dtype or stored.get("dtype", fitting),
        gradient_checkpointing=is_real if checkpointing is None else checkpointing,
    )
    return replace(settings, training=training)


def check_resume(stored: dict[str, Any], settings: FillSettings, examples: int) -> None:
    """Raises ValueError when a run's flags or number of triptychs differ from its checkpoint's."""
    found = {key: one.default for key, one, _ in settings.options() if one.metadata["added_later"]} | stored
    may_differ = {key for key, one, _ in settings.options() if not one.metadata["moves_numbers"]}
    if settings.training.lr_schedule == "cosine":
        may_differ -= {"steps"}  # the rate depends on the last one
    differing = [
        f"{key} {found.get(key)} -> {value}"
        for key, value in {**settings.record(), "examples": examples}.items()
        if key not in may_differ and found.get(key) != value
    ]
    if differing:
        raise ValueError(
            f"--out {settings.run.out} holds a run with other settings ({'; '.join(differing)}): "
            "repeat its flags to resume it, or choose another folder"
        )
