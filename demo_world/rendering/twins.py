"""A defective picture and its undamaged twin: what the mask is, and which defects are fair."""

from collections.abc import Callable

import cv2
import numpy as np

MASK_THRESHOLD = 10  # of 255, in the most changed channel
MASK_SHARE = (0.005, 0.1)  # of the picture
MASK_CONTRAST = 30.0  # of 255, mean over the mask: visible to a person
EXTENT = (0.18, 0.42)  # defect radius in frame units (the frame is 2 wide)
ATTEMPTS = 200


def difference_mask(picture: np.ndarray, twin: np.ndarray) -> np.ndarray:
    """Where two uint8 pictures [S, S, 3] differ by more than MASK_THRESHOLD, slightly closed; uint8 0/255 [S, S]."""
    changed = (cv2.absdiff(picture, twin).max(2) > MASK_THRESHOLD).astype(np.uint8) * 255
    side = max(3, picture.shape[0] // 48) | 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    # Closing at the frame's edge needs room to dilate into.
    padded = cv2.copyMakeBorder(changed, side, side, side, side, cv2.BORDER_CONSTANT)
    return cv2.morphologyEx(padded, cv2.MORPH_CLOSE, kernel)[side:-side, side:-side]


def is_fair_defect(picture: np.ndarray, twin: np.ndarray, mask: np.ndarray) -> bool:
    """Whether the defect has a size within MASK_SHARE and can be seen (MASK_CONTRAST)."""
    share = np.count_nonzero(mask) / mask.size
    if not MASK_SHARE[0] <= share <= MASK_SHARE[1]:
        return False
    return float(cv2.absdiff(picture, twin).max(2)[mask > 0].mean()) >= MASK_CONTRAST


def damage_twin(
    twin: np.ndarray,
    draw: Callable[[float, np.random.Generator], np.ndarray],
    rng: np.random.Generator,
    what: str,
) -> tuple[np.ndarray, np.ndarray]:
    """(picture, mask) of a fair defect: `draw(extent, rng)` renders the twin's scene with one, until one is fair.

    Raises RuntimeError naming `what` when none of ATTEMPTS is fair.
    """
    for _ in range(ATTEMPTS):
        # Small defects are as frequent as large ones: the extent is drawn on a logarithmic scale.
        picture = draw(float(np.exp(rng.uniform(*np.log(EXTENT)))), rng)
        mask = difference_mask(picture, twin)
        if is_fair_defect(picture, twin, mask):
            return picture, mask
    raise RuntimeError(
        f"no fair defect for {what} in {ATTEMPTS} attempts at {twin.shape[0]} px: each was smaller or "
        f"larger than {MASK_SHARE} of the picture or too faint. Use a larger --size, or take the "
        f"defect out of the class."
    )
