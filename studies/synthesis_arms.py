"""The study of synthetic anomalies, arm by arm: what makes its extra images, and training on them with equal work."""

import math
import shutil
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

from dataset import get_dataset
from run_folder.flags import parse
from run_folder.settings import BASELINE_GROUPS
from studies.arm_runs import MODEL, ROOT, run_arm

TRAIN_SET, TEST_SET = "DemoA", "DemoB"
SIZE = 192  # pixels of the rendered images
FILL_MODEL = ["--model", "small"]
FILL_TRAINING = [
    "--train_backbone",
    "--batch_size",
    "4",
    "--lr",
    "2e-3",
    "--lr_schedule",
    "cosine",
    "--fill_share",
    "0.5",
]
ARMS = {  # arm: flags of generate_anomalies.py, None for no extra images
    "real": None,
    "perlin": ["--method", "perlin", "--masks", "perlin"],
    "generated": ["--method", "fill", "--masks", "real"],
    "sham": ["--method", "fill", "--masks", "real", "--sham_ratio", "0.5"],
}
SPARE = 1.25  # images generated per image used, for those the gate refuses
# What all runs of one table share.
COMMON = ("ratio", "text_steps", "image_steps", "fill_steps", "fill_size", "precision")


def settings_of(args: Namespace) -> dict[str, float | int | str]:
    """What all runs of one table have in common."""
    return {key: getattr(args, key) for key in COMMON}


def python(*command: str) -> str:
    """Run a script or module of the project; its own log tells what it does. Returns the command as typed."""
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return " ".join(["python", *command])


def epochs(steps: int, images: int, batch_size: int, flag: str) -> int:
    """Epochs that make `steps` updates over `images` images.

    Raises:
        ValueError: no whole number does.
    """
    per_epoch = math.ceil(images / batch_size)
    if steps % per_epoch:
        raise ValueError(
            f"{flag} {steps}: {images} images in batches of {batch_size} make {per_epoch} updates an epoch; give a "
            f"multiple of {per_epoch}, so that all arms see equally many"
        )
    return steps // per_epoch


def training_flags(args: Namespace, shot: int, shot_images: int, extra: int, rows: Path | None) -> list[str]:
    """train.py's flags of one run: the same updates whatever the number of images.

    Args:
        shot_images, extra: images that are the k shots, and images beside them.
        rows: jsonl of the extra images, or None.
    """
    defaults = parse("train.py", BASELINE_GROUPS, ["--model_name", MODEL]).training
    sizes = {"text": defaults.text_batch_size, "image": defaults.image_batch_size}
    flags = ["--training_mode", "few_shot", "--shot", str(shot), "--precision", args.precision]
    for stage, steps in (("text", args.text_steps), ("image", args.image_steps)):
        flags += [
            f"--{stage}_epoch",
            str(epochs(steps, shot_images + extra, sizes[stage], f"--{stage}_steps")),
        ]
    return flags + (["--extra_meta", str(rows), "--extra_ratio", str(args.ratio)] if rows else [])


def trained_fill(args: Namespace, shot: int, seed: int, data: Path, work: Path) -> tuple[Path, list[str]]:
    """Semantic fill on the shots' triptychs, continued if it was begun; (folder, commands)."""
    triptychs, fill = work / f"triptychs_{shot}shot_seed{seed}", work / f"fill_{shot}shot_seed{seed}"
    shutil.rmtree(triptychs, ignore_errors=True)  # made in seconds, and always the same
    return fill, [
        python(
            "make_triptychs.py",
            "--dataset",
            TRAIN_SET,
            "--data_root",
            str(data),
            "--shot",
            str(shot),
            "--size",
            str(args.fill_size),
            "--seed",
            str(seed),
            "--out",
            str(triptychs),
        ),
        python(
            "train_semantic_fill.py",
            "--data",
            str(triptychs),
            "--size",
            str(args.fill_size),
            "--seed",
            str(seed),
            "--steps",
            str(args.fill_steps),
            "--out",
            str(fill),
            *FILL_MODEL,
            *FILL_TRAINING,
        ),
    ]


def extra_images(
    args: Namespace, arm: str, shot: int, seed: int, per_class: int, data: Path, work: Path
) -> tuple[Path, list[str]]:
    """Make an arm's extra images, continued if begun; (jsonl, commands)."""
    out, flags, commands = work / f"{arm}_images_{shot}shot_seed{seed}", list(ARMS[arm]), []
    if "fill" in flags:
        fill, commands = trained_fill(args, shot, seed, data, work)
        flags += ["--checkpoint", str(fill), "--size", str(args.fill_size), *FILL_MODEL]
    commands.append(
        python(
            "generate_anomalies.py",
            "--dataset",
            TRAIN_SET,
            "--data_root",
            str(data),
            "--shot",
            str(shot),
            "--seed",
            str(seed),
            "--count",
            str(math.ceil(SPARE * per_class)),
            "--out",
            str(out),
            *flags,
        )
    )
    return out / "full-shot.jsonl", commands


def run(args: Namespace, arm: str, shot: int, seed: int, data: Path, work: Path) -> dict:
    """One run of the study: its extra images, its training, its test; the result to be kept."""
    samples = get_dataset(TRAIN_SET, SIZE, "few_shot", shot, "train", data_root=data, seed=seed)[0].samples
    shot_images, extra, rows, commands = len(samples), 0, None, []
    begin = time.perf_counter()
    if ARMS[arm] is not None:
        extra = round(shot_images * args.ratio / (1 - args.ratio))
        per_class = math.ceil(extra / len({sample.class_name for sample in samples}))
        rows, commands = extra_images(args, arm, shot, seed, per_class, data, work)
    generation = round(time.perf_counter() - begin, 1)
    folder = work / f"{arm}_{shot}shot_seed{seed}"
    flags = training_flags(args, shot, shot_images, extra, rows)
    result = run_arm("train.py", flags, seed, TRAIN_SET, [TEST_SET], data, folder)
    shutil.rmtree(folder)  # a checkpoint per epoch
    return {
        "arm": arm,
        "shot": shot,
        "seed": seed,
        "settings": settings_of(args),
        "images": {"own": shot_images, "extra": extra},
        "generation_seconds": generation,
        **result,
        "commands": commands + result["commands"],
    }
