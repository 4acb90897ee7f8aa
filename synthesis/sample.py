"""Sample with semantic fill: a visible picture and a semantic map in, the picture its checkpoint learned to draw out.

    python -m synthesis.sample --checkpoint runs/fill --visible day.png --semantic labels.png --out infrared.png
    python -m synthesis.sample --checkpoint runs/fill --visible day.png --semantic_map canny --out photo.png
    python -m synthesis.sample --checkpoint runs/fill --visible good.png --semantic_map mask hole.png --out bad.png
    python -m synthesis.sample --checkpoint runs/fill --visible days --semantic labels --target truth --out results

One picture or a folder of them; pictures of several folders belong together by their stems. A result has the size of
its visible picture and is named by it in a folder. A contact sheet [visible | semantic | result | target] lies beside
the results, --attention_out draws what the semantic cross-attention looks at.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from files.command import run_main
from files.logs import open_logger
from model.settings import option
from run_folder.flags import parse
from synthesis.choices import FILL_MASKS, check_side
from synthesis.packages import optional_packages
from synthesis.sample_inputs import find_pictures


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
    with optional_packages():  # seconds, which a wrong flag does not wait for
        from synthesis.sample_run import run
    run(pictures, own, logger)


if __name__ == "__main__":
    run_main(main)
