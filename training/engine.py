"""The one training loop: a step, an epoch, a stage. The only backward pass that trains the detector is `train_step`."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from logging import Logger
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from run_folder.processes import current
from run_folder.state import TrainState
from training.epoch import EpochKeeper, EpochSums, batches_from
from training.epoch import mean_total_norm as mean_total_norm
from training.finite_steps import FiniteSteps, LeftOut
from training.watch import Watch, watch_line
from utils import on_terminal

StepLoss = Callable[[dict], dict[str, Tensor]]  # batch on the device -> {term: scalar}


@dataclass(frozen=True)
class StagePlan:
    """How long a stage trains and what is watched on the way.

    `epochs`: in total. `epoch_offset`: epochs the data has been through before this stage; order and augmentation go on
    from there. `clip_norm`: largest norm of the gradient over all trained parameters, or None. `log_gradient_norms_of`:
    {key: module} whose mean gradient norm (before clipping) is logged every epoch. `should_stop`: function (history) ->
    bool, asked before every epoch; True ends the stage. `log_every`: steps between two reads of the loss on a device
    that has to be waited for; on a CPU every step is looked at. `left_out`: what steps that are not finite may be left
    out; None: a first one ends the stage. `watch`: of `--watch`, what it sees is logged every epoch; None without.
    """

    epochs: int
    epoch_offset: int = 0
    clip_norm: float | None = None
    log_gradient_norms_of: dict[str, nn.Module] = field(default_factory=dict)
    should_stop: Callable[[list], bool] | None = None
    log_every: int = 50
    left_out: LeftOut | None = None
    watch: Watch | None = None


class Step(NamedTuple):
    """What a step was, all of it on the device.

    `terms`: {term: detached scalar of the loss}. `norms`: {key: scalar gradient norm of a watched module}. `taken`:
    whether the optimiser stepped, a boolean scalar. `overflowed`: whether a gradient scaler alone kept it
    from that; None without one.
    """

    terms: dict[str, Tensor]
    norms: dict[str, Tensor]
    taken: Tensor
    overflowed: Tensor | None


def train_stage(
    state: TrainState,
    step_loss: StepLoss,
    loader: Iterable[dict],
    plan: StagePlan,
    device: torch.device,
    logger: Logger,
    save: Callable[[TrainState], None],
    keeper: EpochKeeper | None = None,
) -> TrainState:
    """Train one stage from where its state is to the plan's end.

    Args:
        loader: iterable of batches, run once per epoch.
        save: called after every epoch.
        keeper: saves inside an epoch, and stops the stage if a signal asks to; None: neither.

    Raises:
        ValueError: the loader is empty, or more epochs are done than wanted.
        FloatingPointError: a loss or its gradient is not finite; nothing was stepped on it, the error names the files.
        Stopped: a signal asked to stop, and what was done is saved.
    """
    name = state.name
    if state.epoch > plan.epochs:
        raise ValueError(
            f"stage {name!r}: {state.epoch} epochs are done, --{name}_epoch asks for {plan.epochs}: a run cannot be "
            "shortened; evaluate a numbered checkpoint, or start a new run with another --save_path"
        )
    while state.epoch < plan.epochs:
        if current().tell(plan.should_stop is not None and plan.should_stop(state.history)):
            logger.info(
                f"stage {name}: the loss has reached a plateau, stopped before epoch {state.epoch + 1}/{plan.epochs}"
            )
            break
        logger.info(f"training {name} epoch {state.epoch}:")
        announce_epoch(loader, plan.epoch_offset + state.epoch)
        with nullcontext() if plan.watch is None else plan.watch.looking():
            entry = train_one_epoch(state, step_loss, loader, plan, device, keeper)
        log_epoch(entry, state, plan, logger)
        state.history.append(entry)
        state.epoch += 1
        save(state)
        if keeper is not None:
            keeper.after_epoch(state)
    return state


def train_one_epoch(
    state: TrainState,
    step_loss: StepLoss,
    loader: Iterable[dict],
    plan: StagePlan,
    device: torch.device,
    keeper: EpochKeeper | None = None,
) -> dict[str, Any]:
    """One pass over the loader, or what is left of one that `keeper` goes on with.

    Returns:
        the epoch's entry of the history: {"epoch" (from 0), "loss", "terms" {term: mean}, "lr" (after the epoch),
        "seconds", "gradients" {key: mean norm}, and with watched modules "gradient_norm" (mean over all of them)}, and
        "steps_left_out" where `--on_nan skip` left some out of the means, "steps_overflowed" where `--precision fp16`
        did not take some because their loss was scaled too much, "watch" with `--watch`: of Watch.entry.
    """
    sums, can_leave_out = EpochSums(plan.log_gradient_norms_of, plan.watch), plan.left_out is not None
    random_states = keeper.begin(sums, device) if keeper is not None else None
    if can_leave_out:
        plan.left_out.more = max(0, plan.left_out.more - sums.left_out)
    steps = FiniteSteps(state, steps_per_look(plan, device), plan.left_out)
    batches = batches_from(loader, sums.steps, random_states)
    current().share_generators()
    progress = tqdm(
        batches,
        desc=f"{state.name} epoch {state.epoch}",
        total=len(loader) if hasattr(loader, "__len__") else None,
        initial=sums.steps,
        leave=False,
        disable=not on_terminal(),
    )
    for batch in progress:
        terms, norms, taken, overflowed = train_step(steps, step_loss, to_device(batch, device), plan)
        sums.add(terms, norms, taken if can_leave_out else None, overflowed)
        if not progress.disable and sums.steps % plan.log_every == 0:
            progress.set_postfix(loss=float(torch.stack(sums.losses[-plan.log_every :]).mean()))
        if keeper is not None:
            keeper.after_step(state, sums, steps)
    steps.look()
    if not sums.steps:
        raise ValueError(
            f"stage {state.name!r}: the loader gave no batch; the dataset is empty or smaller than a batch"
        )
    return sums.entry(state)


def train_step(steps: FiniteSteps, step_loss: StepLoss, batch: dict, plan: StagePlan) -> Step:
    """One optimiser step on a batch that is on the device; only a look that is due waits for a CUDA device.

    With a gradient scaler (`state.scaler`) the gradient is that of the scaled loss, divided by the scale at once.

    Raises:
        FloatingPointError: a loss or its gradient is not finite; nothing was stepped on it.
    """
    state, terms = steps.state, step_loss(batch)
    state.optimizer.zero_grad(set_to_none=True)
    loss, scaler, scale = sum(terms.values()), state.scaler, None
    if scaler is not None:
        loss, scale = scaler.scale(loss), scaler.scale(torch.ones_like(loss))
    loss.backward()
    if scaler is not None:
        scaler.unscale_(state.optimizer)
    norms = {key: gradient_norm(module) for key, module in plan.log_gradient_norms_of.items()}
    trained = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
    norm = torch.nn.utils.get_total_norm([one.grad for one in trained if one.grad is not None])
    if plan.clip_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(trained, plan.clip_norm, norm)
    terms = {term: value.detach() for term, value in terms.items()}
    taken, overflowed = steps.take(terms, norm, batch, scale)
    if scaler is not None:
        scaler.update()
    if state.scheduler is not None:
        state.scheduler.step()
    return Step(terms, norms, taken, overflowed)


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
    if "watch" in entry:
        logger.info(f"{head}: {watch_line(entry['watch'])}")
    if "steps_overflowed" in entry:
        scale = state.scaler.get_scale()
        logger.info(f"{head}: {entry['steps_overflowed']} steps not taken, the loss scale is now {scale:g}")


def to_device(batch: dict, device: torch.device) -> dict:
    """A batch with its tensors on the device: image [B, 3, H, W], mask [B, 1, H, W] float32, label [B] int64."""
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


def gradient_norm(module: nn.Module) -> Tensor:
    """Norm of the gradient over a module's parameters, as a scalar tensor; 0 where there is none."""
    norms = [parameter.grad.norm() for parameter in module.parameters() if parameter.grad is not None]
    return torch.stack(norms).norm() if norms else torch.zeros((), device=next(module.parameters()).device)
