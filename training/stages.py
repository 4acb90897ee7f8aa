"""The two stages: their losses, written once for every script, and how a stage of a run starts, goes on and is kept."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from logging import Logger
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forward_utils import SIMILARITY_SCALE, calculate_seg_loss, patch_logits, probability_map
from model.adapter import AdaptedCLIP
from model.compiled import region
from run_folder.kinds import RunKind
from run_folder.processes import current
from run_folder.progress import EpochFile
from run_folder.resume import resume_stage
from run_folder.session import Session, compiles
from run_folder.settings import TrainingCorrections
from run_folder.state import Record, TrainState
from training.acceleration import StageLoss, distributed, gradient_scaler, own_draws, whole_batch
from training.base_weights import Origins, summarise
from training.engine import StagePlan, StepLoss, train_stage
from training.epoch import EpochKeeper
from training.optimisation import adam, image_schedule, only_training
from training.watch import Watch


def text_stage_loss(
    batch: dict,
    patches_of: Callable,
    anchors_of: Callable,
    loss_levels: Sequence[int],
    *,
    norm_weight: float,
    cls_weight: float = 0.0,
    segment: Callable | None = None,
) -> dict[str, Tensor]:
    """Stage 1: teach the text tower anchors that segment frozen patches.

    Known deviation of AA-CLIP, kept by default: its loss is overwritten in the level loop, so `loss_levels` is the last
    level alone; `--text_loss_levels all` gives all of them.

    Args:
        batch: {"image" [B, 3, H, W], "mask" [B, 1, H, W], "label" [B], "class_name" [B]} on the device, and
            "mask_known" [B], 0 for images that segmentation leaves out; without it all masks are known. With "share" it
            is one process's part of a batch, and the loss is of the whole one.
        patches_of: batch -> ({level: patches [B, L, E]}, cls [B, E]).
        anchors_of: (batch, patches) -> anchors [B, E, 2].
        loss_levels: the levels that are segmented.
        norm_weight: weight of the anchors' orthogonality.
        cls_weight: weight of the image-level loss of the paper's Eq. 4; AA-CLIP's code has none (0).
        segment: `segmentation`, or that compiled.

    Returns:
        {term: scalar}; the loss is their sum.
    """
    batch, patches, cls = whole_batch(batch, *patches_of(batch))
    anchors = anchors_of(batch, patches)
    logits = [patch_logits(patches[level], anchors) for level in loss_levels]
    terms = {
        "segmentation": (segment or segmentation)(logits, batch["mask"], batch.get("mask_known")),
        "orthogonality": norm_weight * orthogonality_loss(anchors),
    }
    if cls_weight:
        logits = SIMILARITY_SCALE * torch.einsum("be,bec->bc", cls, anchors)
        terms["image level"] = cls_weight * F.cross_entropy(logits, batch["label"])
    return terms


def image_stage_loss(
    batch: dict,
    compare: Callable,
    anchors_of: Callable,
    *,
    head_temperature: float = 1.0,
    segment: Callable | None = None,
) -> dict[str, Tensor]:
    """Stage 2: teach the image tower patches and a head that agree with frozen anchors.

    Known deviation of AA-CLIP, kept by default: the head's logits are bare cosines; `--head_temperature 100` scales
    them.

    Args:
        batch: as in `text_stage_loss`.
        compare: (batch, anchors) -> (patch logits [B, L, 2] per level, head cosines [B, 2]), as AdaptedCLIP.compare.
        anchors_of: batch -> anchors [B, E, 2].
        segment: as in `text_stage_loss`.

    Returns:
        {term: scalar}; the loss is their sum.
    """
    with own_draws(batch):
        compared = compare(batch, anchors_of(batch))
    batch, patch_logits_of_levels, head = whole_batch(batch, *compared)
    return {
        "classification": F.cross_entropy(head_temperature * head, batch["label"]),
        "segmentation": (segment or segmentation)(
            patch_logits_of_levels, batch["mask"], batch.get("mask_known")
        ),
    }


def segmentation(logits: Iterable[Tensor], mask: Tensor, mask_known: Tensor | None = None) -> Tensor:
    """Segmentation loss of every level's patch logits [B, L, 2] against the mask [B, 1, H, W], summed.

    `mask_known` [B] of 0/1 leaves images out; 0 with gradient 0 where it leaves out all of them.
    """
    side = mask.shape[-1]
    return sum(calculate_seg_loss(probability_map(level, side), mask, mask_known) for level in logits)


def orthogonality_loss(anchors: Tensor) -> Tensor:
    """(mean_B sum_E normal * abnormal)^2 of anchors [B, E, 2]: keeps the two anchors of a class apart."""
    return (anchors[..., 0] * anchors[..., 1]).sum(1).mean() ** 2


def loss_levels(model: AdaptedCLIP, corrections: TrainingCorrections) -> list[int]:
    """The levels stage 1 segments."""
    return model.levels if corrections.text_loss_levels == "all" else model.levels[-1:]


class Stage(NamedTuple):
    """One stage of a run.

    `name`: "text" or "image". `modules`: {checkpoint key: module} of `model`, what it trains. `file`: its checkpoint;
    with `numbered` one more per epoch, `<name>_{n}.pth`. `extendable`: as in run_folder.resume.resume_stage.
    """

    name: str
    model: AdaptedCLIP
    modules: dict[str, nn.Module]
    file: Path
    numbered: bool = False
    extendable: frozenset[str] | None = None

    def save(self, state: TrainState, record: Record | None = None) -> None:
        """Write the stage's files after an epoch."""
        own = [self.file.with_name(f"{self.file.stem}_{state.epoch}.pth")] if self.numbered else []
        state.save([*own, self.file], record)


def text_stage(kind: RunKind, model: AdaptedCLIP, save_path: Path | str) -> Stage:
    """Stage 1 of a run of some kind."""
    return Stage("text", model, model.text_modules, Path(save_path) / kind.text_file)


def image_stage(kind: RunKind, model: AdaptedCLIP, save_path: Path | str) -> Stage:
    """Stage 2 of a run of some kind."""
    return Stage(
        "image", model, model.image_modules, Path(save_path) / f"{kind.image_prefix}.pth", numbered=True
    )


def run_stage(
    session: Session,
    stage: Stage,
    step_loss: StepLoss,
    loader: Iterable[dict],
    record: Record,
    origins: Origins | None = None,
) -> TrainState:
    """Optimise, resume, train and save one stage as AA-CLIP does: Adam, and halved rates in stage 2.

    A stage of 0 epochs is left out.

    Args:
        record: written into its files.
        origins: of training.base_weights.load_base.
    """
    training, name = session.settings.training, stage.name
    epochs = getattr(training, f"{name}_epoch")
    attention = session.settings.cross_attention
    attention_lr = None if attention is None else attention.cross_attn_lr
    optimizer = adam(stage.modules, getattr(training, f"{name}_lr"), training.fused_adam, attention_lr)
    scheduler = None
    if name == "image":
        milestones = session.settings.corrections.milestones
        scheduler = image_schedule(milestones, optimizer, epochs, len(loader))
    state = TrainState(name, stage.modules, optimizer, scheduler)
    plan = StagePlan(epochs, log_every=training.log_every)
    return continue_stage(session, stage, state, step_loss, loader, plan, record=record, origins=origins)


def continue_stage(
    session: Session,
    stage: Stage,
    state: TrainState,
    step_loss: StepLoss,
    loader: Iterable[dict],
    plan: StagePlan,
    *,
    record: Record,
    origins: Origins | None,
) -> TrainState:
    """Resume a stage whose optimiser and schedule are made, train it by its plan and save it after every epoch.

    Args:
        origins: of training.base_weights.load_base, or what else a fresh stage's weights are said to come from.
    """
    if session.settings.training.watch:  # from the weights the stage begins with, also where it is resumed
        plan = replace(plan, watch=Watch(stage.modules))
    processes, precision = current(), session.settings.training.precision
    state.scaler = gradient_scaler(precision, session.device)
    processes.wait()  # for the files of the stage before
    keeper = resume_in_epoch(session, stage, state, record, plan.epochs)
    begun = keeper.begun["so_far"]["steps"] if keeper.begun is not None else 0
    processes.check_same(f"epochs and steps of stage {stage.name}", (state.epoch, begun))
    summarise(origins or {}, stage.modules, stage.file, state.epoch, session.logger)
    if session.left_out is not None:
        session.left_out.before(state.history)
        plan = replace(plan, left_out=session.left_out)
    if compiles(session.settings):
        step_loss = partial(step_loss, segment=region(segmentation))
    finishing = session.signals.finishing() if session.signals is not None else nullcontext()
    with finishing, only_training(stage.model, stage.modules):
        return train_stage(
            state,
            distributed(StageLoss(step_loss, stage.modules), session.device),
            loader,
            plan,
            session.device,
            session.logger,
            lambda now: keep_epoch(session, stage, plan, now, record),
            keeper,
        )


def keep_epoch(session: Session, stage: Stage, plan: StagePlan, state: TrainState, record: Record) -> None:
    """Write a stage's files after an epoch, then hand the epoch on to the tracker."""
    stage.save(state, record)
    session.tracker.epoch(stage.name, state.history[-1], plan.epoch_offset + state.epoch)


def resume_in_epoch(
    session: Session, stage: Stage, state: TrainState, record: Record, epochs: int
) -> EpochKeeper:
    """Put a stage where its files left it, inside an epoch if one of its `epochs` had begun; returns who keeps them."""
    training, source = session.settings.training, stage.model.clipmodel.source
    file = EpochFile(stage.file, record)
    keeper = EpochKeeper(file, training.save_every_steps, training.save_every_minutes, session.signals)
    resume_stage(stage.file, state, session, stage.extendable, source)
    if state.epoch < epochs:  # else what had begun belongs to a longer stage
        keeper.begun = file.resume(state, session, stage.extendable, source)
    return keeper


def train_and_save(
    stage: Stage,
    state: TrainState,
    step_loss: StepLoss,
    loader: Iterable[dict],
    plan: StagePlan,
    device: torch.device,
    logger: Logger,
    record: Record | None = None,
) -> TrainState:
    """Train a stage alone in its model, and save it after every epoch."""
    with only_training(stage.model, stage.modules):
        return train_stage(
            state, step_loss, loader, plan, device, logger, lambda now: stage.save(now, record)
        )
