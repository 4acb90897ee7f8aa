"""The focal loss of AA-CLIP and its peers, with the arguments it has in all of them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from model.known_masks import mean_over_known

SMOOTH = 1e-5  # keeps the one-hot target and the logarithm away from 0 and 1


class FocalLoss(nn.Module):
    """Mean of -alpha_k (1 - pt)^gamma log pt, pt the probability of the true class k (arXiv 1708.02002, Eq. 5).

    The default, without weights and with gamma 2, is what AA-CLIP trains with.

    Args:
        apply_nonlin: function that makes probabilities of the network's output, such as a softmax over dim 1; None
            where it gives probabilities already.
        alpha: weights of the classes: None for 1 each; one number per class, which are scaled to sum 1; or one
            number in [0, 1], which is class `balance_index`'s weight, every other class having 1 - alpha.
        gamma: how little the pixels count that are right already; 0 is cross-entropy.
        balance_index: the class `alpha` is the weight of where it is one number.
        smooth: label smoothing; the target is smooth / (K - 1) to 1 - smooth, and pt is raised by it. None is 0.
        size_average: mean over the pixels, else their sum.

    Raises:
        ValueError: an argument is out of its range.
        TypeError: alpha is neither a number nor a sequence of numbers.
    """

    def __init__(
        self,
        apply_nonlin: Callable[[Tensor], Tensor] | None = None,
        alpha: float | Sequence[float] | Tensor | None = None,
        gamma: float = 2,
        balance_index: int = 0,
        smooth: float | None = SMOOTH,
        size_average: bool = True,
    ):
        super().__init__()
        smooth = 0.0 if smooth is None else smooth
        if not 0 <= smooth <= 1:
            raise ValueError(f"smooth {smooth}: expected a number from 0 to 1, such as {SMOOTH}")
        if gamma < 0:
            raise ValueError(f"gamma {gamma}: expected 0 (cross-entropy) or more")
        if apply_nonlin is not None and not callable(apply_nonlin):
            raise TypeError(
                f"apply_nonlin is {apply_nonlin!r}: expected a function, such as lambda x: x.softmax(1)"
            )
        self.apply_nonlin, self.gamma, self.smooth = apply_nonlin, gamma, smooth
        self.balance_index, self.size_average = balance_index, size_average
        self.alpha = _checked_alpha(alpha)

    def forward(self, prob: Tensor, mask: Tensor, mask_known: Tensor | None = None) -> Tensor:
        """prob [B, K, ...] in [0, 1], mask [B, ...] or [B, 1, ...] of class numbers 0 to K - 1 -> scalar.

        With two classes the mask may hold the share of the second one, from 0 to 1. `mask_known` [B] of 0/1 names the
        images that count, None for all.
        """
        prob = prob if self.apply_nonlin is None else self.apply_nonlin(prob)
        number = prob.shape[1]
        classes = torch.arange(number, device=prob.device, dtype=prob.dtype).view(-1, *[1] * (prob.dim() - 2))
        mask = mask.reshape(prob.shape[0], 1, *prob.shape[2:])
        share = 1 - (mask - classes).abs()  # [B, K, ...]: how much a pixel is of a class, where not negative
        target = share.clamp(self.smooth / max(number - 1, 1), 1 - self.smooth)
        pt = (target * prob).sum(1) + self.smooth
        loss = -((1 - pt) ** self.gamma) * torch.log(pt)
        if self.alpha is not None:
            weight = prob.new_tensor(self._weights(number)).view_as(classes)
            loss = (weight * share.clamp(min=0)).sum(1) * loss
        if self.size_average:
            return mean_over_known(loss, mask_known)
        return loss.sum() if mask_known is None else (loss.flatten(1).sum(1) * mask_known).sum()

    def _weights(self, number):
        """The weights of `number` classes."""
        if isinstance(self.alpha, list):
            if len(self.alpha) != number:
                raise ValueError(f"alpha has {len(self.alpha)} weights, the prediction {number} classes")
            return [weight / sum(self.alpha) for weight in self.alpha]
        if not 0 <= self.balance_index < number:
            raise ValueError(
                f"balance_index {self.balance_index}: the prediction has {number} classes, counted from 0"
            )
        return [self.alpha if k == self.balance_index else 1 - self.alpha for k in range(number)]


def _checked_alpha(alpha):
    """alpha as a number, as a list of numbers, or None."""
    if alpha is None:
        return None
    try:
        weights = torch.as_tensor(alpha, dtype=torch.float64).tolist()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"alpha is {alpha!r}: expected a number, one number per class, or None") from error
    if isinstance(weights, float):
        fits, wanted = 0 <= weights <= 1, "a weight from 0 to 1, or one per class"
    else:
        flat = weights and not isinstance(weights[0], list)
        fits, wanted = (
            flat and min(weights) >= 0 < sum(weights),
            "weights of the classes, none below 0, not all 0",
        )
    if not fits:
        raise ValueError(f"alpha {alpha}: expected {wanted}")
    return weights
