"""How many images a second the loader gives, by number of workers, with and without --image_cache, and what each costs.

    python -m benchmarks.loader --out results/performance
    python -m benchmarks.loader --quick

Pictures are drawn and saved as PNG, every second one with a defect and its mask. Steps: processor milliseconds of one
image on one thread. Rates: images a second of the clock from stage 2's set, which varies colour too and so costs most,
by workers that run already, all ways in turn. What other work on the machine takes, the clock counts too. One core that
does nothing else gives 1000 / (milliseconds of a whole item); for as many cores as workers that is multiplied, and
called computed. Writes loader.json and loader.md into --out, if given, and prints the table.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import PIL
import torch
from PIL import Image
from torch.utils.data import DataLoader

from benchmarks.report import command_line, finish, machine, said, table
from dataset import BaseDataset
from dataset.anomaly_dataset import Augmentation, image_tensor
from dataset.augmentation import move_together, rotate, translate
from dataset.image_files import read_image
from dataset.jsonl import Sample
from dataset.picture_cache import PictureCache, resize_picture
from dataset.randomness import keyed_generator
from files.command import run_main
from files.digests import tensor_digest
from files.tensor_cache import TensorCache
from run_folder.groups import cores

MODULE = "benchmarks.loader"
GPU = 20.0  # images a second that a GPU is taken to train on
WANTED = 4  # workers that are to keep it busy
BATCH = 2  # AA-CLIP's of stage 2
FILES, CACHED = "from files", "with `--image_cache`"
TURN = (17.3, 33, -20)  # degrees and pixels of the geometry that is timed


def draw_pictures(folder: Path, count: int, side: int) -> list[Sample]:
    """Save pictures of soft shapes under a camera's noise, as compressible as photographs of products, and masks."""
    samples = []
    for number in range(count):
        random = np.random.default_rng(number)
        grid = random.uniform(40, 210, (12, 12, 3)).astype(np.float32)
        pixels = cv2.resize(grid, (side, side), interpolation=cv2.INTER_CUBIC)
        pixels += random.normal(0, 3, pixels.shape)
        path, mask_path = folder / f"{number:04}.png", None
        if number % 2:
            centre, axes = random.integers(side // 4, side // 2, 2).tolist(), (side // 12, side // 20)
            mask = cv2.ellipse(np.zeros((side, side), np.uint8), centre, axes, 30, 0, 360, 255, -1)
            pixels[mask > 0] *= 0.6
            mask_path = str(folder / f"{number:04}_mask.png")
            Image.fromarray(mask).save(mask_path)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
        samples.append(Sample(str(path), mask_path, number % 2, "drawn", path.name, f"picture {number}"))
    return samples


def training_set(
    samples: Sequence[Sample], img_size: int, cache: Path | None = None, stage: str = "image"
) -> BaseDataset:
    """A stage's set of some pictures; `cache` is the folder of its decoded pictures."""
    images = BaseDataset(samples, img_size, Augmentation(stage, stage == "image", 111))
    if cache is None:
        return images
    return images.read_through(PictureCache(TensorCache(cache, 100, "image_cache")))


def in_general(stacked: torch.Tensor) -> torch.Tensor:
    """Rotation and translation of [4, S, S] by torchvision's general operations, whose bits the project's have."""
    from torchvision.transforms import InterpolationMode  # seconds, which --help does not wait for
    from torchvision.transforms import functional as transform

    angle, across, down = TURN
    nearest = InterpolationMode.NEAREST
    stacked = transform.rotate(stacked, angle, nearest, fill=0)
    return transform.affine(stacked, 0, [across, down], 1.0, [0.0, 0.0], nearest, fill=0)


def in_every_colour(picture: Image.Image) -> Image.Image:
    """All three changes of colour, each of which an image meets with probability 0.7."""
    from torchvision.transforms import functional as transform

    for adjust in (transform.adjust_brightness, transform.adjust_contrast, transform.adjust_saturation):
        picture = adjust(picture, 1.2)
    return picture


def timed_steps(samples: Sequence[Sample], img_size: int, cache: Path, repeats: int) -> dict[str, float]:
    """{step: median processor milliseconds an image}; whole items at the end."""
    sample = samples[1]
    picture = read_image(sample.image_path, sample.source)
    small, image = resize_picture(picture, img_size), image_tensor(picture, img_size)
    stacked = torch.cat([image, image[:1] > 1])
    mask, moving = stacked[3:], keyed_generator("moved")
    numbers, items = iter(range(10**9)), {}
    for stage, words in (("image", ""), ("text", " of stage 1")):
        for way, folder in (("from files", None), ("with --image_cache", cache)):
            images = items[f"whole item{words}, {way}"] = training_set(samples, img_size, folder, stage)
            for number in range(len(samples) if folder else 0):
                _ = images[number]

    def next_item(images):
        return images[next(numbers) % len(images)]

    steps: dict[str, Callable] = {
        "decode": lambda: read_image(sample.image_path, sample.source),
        "resize": lambda: resize_picture(picture, img_size),
        "to a normalised tensor": lambda: image_tensor(small, img_size),
        "brightness, contrast, saturation, all three": lambda: in_every_colour(picture),
        "rotation and translation, torchvision's": lambda: in_general(stacked),
        "rotation and translation, the project's": lambda: translate(rotate(stacked, TURN[0]), *TURN[1:]),
        "geometry as it is drawn": lambda: move_together(image, mask, moving),
        "digest for --feature_cache": lambda: tensor_digest(image),
    }
    steps |= {name: partial(next_item, images) for name, images in items.items()}
    times = {name: [] for name in steps}
    for _ in range(repeats + 1):
        for name, step in steps.items():
            begin = time.process_time()
            step()
            times[name].append(time.process_time() - begin)
    return {name: round(1000 * statistics.median(own[1:]), 2) for name, own in times.items()}


def timed_rates(
    samples: Sequence[Sample], img_size: int, cache: Path, workers: Sequence[int], repeats: int
) -> dict[str, dict[int, float]]:
    """{way: {workers: median images a second of the clock}}, an epoch of every way in turn; the first warms up."""
    loaders = {
        (way, count): DataLoader(
            training_set(samples, img_size, folder), BATCH, num_workers=count, persistent_workers=count > 0
        )
        for way, folder in ((FILES, None), (CACHED, cache))
        for count in workers
    }
    found = {way: [] for way in loaders}
    for _ in range(repeats + 1):
        for way, loader in loaders.items():
            begin = time.perf_counter()
            total = sum(len(batch["image"]) for batch in loader)
            found[way].append(total / (time.perf_counter() - begin))
    return {
        way: {count: round(statistics.median(found[way, count][1:]), 1) for count in workers}
        for way in (FILES, CACHED)
    }


def verdict(result: dict) -> list[str]:
    """What the figures say of a GPU that takes GPU images a second."""
    lines = []
    for way, item in ((FILES, "whole item, from files"), (CACHED, "whole item, with --image_cache")):
        core, measured = 1000 / result["steps"][item], result["rates"][way][WANTED]
        lines.append(
            f"* {way}: {measured} images/s measured with {WANTED} workers on {result['cores']} cores, "
            f"{'enough' if measured >= GPU else 'not enough'} for {GPU:g}; a core gives {core:.1f}, so {WANTED} cores "
            f"would give {WANTED * core:.0f} (computed), {'enough' if WANTED * core >= GPU else 'not enough'}."
        )
    return lines


def markdown(result: dict) -> list[str]:
    """The table people read."""
    rates = result["rates"]
    return [
        "# Loader",
        "",
        f"{said(result)} {result['images']} PNG of {result['side']}², {result['megabytes']} MB each, at "
        f"{result['img_size']} px; the machine's load was {result['load']} when it began.",
        "",
        *table(("step, one image on one thread", "processor ms"), result["steps"].items()),
        "",
        f"Median of {result['repeats']} epochs, batches of {BATCH}, nothing but the loader at work, by the clock:",
        "",
        *table(
            ("images/s", *(f"{count} workers" for count in rates[FILES])),
            [(way, *own.values()) for way, own in rates.items()],
        ),
        "",
        f"A GPU of {GPU:g} images/s:",
        "",
        *verdict(result),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=48, help="pictures that are drawn")
    parser.add_argument("--side", type=int, default=1000, help="of the pictures, in pixels")
    parser.add_argument("--img_size", type=int, default=518, help="of the network, in pixels")
    parser.add_argument("--repeats", type=int, default=3, help="timed epochs of every way")
    parser.add_argument("--quick", action="store_true", help="less than a minute: fewer pictures, one epoch")
    parser.add_argument("--out", help="folder for loader.json and loader.md")
    args = parser.parse_args(argv)
    if args.quick:
        args.images, args.repeats = 12, 1
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name:
        folder, cache = Path(name), Path(name) / "cache"
        samples = draw_pictures(folder, args.images, args.side)
        size = sum(os.path.getsize(sample.image_path) for sample in samples) / len(samples)
        result = {
            "command": command_line(MODULE, argv),
            **machine(),
            "torchvision": version("torchvision"),
            "Pillow": PIL.__version__,
            "images": args.images,
            "side": args.side,
            "img_size": args.img_size,
            "megabytes": round(size / 1e6, 2),
            "repeats": args.repeats,
            "cores": cores(),
            "load": round(os.getloadavg()[0], 1),
            "steps": timed_steps(samples, args.img_size, cache, max(5, 5 * args.repeats)),
            "rates": timed_rates(samples, args.img_size, cache, (0, 1, 2, WANTED), args.repeats),
        }
    finish("loader", result, markdown(result), args.out)


if __name__ == "__main__":
    run_main(main)
