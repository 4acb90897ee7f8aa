"""What moves while a stage trains, and the file it is kept in."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from forward_utils_cross_attention import TextContext
from model.clip import CLIP
from run_folder.checkpoints import (
    keep_previous,
    load_module,
    restore_rng,
    rng_state,
    save_checkpoint,
    versions,
)
from run_folder.identity import NO_TEXT, Identity, compare_identity, weights_digest
from run_folder.settings import Settings


class Record(NamedTuple):
    """What every checkpoint of a run carries beside its weights; `backbone` is {"file", "sha256"} of CLIP's weights.

    `text_of`: {file: digest of the text side it was trained with} of the image checkpoints the run has already.
    """

    settings: dict[str, Any]
    versions: dict[str, str]
    backbone: dict[str, str]
    identity: Identity | None = None
    text_of: dict[Path, str] | None = None

    def content(self) -> dict[str, Any]:
        """What goes into a checkpoint."""
        known = {"settings": self.settings, "versions": self.versions, "backbone": self.backbone}
        return known if self.identity is None else known | {"identity": self.identity.record()}

    def built_on(self, model: nn.Module | None, image_file: Path | str) -> "Record":
        """The record of what is trained on a text side, which must be the one that `image_file` was trained with.

        Args:
            model: has the text side as `text_modules`; None for anchors of plain CLIP.
            image_file: the checkpoint of stage 2, which need not be there yet.

        Raises:
            RuntimeError: it is another one.
        """
        states = {} if model is None else {key: one.state_dict() for key, one in model.text_modules.items()}
        text = weights_digest(states) if states else NO_TEXT
        trained_with = (self.text_of or {}).get(Path(image_file))
        if trained_with is not None:
            compare_identity(image_file, {}, Identity(text=text), Identity(text=trained_with))
        return self._replace(identity=(self.identity or Identity())._replace(text=text))


def record_of(settings: Settings, clip: CLIP) -> Record:
    """The record of a run started with these settings on this backbone, without an identity."""
    return Record(settings.record(), versions(), clip.source._asdict())


@dataclass
class TrainState:
    """One stage in training.

    `name` is "text" or "image"; `modules` {checkpoint key: module} are what it trains; `epoch` counts the epochs done;
    `history` has one entry per epoch, see training.engine.train_one_epoch; `scaler` is of `--precision fp16` alone.
    """

    name: str
    modules: dict[str, nn.Module]
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None
    epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    scaler: torch.amp.GradScaler | None = None

    def content(self, record: Record | None = None) -> dict[str, Any]:
        """What a checkpoint of the stage holds; with a record also what the run is."""
        content = {"epoch": self.epoch} | {key: module.state_dict() for key, module in self.modules.items()}
        content |= {
            f"{self.name}_optimizer": self.optimizer.state_dict(),
            "rng": rng_state(),
            "history": self.history,
        }
        if self.scheduler is not None:
            content["scheduler"] = self.scheduler.state_dict()
        if self.scaler is not None:
            content["scaler"] = self.scaler.state_dict()
        if record is not None:
            content |= record.content()
        return content

    def restore(self, content: dict[str, Any], path: Path | str) -> None:
        """Put back what `content` gave, of the file `path`; random states and schedule where the file has them.

        Raises:
            RuntimeError: the file is of other adapter settings.
        """
        for key, module in self.modules.items():
            load_module(module, content[key], path)
        stored, own = content[f"{self.name}_optimizer"], self.optimizer.param_groups[0].get("fused")
        # Which kernel steps is this command's choice: what a file of AA-CLIP says would undo --fused_adam.
        groups = [group | {"fused": own} for group in stored["param_groups"]]
        self.optimizer.load_state_dict(stored | {"param_groups": groups})
        if "rng" in content:
            restore_rng(content["rng"])
        if self.scheduler is not None and "scheduler" in content:
            self.scheduler.load_state_dict(content["scheduler"])
        if self.scaler is not None and "scaler" in content:
            self.scaler.load_state_dict(content["scaler"])
        self.history[:] = content.get("history", [])
        self.epoch = content["epoch"]

    def save(self, files: list[Path], record: Record | None = None) -> None:
        """Write the stage's checkpoint to each of some files.

        Args:
            record: left out of the files when None, as AA-CLIP's functions are called.
        """
        content = self.content(record)
        # Of several files one is the epoch's own and stays; AA-CLIP's functions write its files and no other.
        if record is not None and len(files) == 1:
            keep_previous(files[0])
        for file in files:
            save_checkpoint(file, content)


def save_contexts(
    path: Path | str, contexts: dict[str, TextContext], means: dict[str, torch.Tensor], record: Record
) -> None:
    """Write a text_context_dict.pth: what images attend to, and the anchors of `--text_context train_mean` or {}.

    Args:
        record: of `Record.built_on` the text side they were made with.
    """
    tokens = {name: {"tokens": one.tokens, "real": one.real} for name, one in contexts.items()}
    identity = {} if record.identity is None else {"identity": record.identity.record()}
    save_checkpoint(path, {"text_context": tokens, "mean_anchors": means} | identity)
