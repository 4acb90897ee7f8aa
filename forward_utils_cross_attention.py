"""Contexts: what the text tower sees of images, and what the image tower sees of prompts.

Every function states which rows attend to which context; nothing is inferred from shapes.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from context_controls import controlled_text_contexts
from dataset.constants import CLASS_NAMES
from forward_utils import anchor_pair, class_tokens, get_adapted_text_embedding


class TextContext(NamedTuple):
    """What images of one class attend to.

    `tokens` [P * T, W]: every token of the class's prompts after text block 0 and its adapter; `real` [P * T] bool:
    which of them are tokens of a prompt, and not the padding behind it, which nothing attends to.
    """

    tokens: torch.Tensor
    real: torch.Tensor


@torch.no_grad()
def text_context_of_class(model, dataset_name, class_name, device):
    """The TextContext of any class, seen in training or not."""
    text = class_tokens(dataset_name, class_name)[0].to(device)
    positions = torch.arange(text.shape[1], device=device)
    real = positions <= text.argmax(dim=-1, keepdim=True)  # the end token has the largest id
    return TextContext(model.text_context(text), real.flatten())


def text_context_dictionary(model, dataset_name, device, control="none"):
    """{class name: TextContext} of a dataset; the text tower is frozen when this is used, so it is made once.

    Args:
        control: of context_controls, for studies.
    """
    contexts = {name: text_context_of_class(model, dataset_name, name, device) for name in CLASS_NAMES[dataset_name]}
    return controlled_text_contexts(contexts, control)


def text_context_groups(contexts, class_names):
    """Groups (image rows, tokens [S, W]) of a batch: every image attends to its own class's prompts.

    Args:
        contexts: {class name: TextContext}.
        class_names: of the batch's images, in order. With no contexts at all, nothing attends to anything.
    """
    if not contexts:
        return []
    return [(rows, contexts[name].tokens[contexts[name].real]) for name, rows in rows_by_class(class_names).items()]


def rows_by_class(class_names):
    """{class name: [rows]} in order of first appearance."""
    rows = {}
    for row, name in enumerate(class_names):
        rows.setdefault(name, []).append(row)
    return rows


def class_scope(patches, class_names):
    """Image context per class: {class: patches [n * L, E]} of all the batch's images of that class."""
    return {name: patches[rows].flatten(0, 1) for name, rows in rows_by_class(class_names).items()}


def batch_scope(patches, class_names):
    """Image context per class: {class: mean patches [L, E] of the whole batch}, the reference fork's behaviour."""
    mean = patches.mean(dim=0)
    return {name: mean for name in rows_by_class(class_names)}


CONTEXT_SCOPES = {"class": class_scope, "batch": batch_scope}


def anchors_with_context(model, dataset_name, contexts, device):
    """Anchors {class name: [E, 2]} whose prompts attend to images; all classes pass the text tower together.

    Args:
        contexts: {class name: patches [S, E], or None for prompts that attend to nothing}.
    """
    pairs = anchors_with_contexts(model, dataset_name, list(contexts.items()), device)
    return dict(zip(contexts, pairs, strict=True))


def anchors_of_each_image(model, dataset_name, patches, class_names, device):
    """Anchors [B, E, 2], one pair per image: its class's prompts attend to this image's patches [B, L, E] alone."""
    return anchors_with_contexts(model, dataset_name, list(zip(class_names, patches, strict=True)), device)


def anchors_with_contexts(model, dataset_name, requests, device):
    """Anchors [n, E, 2] of n requests (class name, patches [S, E] or None)."""
    tokens, normal = zip(*(class_tokens(dataset_name, name) for name, _ in requests), strict=True)
    groups, first = [], 0
    for own, (_, patches) in zip(tokens, requests, strict=True):
        if patches is not None:
            groups.append((list(range(first, first + len(own))), patches))
        first += len(own)
    features = F.normalize(model.encode_text(torch.cat(tokens).to(device), image_contexts=groups), dim=-1)
    parts = zip(features.split([len(own) for own in tokens]), normal, strict=True)
    return torch.stack([anchor_pair((own[:count], own[count:])) for own, count in parts])


def trained_paths(model, contexts):
    """The image path trained so far, frozen, with plain CLIP's CLS added: what the text sees from feedback loop 2 on.

    Args:
        contexts: {class name: TextContext} the images attend to.

    Returns:
        (batch -> ({level: patches [B, L, E] = seg + cls}, cls [B, E]), batch -> first-level patches), where seg is
        what the model's own evaluation forward gives without a self-reference, also while its image side is training
        (no dropout).
    """

    @torch.no_grad()
    def patches_of(batch):
        cls = F.normalize(model.clipmodel.encode_image(batch["image"])[0], dim=-1)
        training = model.image_cross_attn.training
        model.image_cross_attn.eval()
        seg, _ = model.semantic(batch["image"], text_context_groups(contexts, batch["class_name"]))
        model.image_cross_attn.train(training)
        return {level: patches + cls[:, None] for level, patches in zip(model.levels, seg, strict=True)}, cls

    return patches_of, lambda batch: patches_of(batch)[0][model.levels[0]]


def fixed_anchors(model, dataset_name, means, device):
    """Anchors after stage 1 that no image changes: function batch -> [B, E, 2].

    Args:
        means: {class name: [E, 2]} of `mean_anchors`; every other class has anchors without image context.
    """
    with torch.no_grad():
        anchors = get_adapted_text_embedding(model, dataset_name, device) | means
    return lambda batch: torch.stack([anchors[name] for name in batch["class_name"]])


def own_anchors(model, dataset_name, first_patches, device):
    """Anchors after stage 1 of each image's own: function batch -> [B, E, 2].

    Args:
        first_patches: batch -> first-level patches [B, L, E].
    """

    @torch.no_grad()
    def of_each_image(batch):
        return anchors_of_each_image(model, dataset_name, first_patches(batch), batch["class_name"], device)

    return of_each_image


@torch.no_grad()
def mean_anchors(model, dataset_name, loader, first_patches, device):
    """Anchors averaged over the training images of each class, for `--text_context train_mean`.

    Args:
        loader: batches of the (unaugmented) training images.
        first_patches: batch -> first-level patches [B, L, E].

    Returns:
        {class name: [E, 2]}, unit length, for the classes the loader shows.
    """
    sums = {}
    for batch in loader:
        patches = first_patches(batch | {"image": batch["image"].to(device)})
        pairs = anchors_of_each_image(model, dataset_name, patches, batch["class_name"], device)
        for name, pair in zip(batch["class_name"], pairs, strict=True):
            sums[name] = sums.get(name, 0.0) + pair
    return {name: F.normalize(total, dim=0) for name, total in sums.items()}
