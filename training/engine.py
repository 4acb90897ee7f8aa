"""The one training loop: a step, an epoch, a stage. The only backward pass that trains the detector is `train_step`."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from logging import Logger
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from run_folder.state import TrainState
from utils import on_terminal

StepLoss = Callable[[dict], dict[str, Tensor]]  # batch on the device -> {term: scalar}


@dataclass(frozen=True)
class StagePlan:
    """How long a stage trains and what is watched on the way.

    `epochs`: in total. `epoch_offset`: epochs the data has been through before this stage; order and augmentation go on
    from there. `clip_norm`: largest norm of the gradient over all trained parameters, or None. `log_gradient_norms_of`:
    {key: module} whose mean gradient norm (before clipping) is logged every epoch. `should_stop`: function (history) ->
    bool, asked before every epoch; True ends the stage.
    """

    epochs: int
    epoch_offset: int = 0
    clip_norm: float | None = None
    log_gradient_norms_of: dict[str, nn.Module] = field(default_factory=dict)
    should_stop: Callable[[list], bool] | None = None


def train_stage(
    state: TrainState,
    step_loss: StepLoss,
    loader: Iterable[dict],
    plan: StagePlan,
    device: torch.device,
    logger: Logger,
    save: Callable[[TrainState], None],
) -> TrainState:
    """Train one stage from where its state is to the plan's end.

    Args:
        loader: iterable of batches, run once per epoch.
        save: called after every epoch.

    Raises:
        ValueError: the loader is empty, or more epochs are done than wanted.
        FloatingPointError: a loss term is not finite; nothing was stepped, the batch's files are named.
    """
    name = state.name
    if state.epoch > plan.epochs:
        raise ValueError(
            f"stage {name!r}: {state.epoch} epochs are done, --{name}_epoch asks for {plan.epochs}: a run cannot be "
            "shortened; evaluate a numbered checkpoint, or start a new run with another --save_path"
        )
    while state.epoch < plan.epochs:
        if plan.should_stop is not None and plan.should_stop(state.history):
            logger.info(
                f"stage {name}: the loss has reached a plateau, stopped before epoch {state.epoch + 1}/{plan.epochs}"
            )
            break
        logger.info(f"training {name} epoch {state.epoch}:")
        announce_epoch(loader, plan.epoch_offset + state.epoch)
        entry = train_one_epoch(state, step_loss, loader, plan, device)
        log_epoch(entry, state, plan, logger)
        state.history.append(entry)
        state.epoch += 1
        save(state)
    return state


def train_one_epoch(
    state: TrainState, step_loss: StepLoss, loader: Iterable[dict], plan: StagePlan, device: torch.device
) -> dict[str, Any]:
    """One pass over the loader.

    Returns:
        the epoch's entry of the history: {"epoch" (from 0), "loss", "terms" {term: mean}, "lr" (after the epoch),
        "seconds", "gradients" {key: mean norm}}.
    """
    begin, losses, sums = time.perf_counter(), [], {}
    norms = {key: [] for key in plan.log_gradient_norms_of}
    progress = tqdm(loader, desc=f"{state.name} epoch {state.epoch}", leave=False, disable=not on_terminal())
    for batch in progress:
        terms, step_norms = train_step(state, step_loss, to_device(batch, device), plan)
        losses.append(sum(terms.values()))
        for term, value in terms.items():
            sums[term] = sums.get(term, 0.0) + value
        for key, norm in step_norms.items():
            norms[key].append(norm)
    if not losses:
        raise ValueError(
            f"stage {state.name!r}: the loader gave no batch; the dataset is empty or smaller than a batch"
        )
    return {
        "epoch": state.epoch,
        "loss": float(torch.stack(losses).mean()),
        "terms": {term: float(total) / len(losses) for term, total in sums.items()},
        "lr": state.optimizer.param_groups[0]["lr"],
        "seconds": round(time.perf_counter() - begin, 2),
        "gradients": {key: float(torch.stack(values).mean()) for key, values in norms.items()},
    }


def train_step(
    state: TrainState, step_loss: StepLoss, batch: dict, plan: StagePlan
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """One optimiser step on a batch that is on the device.

    Returns:
        ({term: detached loss}, {key: gradient norm of a watched module}).

    Raises:
        FloatingPointError: a loss term is not finite; nothing was stepped.
    """
    terms = step_loss(batch)
    loss = sum(terms.values())
    if not math.isfinite(float(loss.detach())):
        raise FloatingPointError(non_finite_message(state, terms, batch))
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norms = {key: gradient_norm(module) for key, module in plan.log_gradient_norms_of.items()}
    if plan.clip_norm is not None:
        trained = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
        torch.nn.utils.clip_grad_norm_(trained, plan.clip_norm)
    state.optimizer.step()
    if state.scheduler is not None:
        state.scheduler.step()
    return {term: value.detach() for term, value in terms.items()}, norms


def log_epoch(entry: dict[str, Any], state: TrainState, plan: StagePlan, logger: Logger) -> None:
    """The epoch's lines: AA-CLIP's mean loss, then terms, rate and seconds, then the watched gradient norms."""
    head = f"stage {state.name} epoch {state.epoch + 1}/{plan.epochs}"
    logger.info(f"loss: {entry['loss']}")
    parts = ", ".join(f"{term} {value:.4f}" for term, value in entry["terms"].items())
    logger.info(f"{head}: {parts}, lr {entry['lr']:.3g}, {entry['seconds']:.1f} s")
    if entry["gradients"]:
        shown = ", ".join(f"{key} {value:.3e}" for key, value in entry["gradients"].items())
        logger.info(f"{head}: mean gradient norm: {shown}")


def to_device(batch: dict, device: torch.device) -> dict:
    """A batch with its tensors on the device, masks as float and labels as int64."""
    if "mask_known" in batch:
        batch = batch | {"mask_known": batch["mask_known"].to(device, non_blocking=True)}
    return batch | {
        "image": batch["image"].to(device, non_blocking=True),
        "mask": batch["mask"].to(device, torch.float32, non_blocking=True),
        "label": batch["label"].to(device, torch.int64, non_blocking=True),
    }


def announce_epoch(loader: Iterable[dict], epoch: int) -> None:
    """Tell the dataset and the sampler of a loader which epoch begins; other iterables need not know."""
    for part in (getattr(loader, "dataset", None), getattr(loader, "sampler", None)):
        if hasattr(part, "set_epoch"):
            part.set_epoch(epoch)


def gradient_norm(module: nn.Module) -> Tensor:
    """Norm of the gradient over a module's parameters, as a scalar tensor; 0 where there is none."""
    norms = [parameter.grad.norm() for parameter in module.parameters() if parameter.grad is not None]
    return torch.stack(norms).norm() if norms else torch.zeros((), device=next(module.parameters()).device)


def non_finite_message(state: TrainState, terms: dict[str, Tensor], batch: dict) -> str:
    """What a user needs to find the cause of a loss that is NaN or infinite."""
    values = ", ".join(f"{term} = {float(value.detach())}" for term, value in terms.items())
    files = ", ".join(map(str, batch.get("file_name", ["(the batch names no files)"])))
    return (
        f"stage {state.name!r}, epoch {state.epoch}: the loss is not finite ({values}) for {files}. Nothing was "
        "updated; look at these files, or lower the stage's learning rate"
    )
