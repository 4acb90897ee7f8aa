"""Late anchor attention: both anchors of a class look at the image they judge, after the image tower.

Per level a' = a + gate * sum_j alpha_j p_j with alpha = softmax_j(temperature * cos(a, p_j)), likewise n' with its own
weights. A patch then scores p·(a' - n') = p·(a - n) + gate * sum_j (alpha^a_j - alpha^n_j) p·p_j: how much more it is
like what the abnormal anchor picks in this image than like what the normal one picks. That is cross-attention and
self-reference in one formula. The head's anchors stay as they are. Anchors with a residual of the image's own patches:
Z. Qu et al., "Bayesian Prompt Flow Learning for Zero-Shot Anomaly Detection", CVPR 2025.
"""

import math

import torch
from torch import Tensor, nn

from model.context_controls import another_image
from model.settings import ANCHOR_ATTENTION_CONTROLS, AnchorAttentionSettings
from model.transfer import send

TEMPERATURE = 100.0  # where it starts: CLIP's scale of cosines


class LevelAttention(nn.Module):
    """Anchors that attend to the patches of one level, with a learned temperature and a gate that starts at 0.

    At gate 0 the anchors stay as they are, to the last bit. The temperature is learned as its logarithm, so that a
    step of the optimiser changes it by a share. It has no bound, unlike cross-attention's (MAX_TEMPERATURE there): it
    starts at that bound, and every run in which it rose would have other numbers.

    Args:
        control: "none", "uniform" or "swapped" of `AnchorAttention`.
    """

    def __init__(self, control: str = "none"):
        super().__init__()
        self.control = control
        self.gate = nn.Parameter(torch.zeros(()))
        self.log_temperature = nn.Parameter(torch.tensor(math.log(TEMPERATURE)))

    @property
    def temperature(self) -> Tensor:
        """The scale of the cosines, a scalar."""
        return self.log_temperature.exp()

    def attention_weights(self, anchors: Tensor, patches: Tensor) -> Tensor:
        """alpha [B, 1, 2, L] of anchors [B, 2, E], normal first, over patches [B, L, E], all of unit length."""
        if self.control == "uniform":
            return patches.new_full((patches.shape[0], 1, 2, patches.shape[1]), 1 / patches.shape[1])
        alpha = (self.temperature * (anchors @ patches.transpose(1, 2))).softmax(dim=-1)
        return (alpha.flip(1) if self.control == "swapped" else alpha)[:, None]

    def forward(self, anchors: Tensor, patches: Tensor) -> Tensor:
        """gate * sum_j alpha_j p_j: [B, 2, E] of anchors [B, 2, E] and patches [B, L, E]."""
        return self.gate * (self.attention_weights(anchors, patches)[:, 0] @ patches)


class AnchorAttention(nn.ModuleList):
    """A `LevelAttention` per level.

    Args:
        levels: number of levels.
        control: what the anchors attend to instead, for studies. "uniform": every patch alike, so that both anchors
            move by the same vector and no difference of cosines changes; "other_image": the patches of another image
            of the batch (context_controls.another_image); "swapped": each anchor by the other's weights, which a gate
            of the other sign undoes, so that it says something only of a run trained without it.

    Raises:
        ValueError: there is no such control.
    """

    def __init__(self, levels: int, control: str = "none"):
        if control not in ANCHOR_ATTENTION_CONTROLS:
            raise ValueError(
                f"--anchor_attention_control {control}: expected one of {', '.join(ANCHOR_ATTENTION_CONTROLS)}"
            )
        super().__init__(LevelAttention(control) for _ in range(levels))
        self.control = control

    def forward(self, seg: list[Tensor], anchors: Tensor) -> list[Tensor]:
        """What seeing their image adds to the anchors, [B, E, 2] per level.

        Args:
            seg: patches [B, L, E] per level, unit length.
            anchors: [B, E, 2], normal and abnormal, unit length.

        Raises:
            ValueError: "other_image" in a batch of one.
        """
        if self.control == "other_image":
            other = send(another_image(anchors.shape[0]), anchors.device)
            seg = [patches[other] for patches in seg]
        queries = anchors.transpose(1, 2)  # [B, 2, E]
        return [attend(queries, patches).transpose(1, 2) for attend, patches in zip(self, seg, strict=True)]


def anchor_attention_of(settings: AnchorAttentionSettings, levels: int) -> AnchorAttention | None:
    """The module that `--anchor_attention` asks for; None for none.

    Raises:
        ValueError: there is no such attention or control.
    """
    if settings.anchor_attention == "none":
        return None
    if settings.anchor_attention != "late":
        raise ValueError(f"--anchor_attention {settings.anchor_attention}: expected none or late")
    return AnchorAttention(levels, settings.anchor_attention_control)
