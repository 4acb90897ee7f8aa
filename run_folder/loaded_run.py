"""`load_run`: the only way a trained run comes back from its folder.

>>> run = load_run("ckpt/visa")
>>> anchors_of = run.anchors("MVTec")  # batch -> [B, E, 2]
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from files.command import Refusal
from files.logs import quiet_logger
from forward_utils import fixed_anchors, frozen_image_features
from forward_utils_cross_attention import (
    TextContext,
    anchors_after_stage_1,
    first_level,
    one_by_one,
    text_context_dictionary,
    trained_image_features,
)
from model.adapter import AdaptedCLIP
from model.frozen_cache import FrozenCache
from model.settings import (
    MAY_CHANGE,
    MUST_AGREE,
    AnchorAttentionSettings,
    AnchorDecoderSettings,
    CrossAttentionSettings,
    ModelSettings,
    NetworkCorrections,
    SelfReferenceSettings,
)
from run_folder.checkpoints import settings_in
from run_folder.flags import settings_of
from run_folder.identity import Identity, warn_of_unchecked
from run_folder.kinds import BASELINE, FEEDBACK, RunKind, find_run, kind_of_file
from run_folder.loading import load_weights
from run_folder.session import create_adapted_model, create_backbone, declare_datasets, surgery_of
from run_folder.settings import (
    ContextSettings,
    DataSettings,
    MixSettings,
    RunSettings,
    Settings,
    corrections_in,
)
from utils import choose_device

GROUPS = {  # what a trained run can be described by
    "model": ModelSettings,
    "network": NetworkCorrections,
    "cross_attention": CrossAttentionSettings,
    "self_reference": SelfReferenceSettings,
    "anchor_attention": AnchorAttentionSettings,
    "anchor_decoder": AnchorDecoderSettings,
    "contexts": ContextSettings,
    "mix": MixSettings,
    "data": DataSettings,
    "run": RunSettings,
}


@dataclass(frozen=True)
class LoadedRun:
    """A trained run as it stands after one checkpoint, ready to be tested; its model is in evaluation mode.

    `settings`: the user's flags over the checkpoint's; `stored`: the checkpoint's alone, None in files of AA-CLIP.
    `files`: {name: SHA-256} of what was loaded. `loop`: 1 for a run without feedback. `attends`: whether it was
    trained with its cross-attention on; `ablated`: switched off for this test. `adapted_text`: False for a baseline
    without a text adapter, whose anchors are plain CLIP's. `mean_anchors`: those of `--text_context train_mean`.
    `identity`: what the checkpoint was made of. `unchecked`: what its files do not say of that, in words.
    """

    kind: RunKind
    settings: Settings
    model: AdaptedCLIP
    checkpoint: Path
    stored: dict[str, Any] | None
    files: dict[str, str]
    loop: int = 1
    attends: bool = True
    ablated: bool = False
    adapted_text: bool = True
    mean_anchors: dict[str, Tensor] = field(default_factory=dict)
    identity: Identity = Identity()
    unchecked: tuple[str, ...] = ()

    def without_cross_attention(self) -> "LoadedRun":
        """The same run with its cross-attention off, the ablation of test.py; a trained self-reference stays."""
        return replace(self, ablated=True)

    def at(self, checkpoint: Path, logger: logging.Logger | None = None) -> "LoadedRun":
        """The run after another of its checkpoints; the model is shared, so the run this is called on ends here.

        Raises:
            RuntimeError: the checkpoint is of another run or of other settings.
        """
        loaded = load_weights(self.model, self.kind, checkpoint, self.settings, logger, self.identity)
        said = {words.partition(" (")[0] for words in self.unchecked}  # of another file of the same program
        new = [words for words in loaded["unchecked"] if words.partition(" (")[0] not in said]
        warn_of_unchecked(new, checkpoint, logger or quiet_logger())
        return replace(self, checkpoint=checkpoint, **loaded)

    @property
    def mix(self) -> float:
        """`--feedback_mix`, where the maps of both sides are to be averaged; 1 where one map is all there is."""
        settings = self.settings.mix
        averaged = self.kind is FEEDBACK and settings is not None and settings.feedback_maps == "both"
        return settings.feedback_mix if averaged else 1.0

    def text_contexts(self, dataset_name: str) -> dict[str, TextContext]:
        """What images of a dataset's classes attend to; {} where the run has no cross-attention or it is off."""
        if self.kind is BASELINE or self.ablated or not self.attends:
            return {}
        return text_context_dictionary(self.model, dataset_name, self.settings.contexts.context_control)

    def first_patches(
        self, contexts: dict[str, TextContext], cache: FrozenCache | None = None
    ) -> Callable[[dict], Tensor]:
        """Function batch -> first-level patches [B, L, E], what prompts attend to under `--text_context image`.

        Frozen surgery patches in loop 1, as in its training; the trained image path from loop 2 on.

        Args:
            contexts: of `text_contexts`, for the trained path.
            cache: where what no training changes is looked up; None to compute it.
        """
        if self.loop > 1:
            return first_level(trained_image_features(self.model, contexts, cache), self.model)
        surgery = surgery_of(self.model.clipmodel, self.settings)
        frozen = frozen_image_features(self.model, surgery, self.model.levels[:1], cache)
        return one_by_one(first_level(frozen, self.model))

    def anchors(self, dataset_name: str, cache: FrozenCache | None = None) -> Callable[[dict], Tensor]:
        """Function {"image", "class_name"} -> anchors [B, E, 2], as the run was trained; `cache` of `first_patches`."""
        if self.kind is BASELINE:
            return fixed_anchors(self.model if self.adapted_text else self.model.clipmodel, dataset_name)
        wanted = "none" if self.ablated else self.settings.contexts.text_context
        sees = wanted == "image" and self.attends
        patches = self.first_patches(self.text_contexts(dataset_name), cache) if sees else None
        return anchors_after_stage_1(self.model, dataset_name, wanted, patches, self.mean_anchors)


def load_run(
    path: Path | str,
    checkpoint: Path | str | None = None,
    loop: int | None = None,
    device: torch.device | str | None = None,
    *,
    flags: Settings | None = None,
    logger: logging.Logger | None = None,
) -> LoadedRun:
    """Load a trained run of any kind.

    Args:
        path: its folder.
        checkpoint: one of its image checkpoints (or final models) instead of the last.
        loop: this loop of a feedback run instead of its final model.
        device: CUDA if there, else CPU when None.
        flags: settings of a command line; what the user gave there counts before the checkpoint's settings, and what
            neither says has its default. None for the checkpoint's alone.
        logger: told what was loaded.

    Raises:
        FileNotFoundError: a file of the run is missing.
        ValueError: the folder holds runs of several kinds.
        RuntimeError: a file is damaged, of another run or backbone, or does not fit, or a flag contradicts the
            checkpoint.
    """
    logger = logger or quiet_logger()
    if checkpoint is None:
        kind, (file,) = find_run(path, loop=loop)
    else:
        kind, file = kind_of_file(checkpoint), Path(checkpoint)
    settings = describe_run(file, kind, flags, logger)
    declare_datasets(settings.data)
    if device is None and flags is not None:  # a checkpoint's own device may not exist on this machine
        device = flags.run.device
    where = choose_device(device)
    clip = create_backbone(settings, where, logger)
    described = replace(settings, cross_attention=None) if kind is BASELINE else settings
    model = create_adapted_model(clip, described, where).eval()
    run = LoadedRun(kind, settings, model, file, **load_weights(model, kind, file, settings, logger))
    again = settings_of(GROUPS, run.stored or {}) if flags is None else adopt(flags, run.stored, file)
    if again != settings:
        raise Refusal(
            f"{file} was replaced by one of other settings while it was read: wait until its training writes no more, "
            "and start again"
        )
    warn_of_unchecked(run.unchecked, file, logger)
    return run


def describe_run(
    file: Path, kind: RunKind, flags: Settings | None, logger: logging.Logger | None = None
) -> Settings:
    """The settings a checkpoint is to be tested with; nothing but the file is read.

    Args:
        flags: as in `load_run`; describing twice changes nothing.
        logger: told what the checkpoint changes; None for silence.
    """
    stored = settings_in(file, keys=kind.image_keys)
    if flags is None:
        return settings_of(GROUPS, stored or {})
    return adopt(flags, stored, file, logger)


def adopt(
    flags: Settings, stored: dict[str, Any] | None, path: Path, logger: logging.Logger | None = None
) -> Settings:
    """The flags of a command line with the checkpoint's values where the user gave none.

    Args:
        stored: the checkpoint's settings, None in files of AA-CLIP.

    Raises:
        RuntimeError: a flag the user gave contradicts the checkpoint's adapters.
    """
    current, adopted = flags.record(), {}
    for flag in (*flags.flags(at_test=MUST_AGREE), *flags.flags(at_test=MAY_CHANGE)):
        if not stored or flag not in stored or stored[flag] == current[flag]:
            continue
        if flag not in flags.explicit:
            adopted[flag] = stored[flag]
        elif flag in flags.flags(at_test=MUST_AGREE):
            raise Refusal(
                f"checkpoint {path} was made with other adapter settings: --{flag} was {stored[flag]!r}, is "
                f"{current[flag]!r}. Leave the flag away to use the checkpoint's"
            )
        elif logger is not None:
            logger.warning(f"trained with --{flag} {stored[flag]}, tested with {current[flag]}, as typed")
    settings = flags.change(**adopted)
    contexts = settings.contexts
    if contexts is not None and contexts.context_control != "none" and contexts.text_context != "none":
        raise Refusal(
            f"{path} was trained with --context_control {contexts.context_control}, whose anchors see no image: leave "
            f"--text_context {contexts.text_context} away"
        )
    if settings.mix is not None:
        refuse_other_mix(settings, stored, path)
    corrections = corrections_in(stored or {})
    if corrections and logger is not None:
        logger.info(f"trained with corrections of AA-CLIP's known deviations: {corrections}")
    return settings


def refuse_other_mix(settings: Settings, stored: dict[str, Any] | None, path: Path) -> None:
    """Refuse a run for a `--feedback_mix` it was not trained with, and anchors that see images for one below 1.

    Args:
        stored: the checkpoint's settings; files without it were trained against the other side's trained features.
    """
    mix, trained_with = settings.mix.feedback_mix, (stored or {}).get("feedback_mix", 1.0)
    if mix != trained_with:
        raise Refusal(
            f"{path} was trained with --feedback_mix {trained_with}, not {mix}: leave the flag away to use the "
            "checkpoint's"
        )
    if mix != 1 and settings.contexts.text_context != "none":
        raise Refusal(
            f"{path} was trained with --feedback_mix {mix}, whose anchors see no image: leave --text_context "
            f"{settings.contexts.text_context} away"
        )
