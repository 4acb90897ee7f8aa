"""What the text tower sees of images and the image tower of prompts, and the anchors that come of it.

Which rows attend to which context: `model/contexts.py`; contexts without information: `model/context_controls.py`.
"""

from collections.abc import Callable, Iterable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from forward_utils import (
    Batch,
    ImageFeatures,
    class_names,
    encode_anchors,
    fixed_anchors,
    prompts_of,
)
from model.adapter_cross_attention import AdaptedCLIPWithCrossAttention
from model.context_controls import constant_token, controlled_scope, controlled_text_contexts
from model.contexts import Scope, TextContext, batch_scope, class_scope, no_scope, text_context_groups
from model.frozen_cache import IMAGE_DIGEST, FrozenCache, look_up_of
from model.frozen_patches import frozen_cls
from model.transfer import send

__all__ = [
    "CONTEXT_SCOPES",
    "TextContext",
    "anchors_after_stage_1",
    "anchors_and_means",
    "anchors_of_each_image",
    "anchors_seeing_images",
    "batch_scope",
    "class_scope",
    "comparison_seeing_prompts",
    "constant_token",
    "controlled_scope",
    "controlled_text_contexts",
    "first_level",
    "mean_anchors",
    "no_scope",
    "one_by_one",
    "scope_named",
    "text_context_dictionary",
    "text_context_groups",
    "text_context_of_class",
    "trained_image_features",
]

CONTEXT_SCOPES = {"class": class_scope, "batch": batch_scope}


@torch.no_grad()
def text_context_of_class(
    model: AdaptedCLIPWithCrossAttention, dataset_name: str, class_name: str
) -> TextContext:
    """The TextContext of any class, seen in training or not."""
    ids, normal, lengths = prompts_of(dataset_name, class_name)
    prompts, length = ids.shape
    if model.attention.attend_padding:
        lengths = [length] * prompts
    tokens = model.text_context(send(ids, model.device))
    real = torch.arange(length) < torch.tensor(lengths)[:, None]  # [P, T]
    own = [prompt[:end] for prompt, end in zip(tokens.unflatten(0, (prompts, length)), lengths, strict=True)]
    split = model.attention.split_text_context
    seen = (torch.cat(own[:normal]), torch.cat(own[normal:])) if split else torch.cat(own)
    return TextContext(tokens, send(real.flatten(), model.device), seen)


def text_context_dictionary(
    model: AdaptedCLIPWithCrossAttention, dataset_name: str, control: str = "none"
) -> dict[str, TextContext]:
    """{class name: TextContext} of a dataset; the text tower is frozen when this is used, so it is made once.

    Args:
        control: of `controlled_text_contexts`, for studies.

    Raises:
        ValueError: the dataset or the control is unknown.
    """
    contexts = {name: text_context_of_class(model, dataset_name, name) for name in class_names(dataset_name)}
    return controlled_text_contexts(contexts, control)


def scope_named(context_scope: str, control: str = "none") -> Scope:
    """The scope of `--context_scope` and `--context_control`: (patches [B, L, E], class names) -> {class: [S, E]}.

    Raises:
        ValueError: there is no such scope or control.
    """
    if context_scope not in CONTEXT_SCOPES:
        raise ValueError(f"--context_scope {context_scope}: expected one of {', '.join(CONTEXT_SCOPES)}")
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


def comparison_seeing_prompts(
    model: AdaptedCLIPWithCrossAttention,
    contexts: dict[str, TextContext],
    cache: FrozenCache | None = None,
) -> Callable[[Batch, Tensor], tuple[list[Tensor], Tensor]]:
    """Function (batch, anchors [B, E, 2]) -> model.compare's result, images attending to their class's prompts.

    Args:
        cache: where a self-reference's frozen pass is looked up; None to make it.
    """

    def compare(batch, anchors):
        groups, image = text_context_groups(contexts, batch["class_name"]), batch["image"]
        if cache is None:
            return model.compare(image, anchors, groups)
        frozen = model.frozen_arguments(image, look_up_of(cache, batch))
        return model.compare(image, anchors, groups, **frozen)

    return compare


def trained_image_features(
    model: AdaptedCLIPWithCrossAttention,
    contexts: dict[str, TextContext],
    cache: FrozenCache | None = None,
) -> ImageFeatures:
    """The image path trained so far, frozen, with plain CLIP's CLS added: what the text sees from feedback loop 2 on.

    Args:
        contexts: {class name: TextContext} the images attend to.
        cache: where plain CLIP's CLS is looked up; None to compute it.

    Returns:
        batch -> ({level: patches [B, L, E] = seg + cls}, cls [B, E]), where seg is what the model's own evaluation
        forward gives without a self-reference, also while its image side is training (no dropout).
    """

    @torch.no_grad()
    def patches_of(batch):
        cls = frozen_cls(model.clipmodel, batch["image"], look_up_of(cache, batch))
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
    """Function batch -> first-level patches [B, L, E] at test, made of one image at a time: under AA-CLIP's surgery
    attention the batch's other images would leak into a score."""

    def of_each(batch):
        images, digests = batch["image"].split(1), batch.get(IMAGE_DIGEST)
        if digests is None:
            return torch.cat([first_patches({"image": image}) for image in images])
        pairs = zip(images, digests, strict=True)
        return torch.cat([first_patches({"image": image, IMAGE_DIGEST: [digest]}) for image, digest in pairs])

    return of_each


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
        on_device = batch | {"image": batch["image"].to(model.device, non_blocking=True)}
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
    """Anchors after a stage 1 that just ended, and what they are averaged from.

    Args:
        text_context: as in `anchors_after_stage_1`.
        features: whose first level prompts attend to; None for nothing.
        loader: batches of the (unaugmented) training images.

    Returns:
        (function batch -> anchors [B, E, 2], {class name: [E, 2]} of `mean_anchors` where `text_context` is
        "train_mean", else {}).
    """
    first_patches = None if features is None else first_level(features, model)
    means = {}
    if text_context == "train_mean":
        means = mean_anchors(model, dataset_name, loader, first_patches)
    return anchors_after_stage_1(model, dataset_name, text_context, first_patches, means), means
