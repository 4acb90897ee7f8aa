"""What the semantic cross-attention looks at, drawn: which tokens of the map each token of the picture takes from."""

from math import isqrt

import cv2
import numpy as np
import torch
from torch import Tensor

from files.pictures import overlay
from synthesis.attention import SemanticLayers
from synthesis.latents import Encoded, filled_tokens
from synthesis.sheets import titled_sheet

CELL = 160  # pixels of a picture's side
EXAMPLES = 3  # tokens that are drawn one by one: those the map changes most, apart from each other
MARK = (255, 40, 40)


def attention_picture(
    attention: SemanticLayers, noisy: Tensor, encoded: Encoded, result: np.ndarray, semantic: np.ndarray
) -> np.ndarray:
    """A sheet for one image, layer by layer.

    First row of a layer: how much the map changes each token of the right panel, over the result, and what all tokens
    to be filled look at together; then some tokens alone, marked in the result. Columns: the mean of the heads and each
    head, over the semantic map, from blue (0) to red (the cell's own maximum).

    Args:
        noisy: [1, N, 64] what entered a step of sampling.
        encoded: that image's.
        result, semantic: RGB bytes [CELL, CELL, 3].

    Returns:
        RGB bytes [H, W, 3]
    """
    tokens, rows = noisy, []
    heads = attention[0].heads
    for number, layer in enumerate(attention):
        where = (tokens, encoded.semantic, encoded.token_places, encoded.semantic_places)
        changed, weights = layer(*where), right_panel(layer.weights(*where)[0].transpose(0, 1))
        change = right_panel((changed - tokens)[0].float().norm(dim=-1))  # [R, R]
        filled = right_panel(filled_tokens(encoded.condition)[0])
        filled = filled if filled.any() else torch.ones_like(filled)
        looking = overlay(result, enlarged(change), 0, float(change.max()))
        rows.append(
            (
                f"layer {number}, all tokens to be filled; left: how much the map changes each token",
                looks(looking, weights[filled].mean(0), semantic),
            )
        )
        for row, column in most_changed(change * filled):
            name = f"layer {number}, the token in row {row + 1}, column {column + 1} of {len(change)}"
            rows.append(
                (name, looks(marked(result, row, column, len(change)), weights[row, column], semantic))
            )
        tokens = changed
    return titled_sheet(("who looks", "semantic", "all heads", *(f"head {n}" for n in range(heads))), rows)


def right_panel(values: Tensor) -> Tensor:
    """[N, ...] of a diptych's tokens -> [R, R, ...] of its right panel."""
    side = isqrt(len(values) // 2)
    return values.unflatten(0, (side, 2 * side))[:, side:]


def looks(who: np.ndarray, weights: Tensor, semantic: np.ndarray) -> list[np.ndarray]:
    """A row's cells: who looks, the map, and weights [heads, M] over it, their mean first."""
    side = isqrt(weights.shape[-1])
    maps = torch.cat((weights.mean(0, keepdim=True), weights)).unflatten(-1, (side, side))
    return [who, semantic, *(overlay(semantic, enlarged(one), 0, float(one.max())) for one in maps)]


def most_changed(change: Tensor) -> list[tuple[int, int]]:
    """(row, column) of the EXAMPLES largest values [R, R], each a quarter of the side away from those before it."""
    left, side, found = change.clone(), len(change), []
    reach = max(1, side // 4)
    for _ in range(min(EXAMPLES, side * side)):
        row, column = divmod(int(left.argmax()), side)
        if left[row, column] <= 0:
            break
        found.append((row, column))
        left[max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1] = 0
    return found


def enlarged(values: Tensor) -> np.ndarray:
    """[R, R] -> float32 [CELL, CELL], each token a square."""
    return cv2.resize(values.float().cpu().numpy(), (CELL, CELL), interpolation=cv2.INTER_NEAREST)


def marked(picture: np.ndarray, row: int, column: int, side: int) -> np.ndarray:
    """The picture [CELL, CELL, 3] with a frame around the square of one of its side x side tokens."""
    unit = CELL / side
    corners = [(round(unit * place), round(unit * (place + 1)) - 1) for place in (column, row)]
    (left, right), (top, bottom) = corners
    return cv2.rectangle(picture.copy(), (left, top), (right, bottom), MARK, 2)
