"""What a network is built from, each group one frozen dataclass; flags, checkpoints and constructors read their fields.

A field is declared by `option` and becomes a flag of the same name, a key of every checkpoint's "settings", and, where
`at_test` says so, something that testing takes from the checkpoint.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

Group = TypeVar("Group")

MUST_AGREE, MAY_CHANGE = "must agree", "may change"  # values of `at_test`


def option(
    default: Any,
    help: str | None = None,
    *,
    at_test: str | None = None,
    moves_numbers: bool = True,
    added_later: bool = False,
    stands_for: Iterable[str] = (),
    **argparse_options: Any,
) -> Any:
    """A field of a settings dataclass.

    Args:
        default: its value where nothing else is said; upstream's for AA-CLIP's flags.
        help: text of its flag.
        at_test: MUST_AGREE: a checkpoint's value is taken, and another one on the command line refused; MAY_CHANGE: the
            checkpoint's is taken unless the user gives another, which the log says; None: testing does not ask.
        moves_numbers: False for what a resumed run may have otherwise: it says where, when or with what help a run
            computes (a folder, a device, a cache), not what, and moves rounding at most, as another machine does. A
            choice of the arithmetic, such as `--matmul` or `--compile`, stays a run's own even where it moves no more.
        added_later: runs of older versions lack it and did what the default does.
        stands_for: names of the flags whose values this one chooses where they are not given.
        argparse_options: of the flag, beyond what `default` says (`choices`, `type`, `nargs`, `action`, `metavar`).
    """
    metadata = {
        "help": help,
        "at_test": at_test,
        "moves_numbers": moves_numbers,
        "added_later": added_later,
        "stands_for": tuple(stands_for),
        "argparse": argparse_options,
    }
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def taken_from(values: dict[str, Any], defaults: Group) -> tuple[Group, dict[str, Any]]:
    """(the settings `defaults` with what `values` says of their fields, the rest of `values`)."""
    names = {one.name for one in fields(defaults)}
    taken = {name: value for name, value in values.items() if name in names}
    return replace(defaults, **taken), {name: value for name, value in values.items() if name not in names}


@dataclass(frozen=True)
class ModelSettings:
    """model"""

    model_name: str = option(
        "ViT-L-14-336", "open_clip ViT, or ViT-Tiny-8-demo (shipped)", at_test=MUST_AGREE
    )
    clip_weights: str | None = option(
        None, "weight file (.pt, .safetensors); else AACLIP_CLIP_WEIGHTS", moves_numbers=False
    )
    img_size: int = option(518, "image side in pixels", at_test=MAY_CHANGE)
    surgery_until_layer: int = option(20, "last n-1 vision blocks: value-value", at_test=MAY_CHANGE)
    relu: bool = option(
        False, "LeakyReLU after the segmentation and detection projections", at_test=MUST_AGREE
    )
    text_adapt_weight: float = option(0.1, "residual weight of the text adapters", at_test=MUST_AGREE)
    image_adapt_weight: float = option(0.1, "residual weight of the image adapters", at_test=MUST_AGREE)
    text_adapt_until: int = option(3, "text blocks followed by an adapter", at_test=MUST_AGREE)
    image_adapt_until: int = option(6, "vision blocks followed by an adapter", at_test=MUST_AGREE)


@dataclass(frozen=True)
class NetworkCorrections:
    """corrections of AA-CLIP's known deviations in the frozen network"""

    quick_gelu: bool = option(
        False, "run OpenAI's QuickGELU weights with QuickGELU", at_test=MAY_CHANGE, action="boolean_optional"
    )
    surgery_attention: str = option(
        "batch", "axis of the surgery model's attention", at_test=MAY_CHANGE, choices=["batch", "spatial"]
    )


@dataclass(frozen=True)
class CrossAttentionSettings:
    """cross-attention"""

    cross_attn_heads: int = option(8, "heads of both cross-attentions", at_test=MUST_AGREE)
    cross_attn_dropout: float = option(0.1, "on attention weights, in training only")
    text_cross_attn_weight: float = option(0.1, "scale of text -> image; 0 = off", at_test=MUST_AGREE)
    image_cross_attn_weight: float = option(0.1, "scale of image -> text; 0 = off", at_test=MUST_AGREE)
    cross_attn_gate: str = option(
        "fixed",
        "the scales: as given, or learned from there, or learned from 0",
        at_test=MUST_AGREE,
        added_later=True,
        choices=["fixed", "learned", "zero"],
    )
    image_cross_attn_after: int = option(
        0, "vision block (from 0) of image -> text", at_test=MUST_AGREE, added_later=True
    )
    cross_attn_qk_norm: bool = option(
        False,
        "queries and keys of both attentions at unit length, times a learned temperature of each head",
        at_test=MUST_AGREE,
        added_later=True,
    )
    cross_attn_temperature: float = option(
        10.0, "start of --cross_attn_qk_norm's temperatures", at_test=MUST_AGREE, added_later=True
    )
    cross_attn_lr: float | None = option(
        None, "learning rate of both attentions; default that of their stage", added_later=True
    )
    split_text_context: bool = option(
        False,
        "images attend to normal and to abnormal prompts apart, with a gate for each",
        at_test=MUST_AGREE,
        added_later=True,
    )
    attend_padding: bool = option(
        False,
        "images attend to padding too, as in checkpoints of the reference fork",
        at_test=MUST_AGREE,
        added_later=True,
    )
    no_norm_match: bool = option(False, "ablation: residual without norm matching", at_test=MUST_AGREE)
    no_normalize_context: bool = option(False, "ablation: text context of any length", at_test=MUST_AGREE)


# Controls of studies; what they are: model/context_controls.py, model/self_reference.py, model/anchor_attention.py.
CONTEXT_CONTROLS = ("none", "other_class", "constant")
REFERENCE_CONTROLS = ("none", "constant", "shuffled")
ANCHOR_DECODER_CONTROLS = ("none", "constant")
ANCHOR_ATTENTION_CONTROLS = ("none", "uniform", "other_image", "swapped")


@dataclass(frozen=True)
class SelfReferenceSettings:
    """self-reference"""

    self_reference: float = option(
        0.0,
        "start of the weight of each patch's rarity in its own image; 0 = off",
        at_test=MUST_AGREE,
        added_later=True,
    )
    self_reference_head: float = option(
        1.0,
        "start of the weight of the rarest patches in the head score; 0 = off",
        at_test=MUST_AGREE,
        added_later=True,
    )
    self_reference_neighbours: float = option(
        0.08,
        "share of the image's patches that a patch is compared with",
        at_test=MUST_AGREE,
        added_later=True,
    )
    self_reference_control: str = option(
        "none",
        "control of a study: no rarity, or in the wrong places",
        at_test=MUST_AGREE,
        added_later=True,
        choices=REFERENCE_CONTROLS,
    )


@dataclass(frozen=True)
class AnchorDecoderSettings:
    """decoder of the anchors"""

    anchor_decoder: int = option(
        0,
        "layers of a decoder in which both anchors look at the image's own patches, trained in stage 2; 0 = none",
        at_test=MUST_AGREE,
        added_later=True,
    )
    anchor_decoder_control: str = option(
        "none",
        "control of a study: queries that start at the same two vectors for every class",
        at_test=MUST_AGREE,
        added_later=True,
        choices=ANCHOR_DECODER_CONTROLS,
    )


@dataclass(frozen=True)
class AnchorAttentionSettings:
    """attention of the anchors"""

    anchor_attention: str = option(
        "none",
        "late: after the image tower both anchors attend to the image's own patches, trained in stage 2",
        at_test=MUST_AGREE,
        added_later=True,
        choices=["none", "late"],
    )
    anchor_attention_control: str = option(
        "none",
        "control of a study: every patch alike, another image of the batch, or each anchor by the other's weights",
        at_test=MAY_CHANGE,
        added_later=True,
        choices=ANCHOR_ATTENTION_CONTROLS,
    )
