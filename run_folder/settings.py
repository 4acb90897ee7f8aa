"""Every setting a command can have: groups of fields, each one flag, one key of a checkpoint and one argument.

To add a flag, add a field with `option` to the group it belongs to: parser, checkpoint, the check whether a resumed run
is the same one, and what testing takes from a checkpoint all follow from it.
"""

import os
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, replace
from typing import Any

from dataset.mask_values import MASK_READINGS
from model.matrix_products import MATMULS
from model.recompute import RECOMPUTED
from model.settings import (
    CONTEXT_CONTROLS,
    MAY_CHANGE,
    MUST_AGREE,
    AnchorAttentionSettings,
    AnchorDecoderSettings,
    CrossAttentionSettings,
    ModelSettings,
    NetworkCorrections,
    SelfReferenceSettings,
    option,
)

DEVIATIONS = {  # flag: (what AA-CLIP does, corrected)
    "text_loss_levels": ("last", "all"),
    "quick_gelu": (False, True),
    "surgery_attention": ("batch", "spatial"),
    "head_temperature": (1.0, 100.0),
    "milestones": ([16000.0, 32000.0], [0.5, 0.8]),
    "text_cls_weight": (0.0, 1.0),
}

# --mixed_precision, accelerate's name for --precision: its values in those of the flag that is kept.
MIXED_PRECISION = {"no": "fp32", "bf16": "bf16", "fp16": "fp16"}


def worker_count(text: str) -> int:
    """The number of data loader processes that --workers names.

    Raises:
        ValueError: neither a whole number from 0 nor auto.
    """
    if text == "auto":
        beside = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)  # torchrun's processes on this machine
        return max(0, min(8, cores() // beside - 1))
    if not text.isdecimal():
        raise ValueError(f"--workers {text}: expected 0 or more processes, or auto")
    return int(text)


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class ContextSettings:
    """contexts of the cross-attention"""

    context_scope: str = option(
        "class",
        "stage 1: a class sees its own images of the batch, or the batch's mean",
        choices=["class", "batch"],
    )
    text_context: str = option(
        "none",
        "image context of the anchors after stage 1",
        at_test=MAY_CHANGE,
        choices=["none", "train_mean", "image"],
    )
    context_control: str = option(
        "none",
        "control of a study: contexts without information, same parameters",
        at_test=MUST_AGREE,
        added_later=True,
        choices=CONTEXT_CONTROLS,
    )


@dataclass(frozen=True)
class MixSettings:
    """what each side of a feedback run learns against"""

    feedback_mix: float = option(
        1.0,
        "share, in 0..1, of the other side's trained features in what a side learns against; the rest are frozen",
        at_test=MUST_AGREE,
        added_later=True,
    )
    feedback_maps: str = option(
        "both",
        "at test with --feedback_mix below 1: the average of both sides' maps, each against what it learned against, "
        "or that of trained patches and anchors alone",
        at_test=MAY_CHANGE,
        added_later=True,
        choices=["both", "trained"],
    )


@dataclass(frozen=True)
class DataSettings:
    """data"""

    dataset: str | None = option("VisA", "dataset name")
    shot: int = option(32, "images per class of few_shot, half abnormal; 0 = all")
    data_root: str | None = option(
        None, "folder that holds the datasets; else AACLIP_DATA, else ./data", moves_numbers=False
    )
    mask_reading: str | None = option(
        None,
        "upstream: every value of a mask that is not 0 is defect, the default for AA-CLIP's eleven datasets; robust: "
        "half of white in JPEG masks and at soft edges, EXIF orientation applied, the default for all others",
        added_later=True,
        choices=MASK_READINGS,
    )
    dataset_config: str | None = option(
        None, "JSON/YAML file that declares own datasets", moves_numbers=False
    )
    real_names: str | None = option(
        None, "JSON/YAML file {dataset: {class: real name}} that overrides prompt names", moves_numbers=False
    )


@dataclass(frozen=True)
class TrainingSettings:
    """training"""

    training_mode: str = option(
        "few_shot", "--shot images per class, or all", choices=["few_shot", "full_shot"]
    )
    extra_meta: str | None = option(
        None,
        "jsonl of more training images, such as generate_anomalies.py's; paths relative to its folder or as in "
        "the dataset's metadata",
        added_later=True,
    )
    extra_ratio: float | None = option(
        None, "share of the training set that --extra_meta's rows make up", added_later=True
    )
    text_batch_size: int = option(16, "images per step of stage 1")
    image_batch_size: int = option(2, "images per step of stage 2")
    text_epoch: int = option(5, "passes of stage 1; 0 in train.py: anchors come from plain CLIP")
    image_epoch: int = option(20, "passes of stage 2")
    text_lr: float = option(1e-5, "learning rate of stage 1")
    image_lr: float = option(5e-4, "learning rate of stage 2")
    precision: str = option(
        "fp32",
        "products in the vision blocks and their adapters in training; fp16 scales the loss",
        added_later=True,
        choices=["fp32", "bf16", "fp16"],
    )
    tf32: bool = option(
        False,
        "let CUDA round the factors of float32 products to TF32 in training; off on every device by default",
        added_later=True,
    )
    activation_checkpointing: str = option(
        "none",
        "what the backward pass computes again instead of keeping it: less memory, more time, the same numbers",
        moves_numbers=False,
        added_later=True,
        choices=RECOMPUTED,
    )
    compile: bool = option(
        False, "torch.compile blocks, adapters and losses: less time, another rounding", added_later=True
    )
    fused_adam: bool = option(
        False, "the optimiser's step as one kernel: less time and memory, another rounding", added_later=True
    )
    text_norm_weight: float = option(0.1, "weight of the anchors' orthogonality loss")
    text_augmentation: str = option(
        "per_epoch",
        "variants of the images that stage 1 sees: new ones every epoch, or in every epoch those of the first, so that "
        "--feature_cache serves all later ones",
        added_later=True,
        choices=["per_epoch", "fixed"],
    )
    log_every: int = option(
        50, "steps between reads of the loss, each a wait for the GPU", moves_numbers=False, added_later=True
    )
    watch: bool = option(
        False,
        "log per epoch how far weights moved, entropy and output cosine of attentions, and gates",
        moves_numbers=False,
        added_later=True,
    )
    save_every_steps: int = option(
        0, "steps between saves inside an epoch; 0: none", moves_numbers=False, added_later=True
    )
    save_every_minutes: float = option(
        10.0,
        "minutes between saves inside an epoch that takes longer; 0: none",
        moves_numbers=False,
        added_later=True,
    )
    on_nan: str = option(
        "stop",
        "at a loss or gradient that is not finite; skip: leave out up to 10 such steps of a run",
        moves_numbers=False,
        added_later=True,
        choices=["stop", "skip"],
    )
    criterion: list = option(
        ["dice_loss", "focal_loss"],
        "accepted for AA-CLIP's command lines; never read, there or here",
        moves_numbers=False,
        nargs="*",
        type=str,
    )


@dataclass(frozen=True)
class BaseWeights:
    """start"""

    load_base_text_adapter: str | None = option(None, "text_adapter.pth of a baseline run")
    load_base_image_adapter: str | None = option(None, "image_adapter.pth of a baseline run")


@dataclass(frozen=True)
class CheckSettings:
    """check"""

    check_shapes: bool = option(
        False,
        "print the documented shapes of one batch and the new parameters' gradient norms, then exit",
        moves_numbers=False,
    )


@dataclass(frozen=True)
class TrainingCorrections:
    """corrections of AA-CLIP's known deviations (kept by default) in training"""

    corrected: bool = option(
        False,
        "turn every correction on; single flags still win",
        moves_numbers=False,
        stands_for=DEVIATIONS,
    )
    text_loss_levels: str = option("last", "levels in stage 1's loss", choices=["last", "all"])
    head_temperature: float = option(1.0, "factor on stage 2's image logits")
    milestones: list = option(
        [16000.0, 32000.0],
        "image LR steps: batches, or fractions of the run when all are below 1",
        nargs="+",
        type=float,
    )
    text_cls_weight: float = option(0.0, "weight of stage 1's image loss (Eq. 4)")


@dataclass(frozen=True)
class CacheSettings:
    """caches on disk"""

    feature_cache: str | None = option(
        None,
        "folder that keeps what the frozen backbone makes of an image, for later passes, runs and tests; changes "
        "rounding only",
        moves_numbers=False,
        added_later=True,
    )
    feature_cache_gb: float = option(
        50.0, "10^9 bytes it may hold; full, it takes no more", moves_numbers=False, added_later=True
    )
    image_cache: str | None = option(
        None,
        "folder that keeps decoded images and masks; no number changes",
        moves_numbers=False,
        added_later=True,
    )
    image_cache_gb: float = option(
        50.0, "10^9 bytes it may hold; full, it takes no more", moves_numbers=False, added_later=True
    )


@dataclass(frozen=True)
class RunSettings:
    """run"""

    seed: int = option(111, "seed of weights, order, augmentation and k-shot choice")
    save_path: str | None = option("ckpt/baseline", "the run's folder", moves_numbers=False)
    device: str | None = option(None, "torch device; default CUDA if there, else CPU", moves_numbers=False)
    workers: int = option(
        0,
        "data loader processes; never changes a number; auto: one less than the cores, at most 8",
        moves_numbers=False,
        type=worker_count,
    )
    fast: bool = option(
        False,
        "kernels that a GPU may round otherwise in the next run",
        moves_numbers=False,
        added_later=True,
    )
    matmul: str = option(
        "default",
        "float32 products on a CPU: torch's, or oneDNN's where they are faster; another rounding",
        added_later=True,
        choices=MATMULS,
    )


@dataclass(frozen=True)
class TrackerSettings:
    """tracker"""

    tracker: str | None = option(
        None,
        "hand losses, rates, norms, metrics and heatmaps on to this tracker too; its package is optional",
        moves_numbers=False,
        added_later=True,
        choices=["trackio", "tensorboard", "wandb", "mlflow"],
    )
    tracker_project: str = option(
        "aa-clip", "the project its runs are listed under", moves_numbers=False, added_later=True
    )


BASELINE_GROUPS = {
    "model": ModelSettings,
    "data": DataSettings,
    "training": TrainingSettings,
    "network": NetworkCorrections,
    "corrections": TrainingCorrections,
    "cache": CacheSettings,
    "run": RunSettings,
    "tracker": TrackerSettings,
}
CROSS_ATTENTION_GROUPS = {
    "model": ModelSettings,
    "cross_attention": CrossAttentionSettings,
    "contexts": ContextSettings,
    "self_reference": SelfReferenceSettings,
    "anchor_attention": AnchorAttentionSettings,
    "anchor_decoder": AnchorDecoderSettings,
    "data": DataSettings,
    "training": TrainingSettings,
    "base": BaseWeights,
    "check": CheckSettings,
    "network": NetworkCorrections,
    "corrections": TrainingCorrections,
    "cache": CacheSettings,
    "run": RunSettings,
    "tracker": TrackerSettings,
}


@dataclass(frozen=True)
class Settings:
    """The settings of one command by group; a group that the command does not have is None.

    `explicit` holds the names of the flags the user gave, on the command line or in a configuration file; `argv`
    the words of the command line.
    """

    model: ModelSettings | None = None
    network: NetworkCorrections | None = None
    cross_attention: CrossAttentionSettings | None = None
    self_reference: SelfReferenceSettings | None = None
    anchor_attention: AnchorAttentionSettings | None = None
    anchor_decoder: AnchorDecoderSettings | None = None
    contexts: ContextSettings | None = None
    mix: MixSettings | None = None
    data: DataSettings | None = None
    training: TrainingSettings | None = None
    feedback: Any = None  # training.feedback_recipes.FeedbackSettings
    base: BaseWeights | None = None
    check: CheckSettings | None = None
    corrections: TrainingCorrections | None = None
    cache: CacheSettings | None = None
    run: RunSettings | None = None
    tracker: TrackerSettings | None = None
    own: Any = None  # what only one command has
    explicit: frozenset = frozenset()
    argv: tuple[str, ...] = ()

    def groups(self) -> dict[str, Any]:
        """{name: dataclass} of the groups that are there."""
        names = [field.name for field in fields(self) if field.name not in ("explicit", "argv")]
        found = {name: getattr(self, name) for name in names}
        return {name: group for name, group in found.items() if group is not None}

    def options(self) -> Iterator[Field]:
        """The fields of all groups."""
        return (field for group in self.groups().values() for field in fields(group))

    def record(self) -> dict[str, Any]:
        """{flag: value}, as a checkpoint's "settings" has them."""
        return {
            field.name: getattr(group, field.name)
            for group in self.groups().values()
            for field in fields(group)
        }

    def change(self, **values: Any) -> "Settings":
        """The same settings with other values, by the names of their flags.

        Raises:
            TypeError: no group has such a flag.
        """
        changed, groups = set(), {}
        for name, group in self.groups().items():
            own = {field.name: values[field.name] for field in fields(group) if field.name in values}
            changed |= own.keys()
            groups[name] = replace(group, **own) if own else group
        unknown = sorted(values.keys() - changed)
        if unknown:
            raise TypeError(f"no setting is called {', '.join(unknown)}")
        return replace(self, **groups)

    def flags(self, **wanted: Any) -> list[str]:
        """Names of the flags whose field's metadata has these values, e.g. `flags(at_test=MUST_AGREE)`."""
        return [
            f.name for f in self.options() if all(f.metadata[key] == value for key, value in wanted.items())
        ]

    def defaults(self, **wanted: Any) -> dict[str, Any]:
        """{flag: default} of the flags whose field's metadata has these values."""
        names = set(self.flags(**wanted))
        return {one.name: default_of(one) for one in self.options() if one.name in names}


def default_of(one: Field) -> Any:
    """A field's default."""
    return one.default if one.default is not MISSING else one.default_factory()


def corrections_in(record: dict[str, Any]) -> dict[str, Any]:
    """{flag: value} of the settings in a checkpoint's record that correct a known deviation of AA-CLIP."""
    return {
        flag: record[flag]
        for flag, (kept, _) in DEVIATIONS.items()
        if flag in record and record[flag] != kept
    }
