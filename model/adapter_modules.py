"""The two small modules AA-CLIP trains; names and state-dict keys are upstream's."""

from torch import Tensor, nn


class SimpleAdapter(nn.Module):
    """Linear without bias, then LeakyReLU: [..., c_in] -> [..., c_out], of the same width where `c_out` is None."""

    def __init__(self, c_in: int, c_out: int | None = None):
        super().__init__()
        c_out = c_in if c_out is None else c_out
        self.fc = nn.Sequential(nn.Linear(c_in, c_out, bias=False), nn.LeakyReLU(0.01))

    def forward(self, x: Tensor) -> Tensor:
        """[..., c_in] -> [..., c_out]."""
        return self.fc(x)


class SimpleProj(nn.Module):
    """Linear without bias, with LeakyReLU if `relu`: [..., c_in] -> [..., c_out].

    The key is `fc.weight` without relu and `fc.0.weight` with it, as upstream's checkpoints have it.
    """

    def __init__(self, c_in: int, c_out: int, relu: bool = True):
        super().__init__()
        linear = nn.Linear(c_in, c_out, bias=False)
        self.fc = nn.Sequential(linear, nn.LeakyReLU(0.01)) if relu else linear

    def forward(self, x: Tensor) -> Tensor:
        """[..., c_in] -> [..., c_out]."""
        return self.fc(x)


def match_norm(y: Tensor, x: Tensor, floor: float = 0.0) -> Tensor:
    """y rescaled per token to the norm of x: y * |x| / (|y| + floor). Both [..., width]."""
    return y * x.norm(dim=-1, keepdim=True) / (y.norm(dim=-1, keepdim=True) + floor)
