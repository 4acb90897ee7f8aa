"""Sample with semantic fill: a visible picture and a semantic map in, the picture its checkpoint learned to draw out.

    python -m synthesis.sample --checkpoint runs/fill --visible day.png --semantic labels.png --out infrared.png
    python -m synthesis.sample --checkpoint runs/fill --visible day.png --semantic_map canny --out photo.png
    python -m synthesis.sample --checkpoint runs/fill --visible good.png --semantic_map mask hole.png --out bad.png
    python -m synthesis.sample --checkpoint runs/fill --visible days --semantic labels --target truth --out results

One picture or a folder of them; pictures of several folders belong together by their stems. A result has the size of
its visible picture and is named by it in a folder. A contact sheet [visible | semantic | result | target] lies beside
the results, --attention_out draws what the semantic cross-attention looks at.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

try:
    from synthesis.sampling import load_filler
    from synthesis.system import semantic_mode_of
    from synthesis.weights import find_checkpoint, read_config
except ModuleNotFoundError as error:
    if error.name not in ("diffusers", "peft", "transformers", "tokenizers", "accelerate"):
        raise
    raise SystemExit(
        f"semantic fill needs {error.name}: pip install -r requirements-synthesis.txt"
    ) from error

from files.command import run_main
from files.logs import open_logger
from files.pictures import write_png
from model.settings import option
from run_folder.flags import parse
from synthesis.attention_pictures import CELL, attention_picture
from synthesis.choices import FILL_MASKS, check_side
from synthesis.data import to_pixels
from synthesis.generate import back_to_size, resized
from synthesis.latents import fill_mask_of
from synthesis.masks import keyed_rng
from synthesis.sample_inputs import Picture, find_pictures, panels_of, read_picture, sheet_path
from synthesis.sampling import Filler
from synthesis.sheets import fitted, titled_sheet
from utils import choose_device, on_terminal

SHEET_ROWS, SHEET_CELL = 24, 256  # the contact sheet's most pictures, and a picture's side in pixels


@dataclass(frozen=True)
class SampleSettings:
    """sampling"""

    checkpoint: str | None = option(
        None, "run folder of train_semantic_fill.py, or one of its checkpoints", required=True
    )
    model: str | None = option(None, "as in train_semantic_fill.py; default as trained")
    visible: str | None = option(None, "picture, or folder of pictures", required=True)
    semantic: str | None = option(None, "semantic map, or folder of maps of equal stems")
    semantic_map: list[str] | None = option(
        None,
        "in place of --semantic: canny or luminance of the visible picture, or mask FILE",
        nargs="+",
        type=str,
        metavar=("{canny,luminance,mask}", "FILE"),
    )
    target: str | None = option(None, "the true picture, or folder of them, for the contact sheet")
    out: str | None = option(
        None, "file of the result (PNG), or folder where --visible is one", required=True
    )
    attention_out: str | None = option(
        None, "draw what the semantic cross-attention looks at: file (PNG), or folder where --visible is one"
    )
    seed: int = option(111, "of the noise, beside the picture's name")
    steps: int = option(28, "sampling steps")
    guidance: float | None = option(None, "default the backbone's: 30 for FLUX.1 Fill, 1 for tiny and small")
    prompt: str | None = option(None, "default the training prompt")
    size: int | None = option(None, "side of a panel in pixels; default as trained")
    fill_mask: str | None = option(
        None,
        "what is drawn anew: everything, or where the map is bright; default as trained",
        choices=FILL_MASKS,
    )
    device: str | None = option(None, "torch device; default CUDA if there, else CPU")


GROUPS = {"own": SampleSettings}


def main(argv: Sequence[str] | None = None) -> None:
    own = parse(__doc__, GROUPS, argv).own
    logger = open_logger("sample")  # no file: the folder holds results alone
    if own.steps < 1:
        raise ValueError(f"--steps {own.steps}: expected 1 or more")
    if own.size is not None:
        check_side(own.size)
    pictures = find_pictures(own)
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


def sample(picture: Picture, filler: Filler, own: SampleSettings, config: dict) -> list[np.ndarray]:
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


if __name__ == "__main__":
    run_main(main)
