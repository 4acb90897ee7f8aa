"""Pictures of predictions: heatmap overlays, contact sheets, PNG files."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from files.names import picture_names, safe_name
from files.normalisation import CLIP_MEAN, CLIP_STD

UNKNOWN_GREY = 128  # stands for a truth that nobody knows
GAP = 4  # white pixels between the pictures of a sheet


def to_picture(image: Tensor) -> np.ndarray:
    """A normalised image tensor [3, S, S] as RGB bytes [S, S, 3]."""
    pixels = image.permute(1, 2, 0).cpu().numpy() * np.array(CLIP_STD) + np.array(CLIP_MEAN)
    return (pixels.clip(0, 1) * 255).round().astype(np.uint8)


def heatmap(scores: np.ndarray, low: float, high: float) -> np.ndarray:
    """Scores [S, S] as RGB bytes [S, S, 3]: blue at `low`, red at `high`."""
    scaled = np.clip((scores - low) / max(high - low, 1e-12), 0, 1)
    colours = cv2.applyColorMap((scaled * 255).round().astype(np.uint8), cv2.COLORMAP_JET)
    return cv2.cvtColor(colours, cv2.COLOR_BGR2RGB)


def overlay(
    picture: np.ndarray, scores: np.ndarray, low: float, high: float, opacity: float = 0.5
) -> np.ndarray:
    """The heatmap of `scores` [S, S] over an RGB picture [S, S, 3]."""
    return cv2.addWeighted(heatmap(scores, low, high), opacity, picture, 1 - opacity, 0)


def outline(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """An RGB picture with the edge of the true defect [S, S] drawn in green."""
    contours, _ = cv2.findContours((mask > 0).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(picture.copy(), contours, -1, (0, 255, 0), 1)


def sheet(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """RGB pictures in a grid: list of rows of equally sized [S, S, 3] pictures -> one picture, white between them."""
    padded = [
        np.concatenate(
            [np.pad(cell, ((0, GAP), (0, GAP), (0, 0)), constant_values=255) for cell in row], axis=1
        )
        for row in rows
    ]
    width = max(row.shape[1] for row in padded)
    padded = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in padded]
    return np.concatenate(padded, axis=0)


def write_png(path: Path | str, picture: np.ndarray) -> None:
    """Write RGB bytes [H, W, 3] as PNG.

    Raises:
        OSError: the file cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)):  # False is its only complaint
        raise OSError(f"cannot write {path}: check the folder's permissions and free space")


def example_row(
    image: Tensor, mask: np.ndarray | None, scores: np.ndarray, low: float, high: float
) -> list[np.ndarray]:
    """Pictures of one image: original, truth (grey where the mask is None, unknown), heatmap. Tensor [3, S, S], arrays
    [S, S]."""
    picture = to_picture(image)
    truth = np.full_like(picture, UNKNOWN_GREY) if mask is None else outline(picture, mask)
    return [picture, truth, overlay(picture, scores, low, high)]


def visualize(
    pixel_label: ArrayLike,
    pixel_preds: ArrayLike,
    file_names: Iterable[str],
    save_dir: Path | str,
    dataset_name: str,
    class_name: str,
    images: Sequence[Tensor] | None = None,
    mask_known: Sequence[bool] | None = None,
) -> Path:
    """Write one PNG per image under `save_dir`/visualization/<dataset>/<class>/: original, truth, heatmap.

    Args:
        pixel_label: [n, S, S] or [n, 1, S, S] of 0/1.
        pixel_preds: [n, S, S] scores; one colour scale for all n.
        file_names: n names, used for the PNGs.
        images: n normalised tensors [3, S, S] drawn beside the map; the map alone stands there when None.
        mask_known: n flags, False where the truth is unknown; None for all known.

    Returns:
        the folder.
    """
    folder = Path(save_dir) / "visualization" / safe_name(dataset_name) / safe_name(class_name)
    preds = np.asarray(pixel_preds)
    masks = np.asarray(pixel_label).reshape(preds.shape)
    low, high = float(preds.min()), float(preds.max())
    for i, name in enumerate(picture_names(file_names)):
        if images is None:
            row = [outline(heatmap(preds[i], low, high), masks[i])]
        else:
            mask = masks[i] if mask_known is None or mask_known[i] else None
            row = example_row(images[i], mask, preds[i], low, high)
        write_png(folder / name, sheet([row]))
    return folder


def visualize_batches(
    batches: Iterable[dict],
    file_names: Iterable[str],
    save_dir: Path | str,
    dataset_name: str,
    class_name: str,
    ends: tuple[float, float],
) -> Path:
    """`visualize` for a class that is never whole in memory.

    Args:
        batches: dictionaries with "images" [b, 3, S, S], "masks" and "maps" [b, S, S], "mask_known" [b].
        file_names: of all images, in the order of the batches.
        ends: lowest and highest score of the class, the ends of the colour scale.
    """
    folder = Path(save_dir) / "visualization" / safe_name(dataset_name) / safe_name(class_name)
    names = iter(picture_names(file_names))
    for batch in batches:
        for image, mask, scores, known in zip(
            *(batch[key] for key in ("images", "masks", "maps", "mask_known")), strict=True
        ):
            row = example_row(image, mask if known else None, scores, *ends)
            write_png(folder / next(names), sheet([row]))
    return folder
