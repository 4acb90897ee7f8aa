"""A sample becomes a labelled image: pasted inside its label, bit-equal to the source outside, and judged."""

from typing import NamedTuple

import cv2
import numpy as np

from synthesis.masks import Area


class Gate(NamedTuple):
    """What an accepted anomaly must have."""

    min_change: float  # mean absolute difference inside the label, in grey levels of 0 to 255
    area: Area  # share of the image the label covers


def paste(source: np.ndarray, sample: np.ndarray, label: np.ndarray, feather: float) -> np.ndarray:
    """The sample inside the label, the source's own bytes everywhere else.

    Over the first `feather` pixels inside the label's edge the two are blended, so that the label's outline is no seam;
    0 pastes hard. The blend never leaves the label.

    Args:
        source, sample: RGB bytes [H, W, 3].
        label: bool [H, W].

    Raises:
        ValueError: unequal sizes or a negative feather.
    """
    if sample.shape != source.shape or label.shape != source.shape[:2] or feather < 0:
        raise ValueError(
            f"source {source.shape}, sample {sample.shape}, label {label.shape}, feather {feather}: expected RGB "
            "images and a label of one size, and a feather of 0 pixels or more"
        )
    depth = cv2.distanceTransform(
        label.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE
    )  # 1 on the inner edge
    weight = np.minimum(depth / (feather + 1), 1)[..., None]
    blended = (weight * sample + (1 - weight) * source.astype(np.float32)).round().astype(np.uint8)
    return np.where(label[..., None], blended, source)


def change_inside(source: np.ndarray, image: np.ndarray, label: np.ndarray) -> float:
    """Mean absolute difference of two RGB images [H, W, 3] inside a label [H, W] of booleans, in grey levels 0 to
    255; 0 for an empty label."""
    if not label.any():
        return 0.0
    return float(np.abs(image[label].astype(np.float32) - source[label]).mean())


def refusal(source: np.ndarray, image: np.ndarray, label: np.ndarray, gate: Gate) -> str | None:
    """Why an image is no labelled anomaly, with value and bound; None when it is one.

    Args:
        source, image: RGB bytes [H, W, 3].
        label: booleans [H, W].
    """
    share = float(label.mean())
    if not gate.area.low <= share <= gate.area.high:
        return f"the label covers {share:.2%} of the image, not {gate.area.low:.2%} to {gate.area.high:.2%}"
    change = change_inside(source, image, label)
    if change < gate.min_change:
        return (
            f"the image changes by {change:.1f} grey levels inside the label, less than {gate.min_change:g}"
        )
    return None
