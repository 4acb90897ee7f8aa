"""Where a synthetic defect goes: masks of real defects moved about, or Perlin noise, both kept on the object.

Perlin noise (K. Perlin, SIGGRAPH 1985) as a mask of anomalies: DRAEM, Zavrtanik et al., ICCV 2021.
"""

from typing import NamedTuple
from zlib import crc32

import cv2
import numpy as np

DRAWS = 100  # masks drawn before giving up
BORDER = 0.04  # of the side: what counts as the image's border


class Area(NamedTuple):
    """Smallest and largest share of an image that a mask may cover."""

    low: float = 0.002
    high: float = 0.15


def keyed_rng(seed: int, *key: int | str) -> np.random.Generator:
    """The generator of one thing by its name, the same whatever else is drawn."""
    return np.random.default_rng([seed, *(crc32(str(part).encode()) for part in key)])


def perlin_noise(height: int, width: int, cells: int, rng: np.random.Generator) -> np.ndarray:
    """Gradient noise [height, width] in about [-0.7, 0.7] with `cells` lattice cells along each axis."""
    angles = rng.uniform(0, 2 * np.pi, (cells + 1, cells + 1))
    gradients = np.stack([np.cos(angles), np.sin(angles)], axis=-1)  # [cells + 1, cells + 1, 2] of (x, y)
    y, x = np.meshgrid(np.arange(height) * cells / height, np.arange(width) * cells / width, indexing="ij")
    row, column = y.astype(int), x.astype(int)
    y, x = y - row, x - column  # position inside the cell, [0, 1)

    def corner(down, right):
        gradient = gradients[row + down, column + right]
        return gradient[..., 0] * (x - right) + gradient[..., 1] * (y - down)

    across, along = (6 * t**5 - 15 * t**4 + 10 * t**3 for t in (x, y))  # Perlin's quintic fade of 2002
    upper = corner(0, 0) + across * (corner(0, 1) - corner(0, 0))
    lower = corner(1, 0) + across * (corner(1, 1) - corner(1, 0))
    return upper + along * (lower - upper)


def object_region(image: np.ndarray) -> np.ndarray:
    """Where the object is in RGB bytes [H, W, 3], as bool [H, W]; everywhere when nothing stands out from the border.

    Colours are compared with the border's median (Lab, Otsu's threshold). A picture whose border itself holds much of
    what stands out, or in which little stands out, counts as a texture that fills it. No learned segmentation: an
    object in front of a busy background counts as a texture too.
    """
    smooth = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2LAB), (0, 0), max(image.shape[:2]) / 100)
    height, width = image.shape[:2]
    frame = np.ones((height, width), bool)
    rim = max(1, round(BORDER * min(height, width)))
    frame[rim:-rim, rim:-rim] = False
    distance = np.linalg.norm(smooth.astype(np.float32) - np.median(smooth[frame], axis=0), axis=-1)
    _, outstanding = cv2.threshold(
        distance.clip(0, 255).astype(np.uint8), 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU
    )
    contours, _ = cv2.findContours(outstanding, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = np.zeros((height, width), np.uint8)
    if contours:
        cv2.drawContours(filled, [max(contours, key=cv2.contourArea)], -1, 1, cv2.FILLED)
    is_texture = outstanding[frame].mean() > 0.1 or filled.mean() < 0.05
    return np.ones((height, width), bool) if is_texture else filled.astype(bool)


def perlin_mask(region: np.ndarray, rng: np.random.Generator, area: Area) -> np.ndarray:
    """A blob of Perlin noise inside `region` (bool [H, W]), bool [H, W]; its area is drawn evenly on a log scale.

    Raises RuntimeError when no draw fits `area`.
    """
    for _ in range(DRAWS):
        noise = perlin_noise(*region.shape, int(2 ** rng.integers(1, 5)), rng)
        share = np.exp(rng.uniform(np.log(area.low), np.log(area.high)))
        row, column = rng.choice(np.argwhere(region))
        y, x = np.ogrid[: region.shape[0], : region.shape[1]]
        # Distance from a point of the object cuts one coherent blob out of the noise, as one defect is.
        reach = np.sqrt(share / np.pi) * np.sqrt(region.size)
        height = noise - 0.5 * np.hypot(y - row, x - column) / reach
        height[~region] = -np.inf
        pixels = round(share * region.size)
        if pixels > region.sum():
            continue
        mask = height >= np.partition(height.ravel(), -pixels)[-pixels]
        mask = _largest_part(mask)
        if area.low <= mask.mean() <= area.high:
            return mask
    raise _no_mask("Perlin", region, area)


def moved_mask(mask: np.ndarray, region: np.ndarray, rng: np.random.Generator, area: Area) -> np.ndarray:
    """The mask of a real defect, bool, turned, mirrored and moved to a place in `region` (bool [H, W]).

    It is first brought to the region's size (nearest); what would leave the region is cut off, and at least half of
    the defect must stay. Raises RuntimeError when no draw fits `area`, ValueError for an empty mask.
    """
    if not mask.any():
        raise ValueError(
            "the mask of a real defect is empty: expected one anomalous pixel at least; take its row out"
        )
    height, width = region.shape
    mask = cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
    centre = np.argwhere(mask)[:, ::-1].mean(axis=0)  # (x, y)
    for _ in range(DRAWS):
        turn = cv2.getRotationMatrix2D(centre.tolist(), rng.uniform(0, 360), 1.0)  # [2, 3]
        if rng.random() < 0.5:
            turn[:, 0], turn[:, 2] = (
                -turn[:, 0],
                turn[:, 2] + 2 * centre[0] * turn[:, 0],
            )  # mirrored at the centre
        row, column = rng.choice(np.argwhere(region))
        turn[:, 2] += (column, row) - centre
        moved = cv2.warpAffine(mask, turn, (width, height), flags=cv2.INTER_NEAREST).astype(bool) & region
        if moved.sum() >= 0.5 * mask.sum() and area.low <= moved.mean() <= area.high:
            return moved
    raise _no_mask("real", region, area)


def _largest_part(mask: np.ndarray) -> np.ndarray:
    _, parts, sizes, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    return parts == 1 + sizes[1:, cv2.CC_STAT_AREA].argmax()


def _no_mask(kind: str, region: np.ndarray, area: Area) -> RuntimeError:
    return RuntimeError(
        f"no {kind} mask between {area.low:.2%} and {area.high:.2%} of the image fits the object, which covers "
        f"{region.mean():.1%} of it: widen --min_area and --max_area, or use other --masks"
    )
