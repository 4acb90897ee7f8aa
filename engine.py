"""The one training loop and the two stages' losses, each written once for every script."""

import math
import time

import torch
import torch.nn.functional as F
from tqdm import tqdm

from forward_utils import SIMILARITY_SCALE, calculate_similarity_map
from losses import calculate_seg_loss, orthogonality_loss
from utils import on_terminal


def text_stage_loss(batch, patches_of, anchors_of, loss_levels, *, norm_weight, cls_weight=0.0):
    """Stage 1: teach the text tower anchors that segment frozen patches.

    Kept oddity of AA-CLIP: its loss is overwritten in the level loop, so `loss_levels` is the last level alone;
    `--text_loss_levels all` gives all of them.

    Args:
        batch: {"image" [B, 3, H, W], "mask" [B, 1, H, W], "label" [B], "class_name" [B]} on the device.
        patches_of: batch -> ({level: patches [B, L, E]}, cls [B, E]).
        anchors_of: (batch, patches) -> anchors [B, E, 2].
        loss_levels: the levels that are segmented.
        norm_weight: weight of the anchors' orthogonality.
        cls_weight: weight of the image-level loss of the paper's Eq. 4; AA-CLIP's code has none (0).

    Returns:
        {term: scalar}; the loss is their sum.
    """
    patches, cls = patches_of(batch)
    anchors = anchors_of(batch, patches)
    terms = {
        "segmentation": segmentation([patches[level] for level in loss_levels], anchors, batch["mask"]),
        "orthogonality": norm_weight * orthogonality_loss(anchors),
    }
    if cls_weight:
        logits = SIMILARITY_SCALE * torch.einsum("be,bec->bc", cls, anchors)
        terms["image level"] = cls_weight * F.cross_entropy(logits, batch["label"])
    return terms


def image_stage_loss(batch, encode, anchors_of, *, head_temperature=1.0):
    """Stage 2: teach the image tower patches and a head that agree with frozen anchors.

    Kept oddity of AA-CLIP: the head's logits are bare cosines; `--head_temperature 100` scales them.

    Args:
        batch: as in `text_stage_loss`.
        encode: batch -> (list of patches [B, L, E] per level, head embedding [B, E]).
        anchors_of: batch -> anchors [B, E, 2].

    Returns:
        {term: scalar}; the loss is their sum.
    """
    patches, head = encode(batch)
    anchors = anchors_of(batch)
    logits = head_temperature * torch.einsum("be,bec->bc", head, anchors)
    return {
        "classification": F.cross_entropy(logits, batch["label"]),
        "segmentation": segmentation(patches, anchors, batch["mask"]),
    }


def segmentation(patches, anchors, mask):
    """Segmentation loss of every level against the mask [B, 1, H, W], summed."""
    maps = (calculate_similarity_map(level, anchors, mask.shape[-1]) for level in patches)
    return sum(calculate_seg_loss(prob, mask) for prob in maps)


def to_device(batch, device):
    """A batch with its tensors on the device, masks as float and labels as int64."""
    return batch | {
        "image": batch["image"].to(device, non_blocking=True),
        "mask": batch["mask"].to(device, torch.float32, non_blocking=True),
        "label": batch["label"].to(device, torch.int64, non_blocking=True),
    }


def announce_epoch(loader, epoch):
    """Tell the dataset and the sampler of a loader which epoch begins; other iterables need not know."""
    for part in (getattr(loader, "dataset", None), getattr(loader, "sampler", None)):
        if hasattr(part, "set_epoch"):
            part.set_epoch(epoch)


def train_stage(
    name, step_loss, loader, optimizer, device, *, start_epoch, epochs, logger, save, scheduler=None, epoch_offset=0,
    clip_norm=None, watched=None, history=None, enough=None,
):  # fmt: skip
    """Train one stage; the project's only backward pass.

    Args:
        name: "text" or "image", for the log.
        step_loss: batch on the device -> {term: scalar}.
        loader: iterable of batches, run once per epoch.
        start_epoch, epochs: first epoch to run and their total number (n from 0 in the log, as upstream).
        save: function (epochs done) called after every epoch.
        scheduler: stepped after every batch, or None.
        epoch_offset: epochs the data has been through before this stage; order and augmentation go on from there.
        clip_norm: largest norm of the gradient over all trained parameters, or None.
        watched: {key: module} whose mean gradient norm (before clipping) is logged every epoch.
        history: list that receives one entry per epoch: {"epoch", "loss", "terms", "lr", "seconds", "gradients"}.
        enough: function (history) -> bool, asked after every epoch; True ends the stage.

    Raises:
        ValueError: the loader is empty, or more epochs are done than wanted.
        FloatingPointError: a loss term is not finite; nothing was stepped, the batch's files are named.
    """
    watched, history = watched or {}, [] if history is None else history
    if start_epoch > epochs:
        raise ValueError(
            f"stage {name!r}: {start_epoch} epochs are done, --{name}_epoch asks for {epochs}: a run cannot be "
            "shortened; evaluate a numbered checkpoint, or start a new run with another --save_path"
        )
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for epoch in range(start_epoch, epochs):
        if enough is not None and enough(history):
            logger.info(f"stage {name}: the loss has reached a plateau, stopped before epoch {epoch + 1}/{epochs}")
            break
        logger.info(f"training {name} epoch {epoch}:")
        announce_epoch(loader, epoch_offset + epoch)
        begin, losses, sums = time.perf_counter(), [], {}
        norms = {key: [] for key in watched}
        for batch in tqdm(loader, desc=f"{name} epoch {epoch}", leave=False, disable=not on_terminal()):
            terms = step_loss(to_device(batch, device))
            loss = sum(terms.values())
            losses.append(loss.detach())
            if not math.isfinite(float(losses[-1])):
                raise FloatingPointError(non_finite_message(name, epoch, terms, batch))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            for key, module in watched.items():
                norms[key].append(gradient_norm(module))
            if clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(trained, clip_norm)
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            for term, value in terms.items():
                sums[term] = sums.get(term, 0.0) + value.detach()
        if not losses:
            raise ValueError(f"stage {name!r}: the loader gave no batch; the dataset is empty or smaller than a batch")
        mean = float(torch.stack(losses).mean())
        logger.info(f"loss: {mean}")
        parts = ", ".join(f"{term} {float(total) / len(losses):.4f}" for term, total in sums.items())
        rate, seconds = optimizer.param_groups[0]["lr"], time.perf_counter() - begin
        logger.info(f"stage {name} epoch {epoch + 1}/{epochs}: {parts}, lr {rate:.3g}, {seconds:.1f} s")
        gradients = {key: float(torch.stack(values).mean()) for key, values in norms.items()}
        if gradients:
            shown = ", ".join(f"{key} {value:.3e}" for key, value in gradients.items())
            logger.info(f"stage {name} epoch {epoch + 1}/{epochs}: mean gradient norm: {shown}")
        history.append({
            "epoch": epoch, "loss": mean, "terms": {term: float(total) / len(losses) for term, total in sums.items()},
            "lr": rate, "seconds": round(seconds, 2), "gradients": gradients,
        })  # fmt: skip
        save(epoch + 1)


def gradient_norm(module):
    """Norm of the gradient over a module's parameters, as a scalar tensor; 0 where there is none."""
    norms = [parameter.grad.norm() for parameter in module.parameters() if parameter.grad is not None]
    return torch.stack(norms).norm() if norms else torch.zeros((), device=next(module.parameters()).device)


def non_finite_message(name, epoch, terms, batch):
    """What a user needs to find the cause of a loss that is NaN or infinite."""
    values = ", ".join(f"{term} = {float(value.detach())}" for term, value in terms.items())
    files = ", ".join(map(str, batch.get("file_name", ["(the batch names no files)"])))
    return (
        f"stage {name!r}, epoch {epoch}: the loss is not finite ({values}) for {files}. Nothing was updated; "
        "look at these files, or lower the stage's learning rate"
    )
