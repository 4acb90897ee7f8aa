"""Which files make a run: recognising its kind and finding its checkpoints."""

from pathlib import Path
from typing import NamedTuple

from checkpoints import numbered_checkpoints


class RunKind(NamedTuple):
    """A kind of run by its files; the keys are what the checkpoints hold and the model's attributes."""

    name: str
    text_file: str
    image_prefix: str
    text_keys: tuple
    image_keys: tuple


BASELINE = RunKind("baseline", "text_adapter.pth", "image_adapter", ("text_adapter",), ("image_adapter",))
CROSS_ATTENTION = RunKind(
    "cross-attention", "text_adapter_cross_attn.pth", "image_adapter_cross_attn",
    ("text_adapter", "text_cross_attn"), ("image_adapter", "image_cross_attn"),
)  # fmt: skip
KINDS = (CROSS_ATTENTION, BASELINE)  # the longer prefix first


def find_run(save_path, checkpoint=None, every=False):
    """The kind of a run and the image checkpoints to evaluate.

    Args:
        save_path: the run's folder.
        checkpoint: one image checkpoint file instead; its name says the kind.
        every: all numbered checkpoints, by number, instead of the last.

    Returns:
        (RunKind, [path])

    Raises:
        FileNotFoundError: there is none.
        ValueError: the folder holds several kinds, or the file's name says none.
    """
    if checkpoint:
        for kind in KINDS:
            if Path(checkpoint).name.startswith(kind.image_prefix):
                return kind, [Path(checkpoint)]
        names = " or ".join(f"{kind.image_prefix}*.pth" for kind in KINDS)
        raise ValueError(f"--checkpoint {checkpoint}: expected an image checkpoint named {names}")
    folder = Path(save_path)
    found = [(kind, files) for kind in KINDS if (files := image_checkpoints(folder, kind, every))]
    if not found:
        raise FileNotFoundError(
            f"no image_adapter.pth or image_adapter_cross_attn.pth in {folder}: train with --save_path {folder}, or "
            "name the run's folder; --raw_clip evaluates the unadapted backbone"
        )
    if len(found) > 1:
        raise ValueError(
            f"{folder} holds runs of several kinds ({', '.join(kind.name for kind, _ in found)}): "
            "choose one of them with --checkpoint FILE"
        )
    return found[0]


def image_checkpoints(folder, kind, every):
    """The last image checkpoint of a kind in a folder as a list, or all numbered ones; [] if there is none."""
    numbered = [path for _, path in numbered_checkpoints(folder, f"{kind.image_prefix}_")]
    if every and numbered:
        return numbered
    last = folder / f"{kind.image_prefix}.pth"
    return [last] if last.is_file() else numbered[-1:]
