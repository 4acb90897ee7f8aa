"""Pretraining the tiny CLIP once the flags are read: the precision, the training loop of a process, its steps.

`train_step` has a backward pass of its own beside the detector's (`training/engine.py`): it averages gradients over
processes and steps two optimisers, and this room uses nothing of the detector's.
"""

import argparse
import logging
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed
from open_clip.model import CLIP

from files.command import Refusal
from files.logs import open_logger
from files.tensors import load_tensors, save_tensors
from tiny_clip.caption_bank import BankPlan, open_bank
from tiny_clip.caption_batches import Batch, CaptionBatches
from tiny_clip.compact_model import build_model, export
from tiny_clip.optimisation import average_gradients, build_optimizers, contrastive_loss
from tiny_clip.schedule import schedule, set_learning_rate, stage_at
from tiny_clip.towers import encode_image, encode_text

LOG = "pretrain.log"


def log_of(options: argparse.Namespace, level: int = logging.INFO) -> logging.Logger:
    """The process's logger, on the console and in the cache folder."""
    return open_logger("pretrain", Path(options.cache) / LOG, level)


def faster_precision(width: int, logger: logging.Logger) -> str:
    """'bf16' where the products of an MLP of this width are clearly faster in it on one thread here, else 'fp32'."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        tokens, weight = torch.ones(4096, width, dtype=dtype), torch.ones(width, 4 * width, dtype=dtype)
        tokens @ weight
        start = time.perf_counter()
        for _ in range(10):
            tokens @ weight
        seconds[name] = time.perf_counter() - start
    torch.set_num_threads(threads)
    choice = "bf16" if seconds["bf16"] < 0.7 * seconds["fp32"] else "fp32"
    logger.info(
        f"precision {choice}: bf16 matrix products take {seconds['bf16'] / seconds['fp32']:.2f} of fp32's time"
    )
    return choice


def train(rank: int, options: argparse.Namespace, plan: BankPlan, rendezvous: str | None) -> None:
    """The training loop of one process; only rank 0 writes. `rendezvous` is a torch.distributed init method or None."""
    torch.set_num_threads(1)
    logger = log_of(options, logging.INFO if rank == 0 else logging.WARNING)
    if rendezvous:
        torch.distributed.init_process_group(
            "gloo", init_method=rendezvous, rank=rank, world_size=options.processes
        )
    batches = CaptionBatches(open_bank(Path(options.cache) / "bank", plan, 1), options.seed)
    model, full_embedding = build_model(options.config, options.seed, batches.token_ids)
    optimizers = build_optimizers(model, options.lr, options.weight_decay)
    path, step, last = Path(options.cache) / "checkpoint.pth", 0, {}
    if path.exists():
        checkpoint = load_tensors(path, ("step", "model", "optimizers", "run"))
        step = restore(checkpoint, model, optimizers, options)
        logger.info(f"continuing at step {step}")
    for step in range(step, options.steps):  # noqa: B020 (goes on from the restored step)
        start, stage = time.perf_counter(), stage_at(step, options.steps)
        set_learning_rate(optimizers, options.lr * schedule(step, options.steps))
        image_size = stage.image_sizes[step // 2 % len(stage.image_sizes)]
        batch = batches.draw(step, rank, image_size, stage.batch)
        loss, hits = train_step(model, optimizers, batch, stage.kept_patches, step, options)
        last["short" if step % 2 else "full"] = f"loss {loss:.3f} hits {hits:.3f}"
        step += 1
        if rank == 0 and step % options.log_every == 0:
            terms = " ".join(f"{captions} {figures}" for captions, figures in last.items())
            logger.info(
                f"step {step}/{options.steps} {image_size} px {terms} "
                f"scale {model.logit_scale.exp().item():.1f} {time.perf_counter() - start:.2f} s/step"
            )
        if rank == 0 and (step % options.save_every == 0 or step == options.steps):
            save_tensors(
                path,
                {
                    "step": step,
                    "model": model.state_dict(),
                    "run": run_identity(options),
                    "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                },
            )
            export(model, full_embedding, batches.token_ids, options.output)
    if rendezvous:
        torch.distributed.destroy_process_group()


def train_step(
    model: CLIP,
    optimizers: Sequence[torch.optim.Optimizer],
    batch: Batch,
    kept_patches: int | None,
    step: int,
    options: argparse.Namespace,
) -> tuple[float, float]:
    """One step of both optimisers on a batch: (loss, share of images whose own caption scores highest).

    Raises:
        RuntimeError: the loss is not finite; nothing was stepped.
    """
    with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bf16"):
        image = encode_image(model.visual, batch.images, kept_patches, batch.generator)
        text = encode_text(model, batch.tokens)
    loss, hits = contrastive_loss(image.float(), text.float(), model.logit_scale.exp(), batch.also_true)
    if not torch.isfinite(loss):
        raise Refusal(f"loss {loss.item()} at step {step}: lower --lr; the last checkpoint is unharmed")
    loss.backward()
    average_gradients(model, options.processes)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    with torch.no_grad():
        model.logit_scale.clamp_(max=np.log(100))
    return loss.item(), hits


def run_identity(options: argparse.Namespace) -> dict[str, int | float | str]:
    """What must agree for a checkpoint to be continued, as plain values."""
    names = ("images", "bank_size", "captions", "processes", "lr", "weight_decay", "precision", "seed")
    return {name: getattr(options, name) for name in names}


def restore(
    checkpoint: dict, model: CLIP, optimizers: Sequence[torch.optim.Optimizer], options: argparse.Namespace
) -> int:
    """Load a checkpoint and return its step. Raises ValueError when it belongs to a run with other settings."""
    if checkpoint["run"] != run_identity(options):
        raise ValueError(
            f"{options.cache} holds a run with {checkpoint['run']}, asked for {run_identity(options)}: "
            "give the same flags to continue it, or another --cache"
        )
    model.load_state_dict(checkpoint["model"])
    for optimizer, state in zip(optimizers, checkpoint["optimizers"], strict=True):
        optimizer.load_state_dict(state)
    return checkpoint["step"]
