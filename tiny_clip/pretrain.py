"""Pretrain the embedded tiny CLIP on captioned images of the procedural world.

    python -m tiny_clip.pretrain --cache ~/.cache/tiny_clip

Renders the image bank into the cache folder, then trains with the contrastive loss. Each process contrasts its own part
of the batch and gradients are averaged, so two cores meet once a step. The same command goes on after an interruption.
"""

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from files.command import run_main

ROOT = Path(__file__).resolve().parent.parent
NAME = "ViT-Tiny-8-demo"
CONFIG = ROOT / f"model/model_configs/{NAME}.json"
WEIGHTS = ROOT / f"model/weights/{NAME}.safetensors"


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; paths default to the files the project ships."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
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
    parser.add_argument(
        "--lr", type=float, default=1e-3, help="the largest learning rate, of both optimisers"
    )
    parser.add_argument("--weight_decay", type=float, default=0.05, help="of weights with two or more axes")
    parser.add_argument(
        "--precision", choices=("auto", "bf16", "fp32"), default="auto", help="auto: bf16 if faster"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the bank, the new weights and the order")
    parser.add_argument("--log_every", type=int, default=20, help="steps between log lines")
    parser.add_argument(
        "--save_every", type=int, default=40, help="steps between checkpoints and weight exports"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Render, train, export; returns nothing, writes --output and the cache folder."""
    options = parse_arguments(argv)
    from tiny_clip.caption_bank import BankPlan, open_bank  # seconds, which --help does not wait for
    from tiny_clip.compact_model import model_config
    from tiny_clip.pretraining import faster_precision, log_of, train

    Path(options.cache).mkdir(parents=True, exist_ok=True)
    logger = log_of(options)
    plan = BankPlan(options.images, options.bank_size, options.captions, options.seed)
    open_bank(Path(options.cache) / "bank", plan, options.processes, logger.info)
    if options.precision == "auto":
        options.precision = faster_precision(model_config(options.config)["vision_cfg"]["width"], logger)
    if options.processes == 1:
        train(0, options, plan, None)
        return
    # Read by the children's C library at start: keep freed memory instead of returning it, about 10 % of a step.
    os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184")
    with tempfile.TemporaryDirectory() as folder:
        arguments = (options, plan, f"file://{folder}/rendezvous")
        torch.multiprocessing.spawn(train, arguments, nprocs=options.processes)


if __name__ == "__main__":
    run_main(main)
