"""Maps at image resolution from the similarities of a grid of patches: probabilities in training, scores in testing."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from model.transfer import send

BLUR = {"Industrial": (7, 1.0), "Medical": (9, 1.5)}  # kernel side and sigma in patches, test maps only


@lru_cache(maxsize=64)
def _interpolation_matrix(size_in, size_out, device, dtype):
    """[size_out, size_in] weights of linear interpolation with aligned corners."""
    identity = torch.eye(size_in, dtype=torch.float64)[None]
    weights = F.interpolate(identity, size=size_out, mode="linear", align_corners=True)[0]
    return send(weights.T.to(dtype=dtype).contiguous(), device)


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
    from torchvision.transforms.functional import gaussian_blur  # here, because importing it takes a second

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
