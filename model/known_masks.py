"""Losses over the pixels whose truth is known: images with a defect in an unknown place take no part."""

from torch import Tensor


def mean_over_known(values: Tensor, mask_known: Tensor | None) -> Tensor:
    """Mean of values [B, ...] over the images whose mask is known, `mask_known` [B] of 0/1; 0 where it is for none.

    No shape depends on a value, and where all masks are known the result is the plain mean to the last bit.
    """
    if mask_known is None:
        return values.mean()
    weighted = values * mask_known.reshape(-1, *[1] * (values.ndim - 1))
    return weighted.mean() * (len(mask_known) / mask_known.sum().clamp(min=1))
