"""The one training loop: a step, an epoch, a stage. The only backward pass that trains the detector is `train_step`."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from logging import Logger
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from run_folder.state import TrainState
from training.finite_steps import FiniteSteps
from utils import on_terminal

StepLoss = Callable[[dict], dict[str, Tensor]]  # batch on the device -> {term: scalar}


@dataclass(frozen=True)
class StagePlan:
    """How long a stage trains and what is watched on the way.

    `epochs`: in total. `epoch_offset`: epochs the data has been through before this stage; order and augmentation go on
    from there. `clip_norm`: largest norm of the gradient over all trained parameters, or None. `log_gradient_norms_of`:
    {key: module} whose mean gradient norm (before clipping) is logged every epoch. `should_stop`: function (history) ->
    bool, asked before every epoch; True ends the stage. `log_every`: steps between two reads of the loss on a device
    that has to be waited for; on a CPU every step is looked at.
    """

    epochs: int
    epoch_offset: int = 0
    clip_norm: float | None = None
    log_gradient_norms_of: dict[str, nn.Module] = field(default_factory=dict)
    should_stop: Callable[[list], bool] | None = None
    log_every: int = 50


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
        FloatingPointError: a loss or its gradient is not finite; nothing was stepped on it, the error names the files.
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
        "seconds", "gradients" {key: mean norm}, and with watched modules "gradient_norm" (mean over all of them)}.
    """
    begin, losses, sums = time.perf_counter(), [], {}
    norms = {key: [] for key in plan.log_gradient_norms_of}
    steps = FiniteSteps(state, steps_per_look(plan, device))
    progress = tqdm(loader, desc=f"{state.name} epoch {state.epoch}", leave=False, disable=not on_terminal())
    for batch in progress:
        terms, step_norms = train_step(steps, step_loss, to_device(batch, device), plan)
        losses.append(sum(terms.values()))
        for term, value in terms.items():
            sums[term] = sums.get(term, 0.0) + value
        for key, norm in step_norms.items():
            norms[key].append(norm)
        if not progress.disable and len(losses) % plan.log_every == 0:
            progress.set_postfix(loss=float(torch.stack(losses[-plan.log_every :]).mean()))
    steps.look()
    if not losses:
        raise ValueError(
            f"stage {state.name!r}: the loader gave no batch; the dataset is empty or smaller than a batch"
        )
    entry = {
        "epoch": state.epoch,
        "loss": float(torch.stack(losses).mean()),
        "terms": {term: float(total) / len(losses) for term, total in sums.items()},
        "lr": state.optimizer.param_groups[0]["lr"],
        "seconds": round(time.perf_counter() - begin, 2),
        "gradients": {key: float(torch.stack(values).mean()) for key, values in norms.items()},
    }
    return entry | ({"gradient_norm": mean_total_norm(norms)} if norms else {})


def train_step(
    steps: FiniteSteps, step_loss: StepLoss, batch: dict, plan: StagePlan
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """One optimiser step on a batch that is on the device; only a look that is due waits for a CUDA device.

    Returns:
        ({term: detached loss}, {key: gradient norm of a watched module}).

    Raises:
        FloatingPointError: a loss or its gradient is not finite; nothing was stepped on it.
    """
    state, terms = steps.state, step_loss(batch)
    state.optimizer.zero_grad(set_to_none=True)
    sum(terms.values()).backward()
    norms = {key: gradient_norm(module) for key, module in plan.log_gradient_norms_of.items()}
    trained = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
    norm = torch.nn.utils.get_total_norm([one.grad for one in trained if one.grad is not None])
    if plan.clip_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(trained, plan.clip_norm, norm)
    terms = {term: value.detach() for term, value in terms.items()}
    steps.take(terms, norm, batch)
    if state.scheduler is not None:
        state.scheduler.step()
    return terms, norms


def steps_per_look(plan: StagePlan, device: torch.device | str) -> int:
    """Steps between two looks at the losses: to look at a CPU's costs nothing."""
    return 1 if torch.device(device).type == "cpu" else plan.log_every


def log_epoch(entry: dict[str, Any], state: TrainState, plan: StagePlan, logger: Logger) -> None:
    """The epoch's lines: AA-CLIP's mean loss, then terms, rate and seconds, then the watched gradient norms."""
    head = f"stage {state.name} epoch {state.epoch + 1}/{plan.epochs}"
    logger.info(f"loss: {entry['loss']}")
    parts = ", ".join(f"{term} {value:.4f}" for term, value in entry["terms"].items())
    logger.info(f"{head}: {parts}, lr {entry['lr']:.3g}, {entry['seconds']:.1f} s")
    if entry["gradients"]:
        shown = ", ".join(f"{key} {value:.3e}" for key, value in entry["gradients"].items())
        logger.info(f"{head}: mean gradient norm: {shown}")
        logger.info(f"Average Grad Norm: {entry['gradient_norm']:.6f}")


def to_device(batch: dict, device: torch.device) -> dict:
    """A batch with its tensors on the device, masks as float and labels as int64."""
    if "mask_known" in batch:
        batch = batch | {"mask_known": batch["mask_known"].to(device, non_blocking=True)}
    return batch | {
        "image": batch["image"].to(device, non_blocking=True),
        # First there, then another type: a conversion here would leave pinned memory, and the copy would wait.
        "mask": batch["mask"].to(device, non_blocking=True).to(torch.float32),
        "label": batch["label"].to(device, non_blocking=True).to(torch.int64),
    }


def announce_epoch(loader: Iterable[dict], epoch: int) -> None:
    """Tell the dataset and the sampler of a loader which epoch begins; other iterables need not know."""
    for part in (getattr(loader, "dataset", None), getattr(loader, "sampler", None)):
        if hasattr(part, "set_epoch"):
            part.set_epoch(epoch)


def mean_total_norm(norms: dict[str, list[Tensor]]) -> float:
    """Mean over the steps of the gradient's norm over all modules, from {key: norm of every step}."""
    by_module = torch.stack([torch.stack(values) for values in norms.values()])  # [modules, steps]
    return float(by_module.norm(dim=0).mean())


def gradient_norm(module: nn.Module) -> Tensor:
    """Norm of the gradient over a module's parameters, as a scalar tensor; 0 where there is none."""
    norms = [parameter.grad.norm() for parameter in module.parameters() if parameter.grad is not None]
    return torch.stack(norms).norm() if norms else torch.zeros((), device=next(module.parameters()).device)
