"""Pretrain the embedded tiny CLIP on captioned images of the procedural world.

    python -m tiny_clip.pretrain --cache ~/.cache/tiny_clip

Renders the image bank into the cache folder, then trains with the contrastive loss. Each process contrasts its own part
of the batch and gradients are averaged, so two cores meet once a step. The same command goes on after an interruption.
"""

import argparse
import json
import logging
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torch.distributed
import torch.nn.functional as F
from open_clip.model import CLIP

from files.atomic import replacing
from files.tensors import load_tensors, save_tensors
from tiny_clip.caption_bank import BankPlan, open_bank
from tiny_clip.caption_batches import CaptionBatches
from tiny_clip.towers import encode_image, encode_text

ROOT = Path(__file__).resolve().parent.parent
NAME = "ViT-Tiny-8-demo"
CONFIG = ROOT / f"model/model_configs/{NAME}.json"
WEIGHTS = ROOT / f"model/weights/{NAME}.safetensors"
WARM_UP_STEPS = 100
DECAY_SHARE = (
    0.4  # the learning rate is constant before, and falls linearly to zero over this last part of the run
)
logger = logging.getLogger("pretrain")


@dataclass(frozen=True)
class Stage:
    """A part of the run: share of all steps, image sizes in pixels (in turn), patches kept, images per process."""

    share: float
    image_sizes: tuple
    kept_patches: int | None
    batch: int


# Cheap steps first; then around the size the demo runs at, in the end with every patch.
STAGES = (
    Stage(0.47, (64,), 40, 96),
    Stage(0.46, (128, 112, 128, 144), 100, 64),
    Stage(0.07, (128,), None, 48),
)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; paths default to the files the project ships."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", required=True, help="folder of the image bank, the checkpoint and the log")
    parser.add_argument("--config", default=CONFIG, help="open_clip model config")
    parser.add_argument("--output", default=WEIGHTS, help="fp16 weights to write")
    parser.add_argument(
        "--steps", type=int, default=1500, help="may differ on resume: the rest is rescheduled"
    )
    parser.add_argument("--images", type=int, default=32768, help="images in the bank")
    parser.add_argument("--bank_size", type=int, default=144, help="pixels of a bank image's side")
    parser.add_argument("--captions", type=int, default=4, help="captions per image")
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count(), help="training processes, one thread each"
    )
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--weight_decay", type=float, default=0.05)
    parser.add_argument(
        "--precision", choices=("auto", "bf16", "fp32"), default="auto", help="auto: bf16 if faster"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log_every", type=int, default=20, help="steps between log lines")
    parser.add_argument(
        "--save_every", type=int, default=40, help="steps between checkpoints and weight exports"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Render, train, export; returns nothing, writes --output and the cache folder."""
    options = parse_arguments(argv)
    Path(options.cache).mkdir(parents=True, exist_ok=True)
    _log_to(options.cache)
    plan = BankPlan(options.images, options.bank_size, options.captions, options.seed)
    open_bank(Path(options.cache) / "bank", plan, options.processes, logger.info)
    if options.precision == "auto":
        options.precision = faster_precision(model_config(options)["vision_cfg"]["width"])
    if options.processes == 1:
        train(0, options, plan, None)
        return
    # Read by the children's C library at start: keep freed memory instead of returning it, about 10 % of a step.
    os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184")
    with tempfile.TemporaryDirectory() as folder:
        arguments = (options, plan, f"file://{folder}/rendezvous")
        torch.multiprocessing.spawn(train, arguments, nprocs=options.processes)


def model_config(options: argparse.Namespace) -> dict:
    """The open_clip model config that --config names."""
    return json.loads(Path(options.config).read_text())


def faster_precision(width: int) -> str:
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
    if rendezvous:
        _log_to(options.cache, logging.INFO if rank == 0 else logging.WARNING)
        torch.distributed.init_process_group(
            "gloo", init_method=rendezvous, rank=rank, world_size=options.processes
        )
    batches = CaptionBatches(open_bank(Path(options.cache) / "bank", plan, 1), options.seed)
    model, full_embedding = build_model(options, batches.token_ids)
    optimizers = build_optimizers(model, options)
    path, step, last = Path(options.cache) / "checkpoint.pth", 0, {}
    if path.exists():
        step = restore(load_tensors(path, ("step", "model", "optimizers", "run")), model, optimizers, options)
    for step in range(step, options.steps):  # noqa: B020 (goes on from the restored step)
        start, stage = time.perf_counter(), stage_at(step, options.steps)
        set_learning_rate(optimizers, options.lr * schedule(step, options.steps))
        image_size = stage.image_sizes[step // 2 % len(stage.image_sizes)]
        batch = batches.draw(step, rank, image_size, stage.batch)
        with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bf16"):
            image = encode_image(model.visual, batch.images, stage.kept_patches, batch.generator)
            text = encode_text(model, batch.tokens)
        loss, hits = contrastive_loss(image.float(), text.float(), model.logit_scale.exp(), batch.also_true)
        if not torch.isfinite(loss):
            raise RuntimeError(
                f"loss {loss.item()} at step {step}: lower --lr; the last checkpoint is unharmed"
            )
        last["short" if step % 2 else "full"] = f"loss {loss.item():.3f} hits {hits:.3f}"
        loss.backward()
        average_gradients(model, options.processes)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            model.logit_scale.clamp_(max=np.log(100))
        step += 1
        if rank == 0 and step % options.log_every == 0:
            terms = " ".join(f"{kind} {text}" for kind, text in last.items())
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


def build_model(options: argparse.Namespace, token_ids: torch.Tensor) -> tuple[CLIP, torch.Tensor]:
    """(open_clip CLIP whose embedding holds only the captions' tokens, full embedding [vocabulary, W] for the export).

    The words that no caption uses keep their initial values; leaving them out saves the optimiser most of its work.
    """
    torch.manual_seed(options.seed)
    model = CLIP(**model_config(options))
    full = model.token_embedding.weight.detach().clone()
    model.token_embedding = torch.nn.Embedding.from_pretrained(full[token_ids].clone(), freeze=False)
    return model, full


def build_optimizers(
    model: CLIP, options: argparse.Namespace
) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """Muon for the blocks' weight matrices (in short runs it needs fewer samples), AdamW for everything else."""
    blocks = [*model.visual.transformer.resblocks, *model.transformer.resblocks]
    matrices = [parameter for block in blocks for parameter in block.parameters() if parameter.ndim == 2]
    taken = {id(parameter) for parameter in matrices}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in taken]
    decayed = [parameter for parameter in rest if parameter.ndim > 1]
    kept = [parameter for parameter in rest if parameter.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": options.weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    return (
        torch.optim.Muon(
            matrices, lr=options.lr, weight_decay=options.weight_decay, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(groups, lr=options.lr, betas=(0.9, 0.98), foreach=True),
    )


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
    logger.info(f"continuing at step {checkpoint['step']}")
    return checkpoint["step"]


def stage_at(step: int, steps: int) -> Stage:
    """The stage of a step, by the shares."""
    end = 0.0
    for stage in STAGES:
        end += stage.share
        if step < round(end * steps):
            return stage
    return STAGES[-1]


def schedule(step: int, steps: int) -> float:
    """Factor of the learning rate: linear warm-up, constant, linear decay to zero."""
    warm_up = min(WARM_UP_STEPS, steps // 10 + 1)
    return min((step + 1) / warm_up, 1.0, (steps - step) / (DECAY_SHARE * steps))


def set_learning_rate(optimizers: Sequence[torch.optim.Optimizer], rate: float) -> None:
    """Give every parameter group of every optimiser this rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate


def contrastive_loss(
    image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor | float, also_true: torch.Tensor
) -> tuple[torch.Tensor, float]:
    """InfoNCE in both directions, without the negatives that are none.

    Args:
        image, text: [B, E], pair i in row i; not normalised.
        scale: inverse temperature.
        also_true: [B, B] bool, whether caption j is true of image i as well (i ≠ j); such pairs are left out.

    Returns:
        (loss, share of images whose own caption scores highest).
    """
    logits = scale * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
    logits = logits.masked_fill(also_true, float("-inf"))
    own = torch.arange(len(logits))
    loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    return loss, (logits.argmax(dim=1) == own).float().mean().item()


def average_gradients(model: torch.nn.Module, processes: int) -> None:
    """Replace every gradient by its mean over the processes: one all-reduce of one flat vector."""
    if processes == 1:
        return
    gradients = [parameter.grad for parameter in model.parameters()]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    torch.distributed.all_reduce(flat)
    flat /= processes
    parts = flat.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def export(model: CLIP, full_embedding: torch.Tensor, token_ids: torch.Tensor, path: Path | str) -> None:
    """Write open_clip's state dict in fp16, the trained token rows put back into the full table; atomic.

    Image positions stay fp32: torch on a CPU cannot resize fp16, and open_clip resizes them as they come from the file.
    """
    state = {key: value.detach().half().contiguous() for key, value in model.state_dict().items()}
    table = full_embedding.clone()
    table[token_ids] = model.token_embedding.weight.detach()
    state["token_embedding.weight"] = table.half()
    state["visual.positional_embedding"] = model.visual.positional_embedding.detach().clone()
    with replacing(path) as file:
        file.write(safetensors.torch.save(state))


def _log_to(folder, level=logging.INFO):
    logger.setLevel(level)
    logger.propagate = False
    logger.handlers = [logging.StreamHandler(), logging.FileHandler(Path(folder) / "pretrain.log")]
    for handler in logger.handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))


if __name__ == "__main__":
    main()
