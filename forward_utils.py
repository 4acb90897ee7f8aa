"""From prompts to anchors and from features to anomaly maps; names and signatures are AA-CLIP's."""

from functools import cache, lru_cache, partial

import torch
import torch.nn.functional as F
from torchvision.transforms.functional import gaussian_blur

from dataset.constants import CLASS_NAMES, PROMPTS, REAL_NAMES
from losses import BinaryDiceLoss, FocalLoss, calculate_seg_loss, dice_loss, focal_loss
from metrics import metrics_eval
from model.blocks import run_blocks
from model.tokenizer import tokenize
from visualization import visualize

__all__ = [
    "BinaryDiceLoss", "FocalLoss", "anchors_of_batch", "calculate_seg_loss", "calculate_similarity_map",
    "class_prompts", "dice_loss", "focal_loss", "frozen_patches", "get_adapted_single_class_text_embedding",
    "get_adapted_single_sentence_text_embedding", "get_adapted_text_embedding", "metrics_eval", "visualize",
]  # fmt: skip

SIMILARITY_SCALE = 100.0  # CLIP's logit scale, applied to every cosine of a similarity map
BLUR = {"Industrial": (7, 1.0), "Medical": (9, 1.5)}  # kernel side and sigma in patches, test maps only


def class_prompts(real_name):
    """Sentences of a class: (normal, abnormal) lists, every state in every template."""
    return tuple(
        [frame.format(state.format(real_name)) for state in PROMPTS[kind] for frame in PROMPTS["prompt_templates"]]
        for kind in ("prompt_normal", "prompt_abnormal")
    )


@cache
def _tokens(real_name):
    normal, abnormal = class_prompts(real_name)
    return tokenize(normal + abnormal), len(normal)


def class_tokens(dataset_name, class_name):
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


def get_adapted_single_sentence_text_embedding(model, dataset_name, class_name, device):
    """Every prompt's unit-length embedding: (normal [P_n, E], abnormal [P_a, E])."""
    tokens, normal = class_tokens(dataset_name, class_name)
    features = F.normalize(model.encode_text(tokens.to(device)), dim=-1)
    return features[:normal], features[normal:]


def get_adapted_single_class_text_embedding(model, dataset_name, class_name, device):
    """A class's anchor pair [E, 2] (normal, abnormal): prompts normalised, averaged, normalised again.

    `model` is an AdaptedCLIP or a plain CLIP: whatever has `encode_text`.
    """
    return anchor_pair(get_adapted_single_sentence_text_embedding(model, dataset_name, class_name, device))


def anchor_pair(states):
    """Anchors [E, 2] of unit-length prompt embeddings (normal [P_n, E], abnormal [P_a, E])."""
    return torch.stack([F.normalize(state.mean(dim=0), dim=-1) for state in states], dim=1)


def get_adapted_text_embedding(model, dataset_name, device):
    """Anchor pairs of all classes of a dataset: {class name: [E, 2]}."""
    return {
        name: get_adapted_single_class_text_embedding(model, dataset_name, name, device)
        for name in CLASS_NAMES[dataset_name]
    }


def anchors_of_batch(model, dataset_name, class_names, device):
    """Anchors of a batch [B, E, 2]; the prompts of all its classes go through the text tower together, once each."""
    classes = list(dict.fromkeys(class_names))
    tokens, normal = zip(*(class_tokens(dataset_name, name) for name in classes), strict=True)
    features = F.normalize(model.encode_text(torch.cat(tokens).to(device)), dim=-1)
    pairs = {
        name: anchor_pair((own[:count], own[count:]))
        for name, own, count in zip(classes, features.split([len(part) for part in tokens]), normal, strict=True)
    }
    return torch.stack([pairs[name] for name in class_names])


@torch.no_grad()
def frozen_patches(clip, surgery, image, levels):
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
    plain, local = list(clip.visual.transformer.resblocks), list(surgery.visual.transformer.resblocks)
    same_input = clip.visual.conv1 is surgery.visual.conv1
    shared = next((i for i, (a, b) in enumerate(zip(plain, local, strict=True)) if a is not b), len(plain))
    shared = shared if same_input else 0
    run = partial(run_blocks, autocast=clip.visual.autocast)
    trunk, early = run(plain, clip.visual.embed(image), [k for k in levels if k <= shared], stop_after=shared)
    cls = F.normalize(clip.pool(run(plain[shared:], trunk)[0]), dim=-1)
    late = [k - shared for k in levels if k > shared]
    start = trunk if same_input else surgery.visual.embed(image)
    tokens = early + (run(local[shared:], start, late, stop_after=max(late))[1] if late else [])
    visual = surgery.visual
    patches = [F.normalize(visual.ln_post(x[:, 1:]) @ visual.proj, dim=-1) + cls[:, None] for x in tokens]
    return dict(zip(levels, patches, strict=True)), cls


@lru_cache(maxsize=64)
def _interpolation_matrix(size_in, size_out, device, dtype):
    """[size_out, size_in] weights of linear interpolation with aligned corners."""
    identity = torch.eye(size_in, dtype=torch.float64)[None]
    weights = F.interpolate(identity, size=size_out, mode="linear", align_corners=True)[0]
    return weights.T.to(device=device, dtype=dtype).contiguous()


def upsample(maps, img_size):
    """Bilinear upsampling with aligned corners as two matrix products: [..., G, G] -> [..., img_size, img_size].

    Equal to torch's interpolate up to rounding; its backward is deterministic on CUDA, where interpolate's is not.
    """
    matrix = _interpolation_matrix(maps.shape[-1], img_size, maps.device, maps.dtype)
    return matrix @ maps @ matrix.T


def calculate_similarity_map(patch_features, epoch_text_feature, img_size, test=False, domain="Medical"):
    """Compare patches with an anchor pair.

    Args:
        patch_features: [B, L, E].
        epoch_text_feature: anchors [E, 2] for all images, or [B, E, 2] one pair per image (upstream's name).
        img_size: side of the map in pixels.
        test: return the blurred anomaly score instead of probabilities.
        domain: "Industrial" or "Medical"; chooses the blur of test maps.

    Returns:
        [B, 2, img_size, img_size] probabilities of (normal, abnormal); with `test` [B, 1, img_size, img_size]
        scores (100 cos_abnormal + 1 - 100 cos_normal) / 2.
    """
    logits = SIMILARITY_SCALE * patch_features @ epoch_text_feature  # [B, L, 2]
    side = int(logits.shape[1] ** 0.5)
    grid = logits.transpose(1, 2).unflatten(2, (side, side))  # [B, 2, G, G]
    if not test:
        return torch.softmax(upsample(grid, img_size), dim=1)
    if domain not in BLUR:
        raise ValueError(f"domain {domain!r}: expected one of {sorted(BLUR)}")
    kernel, sigma = BLUR[domain]
    if side <= kernel // 2:
        raise ValueError(
            f"{side} x {side} patches are too few for the {domain} blur of {kernel}: give a larger --img_size"
        )
    score = (grid[:, 1:] + 1 - grid[:, :1]) / 2
    return upsample(gaussian_blur(score, kernel, sigma), img_size)
