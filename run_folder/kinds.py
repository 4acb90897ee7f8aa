"""Which files make a run: recognising its kind and finding its checkpoints."""

import re
from pathlib import Path
from typing import NamedTuple

from run_folder.checkpoints import numbered_checkpoints


class RunKind(NamedTuple):
    """A kind of run by its files; the keys are what the checkpoints hold and the model's attributes."""

    name: str
    text_file: str | None  # None: the text side is in the same file
    image_prefix: str
    text_keys: tuple
    image_keys: tuple
    save_path: str  # default of --save_path


BASELINE = RunKind(
    "baseline", "text_adapter.pth", "image_adapter", ("text_adapter",), ("image_adapter",), "ckpt/baseline"
)
CROSS_ATTENTION = RunKind(
    "cross-attention",
    "text_adapter_cross_attn.pth",
    "image_adapter_cross_attn",
    ("text_adapter", "text_cross_attn"),
    ("image_adapter", "image_cross_attn"),
    "ckpt/cross_attention",
)
FEEDBACK = RunKind(
    "feedback", None, "loop_", CROSS_ATTENTION.text_keys, CROSS_ATTENTION.image_keys, "ckpt/feedback"
)
KINDS = (CROSS_ATTENTION, BASELINE, FEEDBACK)  # the longer prefix first
EPOCH_FILE = "epoch_in_progress.pth"  # the state inside an epoch, of whatever stage is in one
FINAL_MODEL = "final_model.pth"  # of a feedback run, beside one loop_{n}_final.pth per loop


def find_run(
    save_path: Path | str,
    checkpoint: Path | str | None = None,
    every: bool = False,
    loop: int | None = None,
    epoch: int | None = None,
) -> tuple[RunKind, list[Path]]:
    """The kind of a run and the checkpoints to evaluate.

    Args:
        save_path: the run's folder.
        checkpoint: one image checkpoint (of a feedback run: a final_model.pth or loop_{n}_final.pth) instead; its name
            says the kind.
        every: all numbered checkpoints (all loops), by number, instead of the last.
        loop: this loop of a feedback run instead of its final model.
        epoch: the numbered checkpoint after this many epochs instead of the last.

    Returns:
        (RunKind, [path])

    Raises:
        FileNotFoundError: there is none.
        ValueError: the folder holds several kinds, or the file's name says none, or `loop` without a feedback run,
            or `epoch` beside another choice.
    """
    if epoch is not None and (checkpoint or every or loop is not None):
        raise ValueError(f"--epoch {epoch} chooses one checkpoint: leave --checkpoint, --all and --loop away")
    if checkpoint:
        return kind_of_file(checkpoint), [Path(checkpoint)]
    folder = Path(save_path)
    if loop is not None:
        return FEEDBACK, [one_loop(folder, loop)]
    if epoch is not None:
        found = kinds_with_epoch(folder, epoch)
    else:
        found = [(kind, files) for kind in KINDS if (files := image_checkpoints(folder, kind, every))]
    if not found:
        raise FileNotFoundError(
            f"no image_adapter.pth, image_adapter_cross_attn.pth or {FINAL_MODEL} in {folder}: train with --save_path "
            f"{folder}, or name the run's folder; --raw_clip evaluates the unadapted backbone"
        )
    if len(found) > 1:
        raise ValueError(
            f"{folder} holds runs of several kinds ({', '.join(kind.name for kind, _ in found)}): "
            "choose one of them with --checkpoint FILE"
        )
    return found[0]


def kind_of_file(checkpoint: Path | str) -> RunKind:
    """The kind of run a checkpoint's name says.

    Raises:
        ValueError: it says none.
    """
    name = Path(checkpoint).name
    if name == FINAL_MODEL or (name.startswith(FEEDBACK.image_prefix) and name.endswith("_final.pth")):
        return FEEDBACK
    for kind in (CROSS_ATTENTION, BASELINE):
        if name.startswith(kind.image_prefix):
            return kind
    names = " or ".join(f"{kind.image_prefix}*.pth" for kind in (CROSS_ATTENTION, BASELINE))
    raise ValueError(
        f"--checkpoint {checkpoint}: expected an image checkpoint named {names}, or a feedback run's {FINAL_MODEL} or "
        "loop_*_final.pth"
    )


def image_checkpoints(folder: Path, kind: RunKind, every: bool) -> list[Path]:
    """The last image checkpoint of a kind in a folder as a list, or all numbered ones; [] if there is none."""
    if kind is FEEDBACK:
        numbered, last = [path for _, path in finished_loops(folder)], folder / FINAL_MODEL
    else:
        numbered = [path for _, path in numbered_checkpoints(folder, f"{kind.image_prefix}_")]
        last = folder / f"{kind.image_prefix}.pth"
    if every and numbered:
        return numbered
    return [last] if last.is_file() else numbered[-1:]


def kinds_with_epoch(folder: Path, epoch: int) -> list[tuple[RunKind, list[Path]]]:
    """[(kind, [its image checkpoint after `epoch` epochs])] of the kinds that have one.

    Raises:
        FileNotFoundError: none has; names the epochs there are.
    """
    numbered = {
        kind: dict(numbered_checkpoints(folder, f"{kind.image_prefix}_"))
        for kind in (CROSS_ATTENTION, BASELINE)
    }
    found = [(kind, [files[epoch]]) for kind, files in numbered.items() if epoch in files]
    if found:
        return found
    there = [
        f"{kind.image_prefix}_{{n}}.pth with n in {sorted(files)}"
        for kind, files in numbered.items()
        if files
    ]
    raise FileNotFoundError(
        f"--epoch {epoch}: no {BASELINE.image_prefix}_{epoch}.pth or {CROSS_ATTENTION.image_prefix}_{epoch}.pth in "
        f"{folder}; it has {' and '.join(there) or 'no numbered checkpoint (a feedback run takes --loop)'}"
    )


def text_checkpoint(kind: RunKind, image_checkpoint: Path) -> Path:
    """The file that holds the text side belonging to an image checkpoint."""
    return image_checkpoint if kind.text_file is None else image_checkpoint.parent / kind.text_file


def loop_file(folder: Path | str, loop: int, name: str) -> Path:
    """Path of one file of a feedback run's loop: name is "text_adapter", "image_adapter", ... or "final"."""
    return Path(folder) / f"loop_{loop}_{name}.pth"


def finished_loops(folder: Path | str) -> list[tuple[int, Path]]:
    """[(n, loop_{n}_final.pth)] of a feedback run, by number."""
    matches = [
        (re.fullmatch(r"loop_(\d+)_final\.pth", path.name), path) for path in Path(folder).glob("loop_*.pth")
    ]
    return sorted((int(match[1]), path) for match, path in matches if match)


def one_loop(folder: Path, loop: int) -> Path:
    """The file of one loop.

    Raises:
        FileNotFoundError: names the loops there are.
    """
    finished = dict(finished_loops(folder))
    if loop not in finished:
        there = (
            f"it has loops {sorted(finished)}" if finished else "it holds no finished loop of a feedback run"
        )
        raise FileNotFoundError(
            f"--loop {loop}: no {loop_file(folder, loop, 'final').name} in {folder}; {there}"
        )
    return finished[loop]
