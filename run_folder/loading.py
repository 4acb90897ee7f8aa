"""Weights of a run's files into a model; no file is used that does not belong to the ones before it."""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from files.command import Refusal
from files.logs import quiet_logger
from files.tensors import TensorFile
from model.adapter import AdaptedCLIP
from run_folder.checkpoints import load_checkpoint, load_modules
from run_folder.identity import (
    NO_TEXT,
    Identity,
    compare_identity,
    identity_in,
    prompts_identity,
    text_side,
    warn_of_unchecked,
)
from run_folder.kinds import BASELINE, CROSS_ATTENTION, FEEDBACK, RunKind, find_run, text_checkpoint
from run_folder.settings import Settings


def load_parts(model: AdaptedCLIP, path: Path | str, text_only: bool = False) -> None:
    """Load what a run's last checkpoints hold into a model of any kind; what they lack keeps its values.

    Args:
        model: may have more modules than the run, as a cross-attention model has more than a baseline.
        path: the run's folder.
        text_only: its text side alone.
    """
    kind, (image_file,) = find_run(path)
    image_keys = kind.image_keys if kind is BASELINE else tuple(model.image_modules)
    loading = Loading(model, kind)
    image = loading.read(image_file, () if text_only else image_keys)
    if kind is not FEEDBACK:
        loading.read_text(text_checkpoint(kind, image_file), image)
    else:
        loading.read(image_file, kind.text_keys)
    warn_of_unchecked(loading.unchecked, path, quiet_logger())


class Loading:
    """Reads the files of one checkpoint into a model; each is compared with what the ones before it say.

    `unchecked` collects what the files do not say.
    """

    def __init__(
        self, model: AdaptedCLIP, kind: RunKind, like: Identity | None = None, dataset: str | None = None
    ):
        """`like`: a file of the run that the files have to be of; `dataset`: what is going to be tested."""
        self.model, self.kind, self.dataset = model, kind, dataset
        like = like or Identity()
        self.wanted = Identity(like.run, kind.name, settings=like.settings, backbone=model.clipmodel.source)
        self.unchecked: list[str] = []

    def read(self, path: Path, keys: tuple[str, ...]) -> TensorFile:
        """Load an image checkpoint's, or a loop's, modules.

        Raises:
            RuntimeError: it is of another kind, run or backbone, or of other prompts than the dataset has now.
        """
        modules = {key: getattr(self.model, key) for key in keys}
        return load_modules(path, modules, check=partial(self._check, path))

    def _check(self, path, content):
        trained_on = (content.get("settings") or {}).get("dataset")
        prompts = prompts_identity(trained_on, names=trained_on == self.dataset)
        self._compare(path, content, self.wanted._replace(prompts=prompts))

    def read_text(self, path: Path, image: TensorFile) -> TensorFile:
        """Load the text checkpoint that belongs to an image checkpoint.

        Raises:
            RuntimeError: it is another one than the images were trained with.
        """
        modules = {key: getattr(self.model, key) for key in self.kind.text_keys}
        return load_modules(path, modules, check=partial(self._check_text, path, identity_in(image)))

    def _check_text(self, path, image, content):
        missing = [key for key in self.kind.text_keys if key not in content]
        found = identity_in(content) if missing else text_side(content, self.kind.text_keys)
        # Not the run: one text side may serve several, and its digest says more.
        wanted = self.wanted._replace(run=None, text=image.text, settings=image.settings)
        self._compare(path, content, wanted, found)
        if image.text is None:
            self.unchecked.append(f"whether it is the text side of the images ({path.name})")

    def no_text(self, image_file: Path, image: TensorFile) -> None:
        """Refuse a run without its text checkpoint, unless its images were trained with anchors of plain CLIP.

        Raises:
            RuntimeError: they were not.
        """
        found = identity_in(image)
        epochs = (found.settings or {}).get("text_epoch")
        if (found.text or NO_TEXT) != NO_TEXT or (found.text is None and epochs):
            raise Refusal(
                f"{image_file} was trained with the anchors of a {self.kind.text_file}, which is not beside it: put it "
                "back, or train with --text_epoch 0 for anchors of plain CLIP"
            )
        if found.text is None and epochs is None:
            self.unchecked.append(f"whether its anchors were plain CLIP's ({image_file.name})")

    def read_contexts(self, path: Path, image: TensorFile) -> TensorFile:
        """The text_context_dict.pth of an image checkpoint.

        Raises:
            RuntimeError: it is of another run or was made with another text side.
        """
        content, found = load_checkpoint(path, keys=["mean_anchors"]), identity_in(image)
        self._compare(path, content, Identity(run=found.run, text=found.text))
        return content

    def _compare(self, path, content, wanted, found=None):
        missing = compare_identity(path, content, wanted, found)
        self.unchecked += [f"{words} ({path.name})" for words in missing]


def load_weights(
    model: AdaptedCLIP,
    kind: RunKind,
    file: Path,
    settings: Settings,
    logger: logging.Logger | None = None,
    like: Identity | None = None,
) -> dict[str, Any]:
    """Load one checkpoint of a run, with the text side that belongs to it, into a model of its shape.

    Args:
        like: of a file of the run it has to be of; None for any run.

    Returns:
        the fields of LoadedRun that depend on it.

    Raises:
        RuntimeError: a file is of another run, kind or backbone; of any, before its weights are loaded.
    """
    logger = logger or quiet_logger()
    loading = Loading(model, kind, like, settings.data.dataset)
    if kind is FEEDBACK:
        content = loading.read(file, (*model.text_modules, *model.image_modules))
        loop = content.get("loop", content.get("total_loops"))  # the final model is its last loop
        logger.info(f"{file.name}: loop {loop}")
        found = {
            "files": {file.name: content.sha256},
            "loop": loop,
            "attends": content.get("cross_attention", True),  # other programs do not say: trained with
            "mean_anchors": content.get("mean_anchors", {}),
        }
    else:
        content = loading.read(file, tuple(model.image_modules))
        found = load_text_side(loading, file, content, settings, logger)
        logger.info(f"load model from epoch {content.get('epoch', 'unknown')}: {file.name}")
    return found | {
        "stored": content.get("settings"),
        "identity": identity_in(content),
        "unchecked": tuple(loading.unchecked),
    }


def load_text_side(
    loading: Loading, file: Path, image: TensorFile, settings: Settings, logger: logging.Logger
) -> dict[str, Any]:
    """Load the text checkpoint of a run, and the mean anchors where it has them.

    A baseline has none if it was trained with --text_epoch 0; a folder of AA-CLIP may lack it.

    Args:
        file, image: the image checkpoint and its content.

    Returns:
        the fields of LoadedRun that depend on them.

    Raises:
        FileNotFoundError: a cross-attention run lacks it, whose images cannot attend to prompts without it.
        RuntimeError: it is not the one of these images.
    """
    path, files, means, kind = (
        text_checkpoint(loading.kind, file),
        {file.name: image.sha256},
        {},
        loading.kind,
    )
    adapted = path.is_file() or kind is not BASELINE
    if adapted:
        text = loading.read_text(path, image)
        files[path.name] = text.sha256
        logger.info(f"{path.name}: epoch {text.get('epoch')}")
    else:
        loading.no_text(file, image)
        logger.info(f"no {path.name} beside {file.name}: anchors from plain CLIP")
    if kind is CROSS_ATTENTION and settings.contexts.text_context == "train_mean":
        context_file = file.parent / "text_context_dict.pth"
        contexts = loading.read_contexts(context_file, image)
        means, files[context_file.name] = contexts["mean_anchors"], contexts.sha256
    return {"files": files, "adapted_text": adapted, "mean_anchors": means}


def check_one_run(files: Sequence[Path], reference: Path) -> None:
    """Refuse checkpoints of a folder that are not all of one run, such as those an older, longer run left.

    Args:
        reference: the run's last checkpoint.

    Raises:
        RuntimeError: names the first that is of another run or of other settings.
    """
    first = identity_in(load_checkpoint(reference))
    wanted = Identity(run=first.run, kind=first.kind, settings=first.settings)
    for file in files:
        compare_identity(file, load_checkpoint(file), wanted)
