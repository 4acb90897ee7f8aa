"""What `python -m synthesis.sample` does once its flags are checked: pictures, their sheet, what attention looks at."""

from collections import deque
from collections.abc import Sequence
from logging import Logger
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from files.pictures import write_png
from synthesis.attention_pictures import CELL, attention_picture
from synthesis.data import to_pixels
from synthesis.generate import back_to_size, resized
from synthesis.latents import fill_mask_of
from synthesis.masks import keyed_rng
from synthesis.sample_inputs import Paths, Picture, panels_of, read_picture, sheet_path
from synthesis.sampling import Filler, load_filler
from synthesis.sheets import fitted, titled_sheet
from synthesis.system import semantic_mode_of
from synthesis.weights import find_checkpoint, read_config
from utils import choose_device, on_terminal

SHEET_ROWS, SHEET_CELL = 24, 256  # the contact sheet's most pictures, and a picture's side in pixels


class SampleFlags(Paths, Protocol):
    """The flags of sampling, as synthesis.sample declares them."""

    checkpoint: str
    model: str | None
    seed: int
    steps: int
    guidance: float | None
    prompt: str | None
    size: int | None
    fill_mask: str | None
    device: str | None


def run(pictures: Sequence[Picture], own: SampleFlags, logger: Logger) -> None:
    """Sample the pictures and write their contact sheet.

    Raises:
        ValueError: --attention_out for a checkpoint without attention.
        FileNotFoundError: no checkpoint.
    """
    config = read_config(find_checkpoint(own.checkpoint))
    if own.attention_out and semantic_mode_of(config) != "cross_attention":
        raise ValueError(
            f"--attention_out: {own.checkpoint} was trained with --semantic_mode {semantic_mode_of(config)}: "
            "there is no attention to draw"
        )
    filler = load_filler(own.model or config["model"], own.checkpoint, choose_device(own.device))
    rows = []
    for picture in tqdm(pictures, desc="sampling", unit="picture", disable=not on_terminal()):
        cells = sample(picture, filler, own, config)
        if len(rows) < SHEET_ROWS:
            rows.append((picture.name, cells))
    titles = ("visible", "semantic", "result", "target")[: 4 if own.target else 3]
    write_png(sheet_path(own), titled_sheet(titles, rows))
    shown = "" if len(rows) == len(pictures) else f", the first {len(rows)} in it"
    logger.info(f"{len(pictures)} pictures in {own.out}; look at {sheet_path(own)}{shown}")


def sample(picture: Picture, filler: Filler, own: SampleFlags, config: dict) -> list[np.ndarray]:
    """Write one picture's files; returns its cells of the contact sheet."""
    visible, semantic = panels_of(picture, own, own.size or config["size"])
    fill_mask = fill_mask_of(semantic, own.fill_mask or config["fill_mask"])
    seed = int(keyed_rng(own.seed, picture.name).integers(2**31))
    start = filler.start(visible, semantic, fill_mask, own.prompt, [seed])
    entered = deque(maxlen=1)  # the tokens of the last step
    panel = filler.decode(filler.denoise(start, own.steps, own.guidance, watch=entered.append))[0]
    source, map_pixels = read_picture(picture.visible), to_pixels(semantic[0])
    result = back_to_size(panel, np.asarray(source))
    write_png(picture.out, result)
    if picture.attention_out:
        cells = [resized(pixels, CELL) for pixels in (to_pixels(panel), map_pixels)]
        with torch.no_grad():
            drawn = attention_picture(filler.system.attention, entered[-1], start.encoded, *cells)
        write_png(picture.attention_out, drawn)
    shown = [source, Image.fromarray(map_pixels).resize(source.size, Image.Resampling.NEAREST), result]
    if picture.target:
        shown.append(read_picture(picture.target))
    return [fitted(np.asarray(cell), SHEET_CELL) for cell in shown]
