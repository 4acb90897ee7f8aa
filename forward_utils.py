"""From prompts to anchors, from features to anomaly maps, and the losses on them; the names are AA-CLIP's."""

from collections.abc import Callable, Iterable, Sequence
from functools import cache, lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from dataset.constants import CLASS_NAMES, PROMPTS, REAL_NAMES
from files.pictures import visualize
from metrics import metrics_eval
from model.adapter import SIMILARITY_SCALE, patch_logits
from model.blocks import run_blocks
from model.known_masks import mean_over_known
from model.tokenizer import tokenize

__all__ = [
    "BinaryDiceLoss",
    "FocalLoss",
    "SIMILARITY_SCALE",
    "anchors_of_batch",
    "calculate_seg_loss",
    "calculate_similarity_map",
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
    "score_map",
    "visualize",
]

BLUR = {"Industrial": (7, 1.0), "Medical": (9, 1.5)}  # kernel side and sigma in patches, test maps only
Batch = dict  # {"image" [B, 3, H, W], "mask" [B, 1, H, W], "label" [B], "class_name" [B]}
# batch -> ({level: patches [B, L, E]}, cls [B, E])
ImageFeatures = Callable[[Batch], tuple[dict[int, Tensor], Tensor]]
SMOOTH = 1e-5  # keeps the focal loss's one-hot target and logarithm away from 0 and 1


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


@cache
def _tokens(real_name):
    normal, abnormal = class_prompts(real_name)
    return tokenize(normal + abnormal), len(normal)


def class_tokens(dataset_name: str, class_name: str) -> tuple[Tensor, int]:
    """Token ids [P, T] of a class's prompts and the number of normal ones, which come first.

    Raises:
        ValueError: the dataset or the class is unknown.
    """
    known = REAL_NAMES.get(dataset_name)
    if known is None or class_name not in known:
        raise ValueError(
            f"class {class_name!r} of dataset {dataset_name!r} is unknown: "
            f"expected one of {sorted(known) if known else sorted(REAL_NAMES)}; add it with --dataset_config"
        )
    return _tokens(known[class_name])


def get_adapted_single_sentence_text_embedding(
    model: nn.Module, dataset_name: str, class_name: str, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Every prompt's unit-length embedding: (normal [P_n, E], abnormal [P_a, E])."""
    tokens, normal = class_tokens(dataset_name, class_name)
    features = F.normalize(model.encode_text(tokens.to(device)), dim=-1)
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
    """Anchor pairs of all classes of a dataset: {class name: [E, 2]}."""
    return {
        name: get_adapted_single_class_text_embedding(model, dataset_name, name, device)
        for name in CLASS_NAMES[dataset_name]
    }


def encode_anchors(
    model: nn.Module, dataset_name: str, class_names: Sequence[str], contexts: Sequence[Tensor | None] = ()
) -> Tensor:
    """Anchors [n, E, 2] of n requests, whose prompts all go through the text tower together.

    Args:
        model: whatever has `encode_text`; with contexts one that takes `image_contexts`.
        class_names: n names; the same one may come several times, with other contexts.
        contexts: per request the patches [S, E] its prompts attend to, or None for nothing; () for nothing at all.
    """
    tokens, normal = zip(*(class_tokens(dataset_name, name) for name in class_names), strict=True)
    counts = [len(own) for own in tokens]
    ends = torch.tensor(counts).cumsum(0).tolist()
    groups = [
        (range(end - count, end), patches)
        for end, count, patches in zip(ends, counts, contexts or [None] * len(counts), strict=True)
        if patches is not None
    ]
    ids = torch.cat(tokens).to(next(model.parameters()).device)
    features = F.normalize(
        model.encode_text(ids, image_contexts=groups) if groups else model.encode_text(ids), dim=-1
    )
    parts = zip(features.split(counts), normal, strict=True)
    return torch.stack([anchor_pair((own[:count], own[count:])) for own, count in parts])


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


@torch.no_grad()
def frozen_patches(
    clip: nn.Module, surgery: nn.Module, image: Tensor, levels: Sequence[int]
) -> tuple[dict[int, Tensor], Tensor]:
    """Stage 1's image side: frozen patch features per level, with the image's CLS added to every patch.

    Args:
        clip: plain CLIP, whose pooled CLS is used.
        surgery: the surgery model, whose patches are used. Leading blocks that are the very same modules in both
            (`model.clip.surgery_copy`) run once.
        image: [B, 3, H, W].
        levels: ascending levels to return.

    Returns:
        (patches, cls): {level: [B, L, E] = normalize(ln_post(patch) @ proj) + cls}, and cls [B, E] of unit length.
    """
    last, tokens = _tokens_of_both(clip, surgery, image, levels)
    visual, cls = surgery.visual, F.normalize(clip.pool(last), dim=-1)
    patches = [F.normalize(visual.ln_post(x[:, 1:]) @ visual.proj, dim=-1) + cls[:, None] for x in tokens]
    return dict(zip(levels, patches, strict=True)), cls


def _tokens_of_both(clip, surgery, image, levels):
    """(plain CLIP's last tokens, surgery tokens per level); blocks that are the same modules in both run once."""
    plain, local = list(clip.visual.transformer.resblocks), list(surgery.visual.transformer.resblocks)
    same_input = clip.visual.conv1 is surgery.visual.conv1
    shared = next((i for i, (a, b) in enumerate(zip(plain, local, strict=True)) if a is not b), len(plain))
    shared = shared if same_input else 0
    run = partial(run_blocks, autocast=clip.visual.autocast)
    trunk, early = run(plain, clip.visual.embed(image), [k for k in levels if k <= shared], stop_after=shared)
    last = run(plain[shared:], trunk)[0]
    late = [k - shared for k in levels if k > shared]
    start = trunk if same_input else surgery.visual.embed(image)
    return last, early + (run(local[shared:], start, late, stop_after=max(late))[1] if late else [])


def frozen_image_features(model: nn.Module, surgery: nn.Module, levels: Iterable[int]) -> ImageFeatures:
    """Stage 1's frozen image side at some levels: function batch -> forward_utils.frozen_patches's result."""
    wanted = sorted(set(levels))
    return lambda batch: frozen_patches(model.clipmodel, surgery, batch["image"], wanted)


@lru_cache(maxsize=64)
def _interpolation_matrix(size_in, size_out, device, dtype):
    """[size_out, size_in] weights of linear interpolation with aligned corners."""
    identity = torch.eye(size_in, dtype=torch.float64)[None]
    weights = F.interpolate(identity, size=size_out, mode="linear", align_corners=True)[0]
    return weights.T.to(device=device, dtype=dtype).contiguous()


def upsample(maps: Tensor, img_size: int) -> Tensor:
    """Bilinear upsampling with aligned corners as two matrix products: [..., G, G] -> [..., img_size, img_size].

    Equal to torch's interpolate up to rounding; its backward is deterministic on CUDA, where interpolate's is not.
    """
    # What torch.export or torch.compile traces is no tensor to keep: the next call without them would get it.
    weights = _interpolation_matrix.__wrapped__ if torch.compiler.is_compiling() else _interpolation_matrix
    matrix = weights(maps.shape[-1], img_size, maps.device, maps.dtype)
    return matrix @ maps @ matrix.T


def probability_map(logits: Tensor, img_size: int) -> Tensor:
    """Probabilities [B, 2, img_size, img_size] of (normal, abnormal) from patch logits [B, L, 2]."""
    return torch.softmax(upsample(_grid(logits), img_size), dim=1)


def score_map(logits: Tensor, img_size: int, domain: str) -> Tensor:
    """Blurred anomaly scores [B, 1, img_size, img_size], (100 cos_abnormal + 1 - 100 cos_normal) / 2, for testing.

    Args:
        logits: [B, L, 2], of AdaptedCLIP.compare.
        domain: "Industrial" or "Medical"; chooses the blur.

    Raises:
        ValueError: the domain is unknown, or there are too few patches for its blur.
    """
    if domain not in BLUR:
        raise ValueError(f"domain {domain!r}: expected one of {sorted(BLUR)}")
    kernel, sigma = BLUR[domain]
    grid = _grid(logits)
    side = grid.shape[-1]
    if side <= kernel // 2:
        raise ValueError(
            f"{side} x {side} patches are too few for the {domain} blur of {kernel}: give a larger --img_size"
        )
    score = (grid[:, 1:] + 1 - grid[:, :1]) / 2
    return upsample(gaussian_blur(score, kernel, sigma), img_size)


def _grid(logits):
    side = int(logits.shape[1] ** 0.5)
    return logits.transpose(1, 2).unflatten(2, (side, side))  # [B, 2, G, G]


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


class FocalLoss(nn.Module):
    """Mean of -(1 - pt)^2 log pt with pt the probability of the true class (arXiv 1708.02002)."""

    def forward(self, prob: Tensor, mask: Tensor, mask_known: Tensor | None = None) -> Tensor:
        """prob [B, 2, H, W] in [0, 1], mask [B, 1, H, W] or [B, H, W] of 0/1 -> scalar, over the images of known
        mask ([B] of 0/1; None for all)."""
        mask = mask.reshape(prob.shape[0], *prob.shape[2:])
        target = mask.clamp(SMOOTH, 1 - SMOOTH)
        normal = (1 - mask).clamp(SMOOTH, 1 - SMOOTH)
        pt = normal * prob[:, 0] + target * prob[:, 1] + SMOOTH
        return mean_over_known(-((1 - pt) ** 2) * torch.log(pt), mask_known)


class BinaryDiceLoss(nn.Module):
    """1 - mean over the batch of (2 sum p m + 1) / (sum p + sum m + 1) (soft Dice, arXiv 1606.04797)."""

    def forward(self, prob: Tensor, mask: Tensor, mask_known: Tensor | None = None) -> Tensor:
        """prob [B, H, W] in [0, 1], mask of as many elements -> scalar, over the images of known mask ([B] of 0/1;
        None for all)."""
        prob, mask = prob.flatten(1), mask.reshape(prob.shape[0], -1)
        overlap = (prob * mask).sum(1)
        found = mean_over_known((2 * overlap + 1) / (prob.sum(1) + mask.sum(1) + 1), mask_known)
        return (1 if mask_known is None else mask_known.amax()) - found


focal_loss = FocalLoss()
dice_loss = BinaryDiceLoss()


def calculate_seg_loss(prob: Tensor, mask: Tensor, mask_known: Tensor | None = None) -> Tensor:
    """focal(p, m) + dice(p_normal, 1 - m) + dice(p_abnormal, m) (AA-CLIP, Eq. 3).

    Args:
        prob: [B, 2, H, W], probabilities of normal and abnormal.
        mask: [B, 1, H, W], 1 where abnormal.
        mask_known: [B], 1 for the images the loss is over, 0 for those whose defect is in an unknown place; None for
            all. With none known the loss and its gradient are 0.
    """
    return (
        focal_loss(prob, mask, mask_known)
        + dice_loss(prob[:, 0], 1 - mask, mask_known)
        + dice_loss(prob[:, 1], mask, mask_known)
    )
