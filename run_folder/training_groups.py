"""Groups of flags that the training commands have, and AA-CLIP's known deviations with the flags that correct them."""

from dataclasses import dataclass

from model.recompute import RECOMPUTED
from model.settings import option

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
