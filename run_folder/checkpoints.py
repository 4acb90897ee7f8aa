"""Checkpoints of a run: adapters loaded strictly, with everything a resume needs beside them."""

import random
import re
from collections.abc import Callable
from importlib import metadata
from logging import Logger
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from files.atomic import copy_file, keep
from files.command import Refusal
from files.state_dict import unwrapped
from files.tensors import DamagedFile, TensorFile, load_tensors, save_tensors
from model.matrix_products import by_onednn
from model.weights_file import WeightsSource

save_checkpoint, load_checkpoint = save_tensors, load_tensors  # a checkpoint is a tensor file like any other


def load_modules(
    path: Path | str,
    modules: dict[str, nn.Module],
    keys: tuple | list = (),
    check: Callable[[dict[str, Any]], None] | None = None,
) -> TensorFile:
    """Load a checkpoint's weights into modules, strictly.

    Args:
        modules: {checkpoint key: module}.
        keys: further names the file must hold.
        check: called with the file's content before any weight is loaded; raises where the file is of another run.

    Returns:
        the file's content, with the SHA-256 of the bytes it was read from.

    Raises:
        FileNotFoundError, RuntimeError: as `load_checkpoint` and `load_module`.
    """
    content = load_checkpoint(path, keys=[*modules, *keys])
    if check is not None:
        check(content)
    for key, module in modules.items():
        load_module(module, content[key], path)
    return content


def earlier_checkpoints(path: Path | str) -> list[Path]:
    """The files that can stand in for a stage's checkpoint when it is damaged, newest first.

    Its numbered ones, one per epoch; for stages without them the file before the last, see `keep_previous`.
    """
    path = Path(path)
    numbered = [file for _, file in reversed(numbered_checkpoints(path.parent, f"{path.stem}_"))]
    return [*numbered, *(file for file in [previous(path)] if file.is_file())]


def previous(path: Path) -> Path:
    """Where the checkpoint before the last one of a stage is kept."""
    return path.with_name(f"{path.name}.previous")


def keep_previous(path: Path | str) -> None:
    """Keep a stage's checkpoint, if there is one, as `<name>.pth.previous` before the next one is written."""
    if Path(path).is_file():
        keep(path, previous(Path(path)))


def newest_intact(path: Path | str, keys: tuple | list, logger: Logger) -> TensorFile:
    """A stage's checkpoint, or the newest of those before it where it is damaged; only for going on with training.

    A file that stood in is copied over the damaged one, so that testing finds a whole file too.

    Raises:
        FileNotFoundError, RuntimeError: as `load_checkpoint`.
        DamagedFile: every one is damaged.
    """
    path = Path(path)
    content, file, errors = read_newest(path, keys)
    for error in errors:
        logger.warning(str(error))
    if errors:
        logger.warning(f"{path.name} is damaged: going on from {file.name}, which takes its place")
        copy_file(file, path)
    return content


def read_newest(path: Path | str, keys: tuple | list = ()) -> tuple[TensorFile, Path, list[DamagedFile]]:
    """What `newest_intact` goes on from, nothing written: (content, file, one error for each damaged one before it).

    Raises:
        FileNotFoundError, RuntimeError: as `load_checkpoint`.
        DamagedFile: every one is damaged.
    """
    path, errors = Path(path), []
    for file in (path, *earlier_checkpoints(path)):
        try:
            return load_checkpoint(file, keys=keys), file, errors
        except DamagedFile as error:
            errors.append(error)
    raise DamagedFile(
        f"{errors[0]}. No intact checkpoint is left before {path.name}: delete it to train its stage from the begin"
    ) from errors[0]


def check_backbone(content: dict[str, Any], source: WeightsSource | None, path: Path | str) -> None:
    """Refuse a checkpoint that was trained on another backbone.

    The same tensors in another kind of file are the same backbone.

    Args:
        content: of the file; those of AA-CLIP do not say their backbone.
        source: the backbone of now; None for random weights.

    Raises:
        RuntimeError: names both files and their hashes.
    """
    stored = content.get("backbone")
    if not stored or source is None or stored["sha256"] == source.sha256:
        return
    if stored.get("tensors") and stored["tensors"] == source.tensors:
        return
    raise Refusal(
        f"{path} was trained on the backbone {stored['file']} (SHA-256 {stored['sha256']}), this one is {source.file} "
        f"(SHA-256 {source.sha256}): give the other file with --clip_weights; if they should be the same, this one is "
        "damaged, download it again"
    )


def settings_in(path: Path | str, keys: tuple | list = ()) -> dict[str, Any] | None:
    """The settings a checkpoint was trained with; None in files of AA-CLIP, which carry none."""
    return load_checkpoint(path, keys=keys).get("settings")


def load_module(module: nn.Module, state: dict[str, torch.Tensor], path: Path | str) -> None:
    """Load a state dict strictly into an adapter, whatever wrapper (DataParallel, torch.compile) it was saved from.

    Raises:
        RuntimeError: names the keys and shapes that differ, and the flags that usually explain them.
    """
    want = module.state_dict()
    if set(state) != set(want):
        state = unwrapped(state)
    problems = [f"{key} is missing" for key in want if key not in state]
    problems += [f"{key} is not expected" for key in state if key not in want]
    problems += [
        f"{key} is {tuple(state[key].shape)}, expected {tuple(want[key].shape)}"
        for key in want
        if key in state and state[key].shape != want[key].shape
    ]
    if problems:
        raise Refusal(
            f"checkpoint {path} was made with other adapter settings: {'; '.join(sorted(problems)[:6])}. "
            "Give the flags it was trained with (--model_name, --relu, --text_adapt_until, --image_adapt_until)"
        )
    module.load_state_dict(state)


def versions() -> dict[str, str]:
    """Versions of the libraries that decide a run's numbers; "matmul" where products are not torch's own."""
    # torch's version is an object of its own kind, which a safe load refuses
    found = {
        "torch": str(torch.__version__),
        "open_clip": metadata.version("open_clip_torch"),
        "numpy": np.__version__,
    }
    return found | ({"matmul": "oneDNN"} if by_onednn() else {})


def rng_state() -> dict[str, Any]:
    """The state of every random generator, as values a safe load accepts."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [kind, keys.tolist(), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_rng(state: dict[str, Any]) -> None:
    """Put every random generator back to a saved state; GPUs that are not there now are left out."""
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def numbered_checkpoints(folder: Path | str, prefix: str = "image_adapter_") -> list[tuple[int, Path]]:
    """[(n, path)] of `prefix`{n}.pth files in a run folder, by number."""
    found = []
    for path in Path(folder).glob(f"{prefix}*.pth"):
        match = re.fullmatch(re.escape(prefix) + r"(\d+)\.pth", path.name)
        if match:
            found.append((int(match.group(1)), path))
    return sorted(found)
