"""From prompts to anchors, from features to anomaly maps, and the losses on them; the names are AA-CLIP's."""

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import accumulate
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dataset.constants import CLASS_NAMES, PROMPTS, REAL_NAMES
from files.pictures import visualize
from metrics import metrics_eval
from model.adapter import SIMILARITY_SCALE, AdaptedCLIP, patch_logits
from model.focal_loss import FocalLoss
from model.frozen_cache import FrozenCache, look_up_of
from model.frozen_patches import frozen_patches
from model.known_masks import mean_over_known
from model.maps import BLUR, probability_map, score_map, upsample
from model.prompt_starts import prompt_start, together
from model.tokenizer import tokenize
from model.transfer import send

__all__ = [
    "BLUR",
    "BinaryDiceLoss",
    "FocalLoss",
    "SIMILARITY_SCALE",
    "anchors_of_batch",
    "calculate_seg_loss",
    "calculate_similarity_map",
    "class_names",
    "class_prompts",
    "class_tokens",
    "dice_loss",
    "encode_anchors",
    "fixed_anchors",
    "focal_loss",
    "frozen_image_features",
    "frozen_patches",
    "get_adapted_single_class_text_embedding",
    "get_adapted_single_sentence_text_embedding",
    "get_adapted_text_embedding",
    "metrics_eval",
    "probability_map",
    "prompt",
    "prompt_abnormal",
    "prompt_normal",
    "prompt_state",
    "prompt_templates",
    "prompts_of",
    "score_map",
    "upsample",
    "visualize",
]

Batch = dict  # {"image" [B, 3, H, W], "mask" [B, 1, H, W], "label" [B], "class_name" [B]}
# batch -> ({level: patches [B, L, E]}, cls [B, E])
ImageFeatures = Callable[[Batch], tuple[dict[int, Tensor], Tensor]]
FREE_CLASS = "object"  # AA-CLIP's class name for prompts that name no product
# AA-CLIP's names for what prompts are made of: the very lists of PROMPTS, so that an edit in place reaches both.
prompt = PROMPTS
prompt_normal, prompt_abnormal = PROMPTS["prompt_normal"], PROMPTS["prompt_abnormal"]
prompt_state, prompt_templates = [prompt_normal, prompt_abnormal], PROMPTS["prompt_templates"]


def class_prompts(real_name: str) -> tuple[list[str], list[str]]:
    """Sentences of a class: (normal, abnormal) lists, every state in every template."""
    return tuple(
        [
            frame.format(state.format(real_name))
            for state in PROMPTS[kind]
            for frame in PROMPTS["prompt_templates"]
        ]
        for kind in ("prompt_normal", "prompt_abnormal")
    )


class Prompts(NamedTuple):
    """A class's prompts as token ids [P, T], on the CPU, where their lengths can be read without waiting for a device.

    `normal`: how many of them are normal ones, which come first. `lengths`: tokens of each, start and end included.
    """

    ids: Tensor
    normal: int
    lengths: tuple[int, ...]


@cache
def _prompts(normal, abnormal):
    ids = tokenize([*normal, *abnormal])
    # The end token has the largest id.
    return Prompts(ids, len(normal), tuple((ids.argmax(dim=-1) + 1).tolist()))


def class_names(dataset_name: str) -> list[str]:
    """The classes of a dataset, in the order of every table.

    Raises:
        ValueError: the dataset is unknown.
    """
    if dataset_name not in CLASS_NAMES:
        raise ValueError(
            f"dataset {dataset_name!r} is unknown: expected one of {sorted(CLASS_NAMES)}; add it with --dataset_config"
        )
    return CLASS_NAMES[dataset_name]


def class_tokens(dataset_name: str, class_name: str) -> tuple[Tensor, int]:
    """Token ids [P, T] of a class's prompts and the number of normal ones, which come first.

    "object" is a class of every dataset, known or not: prompts that name no product.

    Raises:
        ValueError: the dataset or the class is unknown.
    """
    return prompts_of(dataset_name, class_name)[:2]


def prompts_of(dataset_name: str, class_name: str) -> Prompts:
    """The Prompts of a class; they are made once.

    Raises:
        ValueError: the dataset or the class is unknown.
    """
    known = REAL_NAMES.get(dataset_name)
    if class_name == FREE_CLASS and class_name not in (known or ()):
        known = {class_name: class_name}
    if known is None or class_name not in known:
        raise ValueError(
            f"class {class_name!r} of dataset {dataset_name!r} is unknown: "
            f"expected one of {sorted(known) if known else sorted(REAL_NAMES)}; add it with --dataset_config"
        )
    normal, abnormal = class_prompts(known[class_name])
    return _prompts(tuple(normal), tuple(abnormal))


def get_adapted_single_sentence_text_embedding(
    model: nn.Module, dataset_name: str, class_name: str, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Every prompt's unit-length embedding: (normal [P_n, E], abnormal [P_a, E])."""
    ids, normal, lengths = prompts_of(dataset_name, class_name)
    features = F.normalize(model.encode_text(send(ids[:, : max(lengths)], device)), dim=-1)
    return features[:normal], features[normal:]


def get_adapted_single_class_text_embedding(
    model: nn.Module, dataset_name: str, class_name: str, device: torch.device | str
) -> Tensor:
    """A class's anchor pair [E, 2] (normal, abnormal): prompts normalised, averaged, normalised again.

    `model` is an AdaptedCLIP or a plain CLIP: whatever has `encode_text`.
    """
    return anchor_pair(get_adapted_single_sentence_text_embedding(model, dataset_name, class_name, device))


def anchor_pair(states: tuple[Tensor, Tensor]) -> Tensor:
    """Anchors [E, 2] of unit-length prompt embeddings (normal [P_n, E], abnormal [P_a, E])."""
    return torch.stack([F.normalize(state.mean(dim=0), dim=-1) for state in states], dim=1)


def get_adapted_text_embedding(
    model: nn.Module, dataset_name: str, device: torch.device | str
) -> dict[str, Tensor]:
    """Anchor pairs of all classes of a dataset: {class name: [E, 2]}.

    Raises:
        ValueError: the dataset is unknown.
    """
    return {
        name: get_adapted_single_class_text_embedding(model, dataset_name, name, device)
        for name in class_names(dataset_name)
    }


def encode_anchors(
    model: nn.Module, dataset_name: str, class_names: Sequence[str], contexts: Sequence[Tensor | None] = ()
) -> Tensor:
    """Anchors [n, E, 2] of n requests, whose prompts all go through the text tower together.

    Args:
        model: an AdaptedCLIP, or whatever has `encode_text`; with contexts one that takes `image_contexts`.
        class_names: n names; the same one may come several times, with other contexts.
        contexts: per request the patches [S, E] its prompts attend to, or None for nothing; () for nothing at all.
    """
    requests = [prompts_of(dataset_name, name) for name in class_names]
    counts, normal = [len(one.ids) for one in requests], [one.normal for one in requests]
    ends = list(accumulate(counts))
    groups = [
        (range(end - count, end), patches)
        for end, count, patches in zip(ends, counts, contexts or [None] * len(counts), strict=True)
        if patches is not None
    ]
    seeing = {"image_contexts": groups} if groups else {}
    if isinstance(model, AdaptedCLIP):
        starts = [prompt_start(model.clipmodel, one.ids, one.lengths) for one in requests]
        features = model.encode_prompts(*together(starts), **seeing)
    else:
        longest = max(max(one.lengths) for one in requests)
        ids = torch.cat([one.ids for one in requests])[:, :longest]
        features = model.encode_text(send(ids, next(model.parameters()).device), **seeing)
    features = F.normalize(features, dim=-1)
    parts = zip(features.split(counts), normal, strict=True)
    return torch.stack([anchor_pair((own[:count], own[count:])) for own, count in parts])  # [n, E, 2]


def anchors_of_batch(model: nn.Module, dataset_name: str, class_names: Sequence[str]) -> Tensor:
    """Anchors of a batch [B, E, 2]; the prompts of all its classes go through the text tower together, once each."""
    classes = list(dict.fromkeys(class_names))
    pairs = dict(zip(classes, encode_anchors(model, dataset_name, classes), strict=True))
    return torch.stack([pairs[name] for name in class_names])


def fixed_anchors(
    model: nn.Module, dataset_name: str, means: dict[str, Tensor] | None = None
) -> Callable[[Batch], Tensor]:
    """Anchors after stage 1 that no image changes: function batch -> [B, E, 2].

    Args:
        model: an adapted model, or plain CLIP.
        means: {class name: [E, 2]} of `mean_anchors`; every other class has anchors without image context.
    """
    device = next(model.parameters()).device
    with torch.no_grad():
        anchors = get_adapted_text_embedding(model, dataset_name, device)
    anchors |= {name: pair.to(device) for name, pair in (means or {}).items()}
    return lambda batch: torch.stack([anchors[name] for name in batch["class_name"]])


def frozen_image_features(
    model: nn.Module, surgery: nn.Module, levels: Iterable[int], cache: FrozenCache | None = None
) -> ImageFeatures:
    """Stage 1's frozen image side at some levels: function batch -> ({level: patches [B, L, E]}, cls [B, E]), of
    model.frozen_patches; what the `cache` has of an image is looked up."""
    wanted, clip = sorted(set(levels)), model.clipmodel

    def features(batch):
        look_up, share = look_up_of(cache, batch), batch.get("share")
        return frozen_patches(clip, surgery, batch["image"], wanted, look_up, share)

    return features


def calculate_similarity_map(
    patch_features: Tensor,
    epoch_text_feature: Tensor,
    img_size: int,
    test: bool = False,
    domain: str = "Medical",
) -> Tensor:
    """Compare patches with an anchor pair.

    Args:
        patch_features: [B, L, E].
        epoch_text_feature: anchors [E, 2] for all images, or [B, E, 2] one pair per image (upstream's name).
        img_size: side of the map in pixels.
        test: return the blurred anomaly score instead of probabilities.
        domain: "Industrial" or "Medical"; chooses the blur of test maps.

    Returns:
        `probability_map`'s [B, 2, img_size, img_size]; with `test` `score_map`'s [B, 1, img_size, img_size].
    """
    logits = patch_logits(patch_features, epoch_text_feature)
    return score_map(logits, img_size, domain) if test else probability_map(logits, img_size)


class BinaryDiceLoss(nn.Module):
    """1 - mean over the batch of (2 sum p m + 1) / (sum p + sum m + 1) (soft Dice, arXiv 1606.04797)."""

    def forward(self, prob: Tensor, mask: Tensor, mask_known: Tensor | None = None) -> Tensor:
        """prob [B, H, W] in [0, 1], mask of as many elements -> scalar, over the images of known mask ([B] of 0/1;
        None for all)."""
        prob, mask = prob.flatten(1), mask.reshape(prob.shape[0], -1)  # [B, H * W]
        overlap = (prob * mask).sum(1)
        found = mean_over_known((2 * overlap + 1) / (prob.sum(1) + mask.sum(1) + 1), mask_known)
        return (1 if mask_known is None else mask_known.amax()) - found


focal_loss = FocalLoss()
dice_loss = BinaryDiceLoss()


def calculate_seg_loss(prob: Tensor, mask: Tensor, mask_known: Tensor | None = None) -> Tensor:
    """focal(p, m) + dice(p_normal, 1 - m) + dice(p_abnormal, m) (AA-CLIP, Eq. 3).

    Args:
        prob: [B, 2, H, W], probabilities of normal and abnormal, of `probability_map`.
        mask: [B, 1, H, W], 1 where abnormal.
        mask_known: [B], 1 for the images the loss is over, 0 for those whose defect is in an unknown place; None for
            all. With none known the loss and its gradient are 0.

    Returns:
        a scalar.
    """
    return (
        focal_loss(prob, mask, mask_known)
        + dice_loss(prob[:, 0], 1 - mask, mask_known)
        + dice_loss(prob[:, 1], mask, mask_known)
    )
