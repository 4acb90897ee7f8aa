"""What a pretraining step minimises and how: contrastive loss, gradients averaged over processes, two optimisers."""

import torch
import torch.distributed
import torch.nn.functional as F
from open_clip.model import CLIP
from torch import Tensor


def contrastive_loss(
    image: Tensor, text: Tensor, scale: Tensor | float, also_true: Tensor
) -> tuple[Tensor, float]:
    """InfoNCE in both directions, without the negatives that are none.

    Args:
        image, text: [B, E], pair i in row i; not normalised.
        scale: inverse temperature.
        also_true: [B, B] bool, whether caption j is true of image i as well (i ≠ j); such pairs are left out.

    Returns:
        (loss, share of images whose own caption scores highest).
    """
    logits = scale * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
    logits = logits.masked_fill(also_true, float("-inf"))
    own_caption = torch.arange(len(logits))
    loss = (F.cross_entropy(logits, own_caption) + F.cross_entropy(logits.T, own_caption)) / 2
    return loss, (logits.argmax(dim=1) == own_caption).float().mean().item()


def average_gradients(model: torch.nn.Module, processes: int) -> None:
    """Replace every gradient by its mean over the processes: one all-reduce of one flat vector."""
    if processes == 1:
        return
    gradients = [parameter.grad for parameter in model.parameters()]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    torch.distributed.all_reduce(flat)
    flat /= processes
    parts = flat.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def build_optimizers(
    model: CLIP, lr: float, weight_decay: float
) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """Muon for the blocks' weight matrices (in short runs it needs fewer samples), AdamW for everything else."""
    blocks = [*model.visual.transformer.resblocks, *model.transformer.resblocks]
    matrices = [parameter for block in blocks for parameter in block.parameters() if parameter.ndim == 2]
    taken = {id(parameter) for parameter in matrices}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in taken]
    decayed = [parameter for parameter in rest if parameter.ndim > 1]
    kept = [parameter for parameter in rest if parameter.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    return (
        torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), foreach=True),
    )
