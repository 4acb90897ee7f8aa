"""Contexts: what the text tower sees of images, and what the image tower sees of prompts.

Every function states which rows attend to which context; nothing is inferred from shapes. At the end stand the controls
of a study of cross-attention, contexts without the information a tower should gain from the other.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dataset.constants import CLASS_NAMES
from forward_utils import Batch, ImageFeatures, class_tokens, encode_anchors, fixed_anchors
from model.adapter_cross_attention import AdaptedCLIPWithCrossAttention, Contexts

# (patches [B, L, E], class names) -> {class: [S, E], or None for nothing}
Scope = Callable[[Tensor, Sequence[str]], dict[str, Tensor | None]]


class TextContext(NamedTuple):
    """What images of one class attend to.

    `tokens` [P * T, W]: every token of the class's prompts after text block 0 and its adapter; `real` [P * T] bool:
    which of them are tokens of a prompt, and not the padding behind it, which nothing attends to.
    """

    tokens: Tensor
    real: Tensor


@torch.no_grad()
def text_context_of_class(
    model: AdaptedCLIPWithCrossAttention, dataset_name: str, class_name: str
) -> TextContext:
    """The TextContext of any class, seen in training or not."""
    text = class_tokens(dataset_name, class_name)[0].to(model.device)
    positions = torch.arange(text.shape[1], device=model.device)
    real = positions <= text.argmax(dim=-1, keepdim=True)  # the end token has the largest id
    return TextContext(model.text_context(text), real.flatten())


def text_context_dictionary(
    model: AdaptedCLIPWithCrossAttention, dataset_name: str, control: str = "none"
) -> dict[str, TextContext]:
    """{class name: TextContext} of a dataset; the text tower is frozen when this is used, so it is made once.

    Args:
        control: of `controlled_text_contexts`, for studies.
    """
    contexts = {name: text_context_of_class(model, dataset_name, name) for name in CLASS_NAMES[dataset_name]}
    return controlled_text_contexts(contexts, control)


def text_context_groups(contexts: dict[str, TextContext], class_names: Sequence[str]) -> Contexts:
    """Groups (image rows, tokens [S, W]) of a batch: every image attends to its own class's prompts.

    Args:
        contexts: {class name: TextContext}. With none at all, nothing attends to anything.
        class_names: of the batch's images, in order.
    """
    if not contexts:
        return []
    return [
        (rows, contexts[name].tokens[contexts[name].real])
        for name, rows in rows_by_class(class_names).items()
    ]


def rows_by_class(class_names: Sequence[str]) -> dict[str, list[int]]:
    """{class name: [rows]} in order of first appearance."""
    rows = {}
    for row, name in enumerate(class_names):
        rows.setdefault(name, []).append(row)
    return rows


def class_scope(patches: Tensor, class_names: Sequence[str]) -> dict[str, Tensor]:
    """Image context per class: {class: patches [n * L, E]} of all the batch's images of that class."""
    return {name: patches[rows].flatten(0, 1) for name, rows in rows_by_class(class_names).items()}


def batch_scope(patches: Tensor, class_names: Sequence[str]) -> dict[str, Tensor]:
    """Image context per class: {class: mean patches [L, E] of the whole batch}, the reference fork's behaviour."""
    mean = patches.mean(dim=0)
    return {name: mean for name in rows_by_class(class_names)}


CONTEXT_SCOPES = {"class": class_scope, "batch": batch_scope}


def scope_named(context_scope: str, control: str = "none") -> Scope:
    """The scope that `--context_scope` and `--context_control` name."""
    return controlled_scope(CONTEXT_SCOPES[context_scope], control)


def anchors_seeing_images(
    model: AdaptedCLIPWithCrossAttention, dataset_name: str, scope: Scope
) -> Callable[[Batch, dict[int, Tensor]], Tensor]:
    """Function (batch, {level: patches}) -> anchors [B, E, 2] whose prompts attend to the first level of the patches.

    Args:
        scope: which images a class attends to; of `scope_named`, or `no_scope`.
    """
    first = model.levels[0]

    def anchors_of(batch, patches):
        contexts = scope(patches[first], batch["class_name"])
        pairs = encode_anchors(model, dataset_name, list(contexts), list(contexts.values()))
        anchors = dict(zip(contexts, pairs, strict=True))
        return torch.stack([anchors[name] for name in batch["class_name"]])

    return anchors_of


def no_scope(patches: Tensor, class_names: Sequence[str]) -> dict[str, None]:
    """Prompts that attend to nothing: a loop before `--cross_attn_start_loop`."""
    return dict.fromkeys(rows_by_class(class_names))


def comparison_seeing_prompts(
    model: AdaptedCLIPWithCrossAttention, contexts: dict[str, TextContext]
) -> Callable[[Batch, Tensor], tuple[list[Tensor], Tensor]]:
    """Function (batch, anchors [B, E, 2]) -> model.compare's result, images attending to their class's prompts."""

    def compare(batch, anchors):
        return model.compare(batch["image"], anchors, text_context_groups(contexts, batch["class_name"]))

    return compare


def trained_image_features(
    model: AdaptedCLIPWithCrossAttention, contexts: dict[str, TextContext]
) -> ImageFeatures:
    """The image path trained so far, frozen, with plain CLIP's CLS added: what the text sees from feedback loop 2 on.

    Args:
        contexts: {class name: TextContext} the images attend to.

    Returns:
        batch -> ({level: patches [B, L, E] = seg + cls}, cls [B, E]), where seg is what the model's own evaluation
        forward gives without a self-reference, also while its image side is training (no dropout).
    """

    @torch.no_grad()
    def patches_of(batch):
        cls = F.normalize(model.clipmodel.encode_image(batch["image"])[0], dim=-1)
        training = model.image_cross_attn.training
        model.image_cross_attn.eval()
        try:
            seg, _ = model(batch["image"], text_context_groups(contexts, batch["class_name"]))
        finally:
            model.image_cross_attn.train(training)
        return {level: patches + cls[:, None] for level, patches in zip(model.levels, seg, strict=True)}, cls

    return patches_of


def first_level(features: ImageFeatures, model: AdaptedCLIPWithCrossAttention) -> Callable[[Batch], Tensor]:
    """Function batch -> the first level's patches [B, L, E] of some image features: what prompts attend to."""
    return lambda batch: features(batch)[0][model.levels[0]]


def one_by_one(first_patches: Callable[[Batch], Tensor]) -> Callable[[Batch], Tensor]:
    """First-level patches at test, one image at a time: under AA-CLIP's surgery attention the batch's other images
    would leak into a score."""
    return lambda batch: torch.cat([first_patches({"image": image}) for image in batch["image"].split(1)])


@torch.no_grad()
def anchors_of_each_image(
    batch: Batch,
    model: AdaptedCLIPWithCrossAttention,
    dataset_name: str,
    first_patches: Callable[[Batch], Tensor] | None,
) -> Tensor:
    """Anchors [B, E, 2] after stage 1, one pair per image: its class's prompts attend to this image's patches alone.

    Args:
        first_patches: batch -> first-level patches [B, L, E]; None for prompts that attend to nothing.
    """
    contexts = () if first_patches is None else list(first_patches(batch))
    return encode_anchors(model, dataset_name, batch["class_name"], contexts)


@torch.no_grad()
def mean_anchors(
    model: AdaptedCLIPWithCrossAttention,
    dataset_name: str,
    loader: Iterable[Batch],
    first_patches: Callable[[Batch], Tensor] | None,
) -> dict[str, Tensor]:
    """Anchors averaged over the training images of each class, for `--text_context train_mean`.

    Args:
        loader: batches of the (unaugmented) training images.
        first_patches: as in `anchors_of_each_image`.

    Returns:
        {class name: [E, 2]}, unit length, for the classes the loader shows.
    """
    sums = {}
    for batch in loader:
        on_device = batch | {"image": batch["image"].to(model.device)}
        pairs = anchors_of_each_image(on_device, model, dataset_name, first_patches)
        for name, pair in zip(batch["class_name"], pairs, strict=True):
            sums[name] = sums.get(name, 0.0) + pair
    return {name: F.normalize(total, dim=0) for name, total in sums.items()}


def anchors_after_stage_1(
    model: AdaptedCLIPWithCrossAttention,
    dataset_name: str,
    text_context: str,
    first_patches: Callable[[Batch], Tensor] | None,
    means: dict[str, Tensor] | None = None,
) -> Callable[[Batch], Tensor]:
    """Function batch -> anchors [B, E, 2] as `--text_context` wants them, in stage 2 and at test.

    Args:
        text_context: "none", "train_mean" or "image".
        first_patches: as in `anchors_of_each_image`, for "image".
        means: {class name: [E, 2]} averaged in training, for "train_mean".
    """
    if text_context == "image":
        return partial(
            anchors_of_each_image, model=model, dataset_name=dataset_name, first_patches=first_patches
        )
    return fixed_anchors(model, dataset_name, means if text_context == "train_mean" else None)


def anchors_and_means(
    model: AdaptedCLIPWithCrossAttention,
    dataset_name: str,
    text_context: str,
    features: ImageFeatures | None,
    loader: Iterable[Batch],
) -> tuple[Callable[[Batch], Tensor], dict[str, Tensor]]:
    """`anchors_after_stage_1` of a stage that just ended, and `mean_anchors` where `text_context` is "train_mean".

    Args:
        features: whose first level prompts attend to; None for nothing.
        loader: batches of the (unaugmented) training images.
    """
    first_patches = None if features is None else first_level(features, model)
    means = {}
    if text_context == "train_mean":
        means = mean_anchors(model, dataset_name, loader, first_patches)
    return anchors_after_stage_1(model, dataset_name, text_context, first_patches, means), means


# Controls. A run with `--context_control` has the same parameters and steps as one without. "constant" says nothing at
# all. "other_class" keeps the statistics of real contexts and what all classes share (that something is damaged), but
# belongs to another class; as its images see the prompts of one fixed other class, a class can still be told by it.
# Where the surgery attends across the batch before the first level (ViT-L with AA-CLIP's defaults), patches of another
# class already carry something of the own images: `--surgery_attention spatial` keeps them apart.


def controlled_scope(scope: Scope, control: str) -> Scope:
    """Stage 1's image context under a control.

    Args:
        scope: one of CONTEXT_SCOPES.
        control: "none"; "other_class": a class sees the batch's images of the next class in the batch, and nothing
            where the batch has one class; "constant": every prompt sees one token of equal entries and unit length.
    """

    def shifted(patches, class_names):
        contexts = scope(patches, class_names)
        names = list(contexts)
        if len(names) == 1:
            return {names[0]: None}
        return {name: contexts[other] for name, other in zip(names, names[1:] + names[:1], strict=True)}

    def constant(patches, class_names):
        return dict.fromkeys(scope(patches, class_names), constant_token(patches))

    return {"none": scope, "other_class": shifted, "constant": constant}[control]


def controlled_text_contexts(contexts: dict[str, TextContext], control: str) -> dict[str, TextContext]:
    """Text contexts of a dataset under a control.

    Args:
        contexts: {class name: TextContext}.
        control: "none"; "other_class": images of a class see the prompts of the dataset's next class; "constant": one
            token of equal entries and unit length.

    Raises:
        ValueError: "other_class" with a dataset of one class.
    """
    if control == "none" or not contexts:
        return contexts
    names = list(contexts)
    if control == "constant":
        return {
            name: context._replace(tokens=constant_token(context.tokens), real=context.real.new_ones(1))
            for name, context in contexts.items()
        }
    if len(names) == 1:
        raise ValueError(
            f"--context_control other_class: the dataset has one class alone, {names[0]!r}; use constant"
        )
    return {name: contexts[other] for name, other in zip(names, names[1:] + names[:1], strict=True)}


def constant_token(like: Tensor) -> Tensor:
    """[1, width] of equal entries and unit length, of the width, dtype and device of `like`."""
    width = like.shape[-1]
    return torch.full((1, width), width**-0.5, dtype=like.dtype, device=like.device)
