"""What a training step costs: the project's against AA-CLIP's operations (benchmarks/aa_clip_cost.py), in one process.

    python -m benchmarks.training_step --model_name ViT-L-14-336 --img_size 518 --repeats 3 --out results/performance
    python -m benchmarks.training_step --quick

Weights are random, time does not depend on them. The two take turns, so that a busy machine slows both, and on a CPU
their processor seconds are counted; the ratios count. FLOPs are counted on the meta device (torch.utils.flop_counter)
and compared with the fastest matrix product that was measured between the turns. `--memory` measures
the peak of every way in a process of its own. Writes training_step.json and training_step.md into --out, if given, and
prints the table.
"""

import argparse
import copy
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.aa_clip_cost import costly_networks, costly_step, costly_text_loss
from benchmarks.cross_attention_cost import DATASET, IMAGE_LR, TEXT_LR, TINY, random_batch, step
from benchmarks.metrics import peak_so_far
from files.atomic import write_text
from files.command import run_main
from forward_utils import anchors_of_batch, fixed_anchors, frozen_image_features
from model.adapter import AdaptedCLIP
from model.clip import CLIP, create_model, surgery_copy
from model.recompute import RECOMPUTED, recompute_activations
from run_folder.flags import HelpFormatter
from training.optimisation import only_training, parameters_of
from training.stages import image_stage_loss, text_stage_loss
from utils import choose_device, setup_seed

STAGES = {"stage 1": TEXT_LR, "stage 2": IMAGE_LR}
WAYS = ("AA-CLIP's operations", "this project", "mlp", "full")  # the last two with --activation_checkpointing
SHOWN = {"mlp": "with `--activation_checkpointing mlp`", "full": "with `--activation_checkpointing full`"}
# A block's widest at batch 2 and 518 px, and one that suits every library.
PRODUCTS = ((2738, 1024, 4096), (2048, 2048, 2048))


class Bench:
    """Both stages in every way on one backbone of random weights and one batch of noise."""

    def __init__(self, name: str, size: int, images: int, device: torch.device | str):
        setup_seed(0)
        self.until = 10 if name == TINY else 20
        with torch.device(device):  # on "meta" nothing is made
            self.clip = create_model(name, size, None, device=device)
            self.model = AdaptedCLIP(self.clip)
            self.batch = random_batch(images, size, torch.device(device))
        self.device = torch.device(device)

    def ours(self, stage: str, recompute: str = "none") -> tuple[AdaptedCLIP, dict, Callable[[dict], dict]]:
        """(model, what the stage trains, its loss)."""
        clip = self.clip if recompute == "none" else copy.deepcopy(self.clip)
        recompute_activations(clip, recompute)
        model = self.adapted(clip)
        if stage == "stage 2":
            anchors_of = fixed_anchors(model, DATASET)
            loss = partial(
                image_stage_loss,
                compare=lambda batch, anchors: model.compare(batch["image"], anchors),
                anchors_of=anchors_of,
            )
            return model, model.image_modules, loss
        last = model.levels[-1:]
        loss = partial(
            text_stage_loss,
            patches_of=frozen_image_features(model, surgery_copy(clip, self.until), last),
            anchors_of=lambda batch, patches: anchors_of_batch(model, DATASET, batch["class_name"]),
            loss_levels=last,
            norm_weight=0.1,
        )
        return model, model.text_modules, loss

    def theirs(self, stage: str) -> tuple[AdaptedCLIP, dict, Callable[[dict], torch.Tensor]]:
        """The same of AA-CLIP's operations; the loss is a scalar."""
        clip, surgery = costly_networks(self.clip, self.until)
        model = self.adapted(clip)
        if stage == "stage 1":
            return model, model.text_modules, costly_text_loss(model, surgery, DATASET)
        anchors_of = fixed_anchors(self.adapted(self.clip), DATASET)

        def loss(batch):
            terms = image_stage_loss(
                batch,
                compare=lambda batch, anchors: model.compare(batch["image"], anchors),
                anchors_of=anchors_of,
            )
            return sum(terms.values())

        return model, model.image_modules, loss

    def adapted(self, clip: CLIP) -> AdaptedCLIP:
        """An AdaptedCLIP of another backbone with the first values of this bench's adapters."""
        if clip is self.clip:
            return self.model
        with torch.device(self.device):
            model = AdaptedCLIP(clip)
        for key in ("text_adapter", "image_adapter"):
            getattr(model, key).load_state_dict(getattr(self.model, key).state_dict())
        return model

    def step(self, stage: str, way: str) -> Callable[[], None]:
        """A function that makes one step."""
        if way == WAYS[0]:
            _, modules, loss = self.theirs(stage)
            return costly_step(loss, parameters_of(modules), self.batch, STAGES[stage])
        return step(*self.ours(stage, recompute_of(way)), self.batch, STAGES[stage])

    def losses(self, stage: str) -> tuple[float, float]:
        """The loss of the first step by AA-CLIP's operations and by the project's."""
        with torch.no_grad():
            return float(self.theirs(stage)[2](self.batch)), float(
                sum(self.ours(stage)[2](self.batch).values())
            )

    def flops(self, stage: str, way: str) -> int:
        """FLOPs of a step's forward and backward pass; for a bench on the meta device."""
        if way == WAYS[0]:
            model, _, loss = self.theirs(stage)
            return counted(lambda: loss(self.batch), model.parameters())
        model, modules, loss = self.ours(stage, recompute_of(way))
        with only_training(model, modules):
            return counted(lambda: sum(loss(self.batch).values()), model.parameters())


def recompute_of(way: str) -> str:
    """The value of --activation_checkpointing of one of WAYS."""
    return way if way in RECOMPUTED else "none"


def counted(loss_of: Callable[[], torch.Tensor], parameters: Iterable[torch.Tensor]) -> int:
    """FLOPs of a loss and of its gradient to those parameters that want one.

    Attention is counted as two products, as not every fused kernel is known.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            wanted = [parameter for parameter in parameters if parameter.requires_grad]
            torch.autograd.grad(loss_of(), wanted, allow_unused=True)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return counter.get_total_flops()


def seconds_of(once: Callable[[], None], device: torch.device) -> float:
    """Seconds of one call: the processor's on a CPU, the clock's where a GPU works."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    begin = clock()
    once()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - begin


def product_speed(device: torch.device) -> float:
    """FLOPs a second of the faster of PRODUCTS in float32."""
    found = []
    for rows, inner, columns in PRODUCTS:
        left, right = torch.randn(rows, inner, device=device), torch.randn(inner, columns, device=device)
        found.append(2 * rows * inner * columns / seconds_of(partial(torch.mm, left, right), device))
    return max(found)


def alternated(
    steps: dict[str, Callable[[], None]], repeats: int, device: torch.device
) -> tuple[dict[str, float], float]:
    """({way: median seconds}, the fastest product's FLOPs a second), in turn; the first turn warms up."""
    times, speeds = {way: [] for way in steps}, []
    for _ in range(repeats + 1):
        for way, once in steps.items():
            times[way].append(seconds_of(once, device))
        speeds.append(product_speed(device))
    return {way: statistics.median(found[1:]) for way, found in times.items()}, max(speeds)


def measured(bench: Bench, meta: Bench, stage: str, ways: Sequence[str], repeats: int) -> dict:
    """One stage: {"losses", "ways" {way: {"seconds", "times faster", "TFLOP", "share of the product"}}}."""
    theirs, ours = bench.losses(stage)
    seconds, speed = alternated({way: bench.step(stage, way) for way in ways}, repeats, bench.device)
    rows = {}
    for way in ways:
        flops = meta.flops(stage, way)
        rows[way] = {
            "seconds": round(seconds[way], 4),
            "times faster": round(seconds[ways[0]] / seconds[way], 2),
            "TFLOP": round(flops / 1e12, 4),
            "share of the product": round(flops / seconds[way] / speed, 3),
        }
    return {
        "losses": [theirs, ours],
        "losses apart": abs(theirs - ours) / abs(theirs),
        "product GFLOP/s": round(speed / 1e9, 1),
        "ways": rows,
    }


def peak_of(args: argparse.Namespace, stage: str, way: str) -> float:
    """Peak MB of a process that makes two steps of one stage in one way."""
    command = [sys.executable, "-m", "benchmarks.training_step", "--child", stage, way]
    for flag in ("model_name", "img_size", "batch_size"):
        command += [f"--{flag}", str(getattr(args, flag))]
    root = Path(__file__).resolve().parent.parent
    told = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    return float(told.splitlines()[-1])


def child(args: argparse.Namespace) -> None:
    """Print what `peak_of` reads."""
    stage, way = args.child
    once = Bench(args.model_name, args.img_size, args.batch_size, "cpu").step(stage, way)
    once()
    once()
    print(round(peak_so_far(), 1))


def markdown(result: dict) -> str:
    """The table people read."""
    lines = [
        "# Training step",
        "",
        f"Written by `{result['command']}`: {result['model_name']} at {result['img_size']} px, batch "
        f"{result['batch_size']}, float32, random weights, {result['device']}; torch {result['torch']}, "
        f"{result['threads']} thread(s), {result['machine']}; the machine did other work, so the ratios count. Median "
        f"of {result['repeats']}, in turn. {result['clock']} seconds. Memory is the peak of a process.",
        "",
        "| | | seconds | × faster | TFLOP | share of the fastest product | peak MB |",
        "|--|--|--|--|--|--|--|",
    ]
    for stage in STAGES:
        found = result[stage]
        for way, row in found["ways"].items():
            lines.append(
                f"| {stage} | {SHOWN.get(way, way)} | {row['seconds']} | {row['times faster']} | {row['TFLOP']} | "
                f"{100 * row['share of the product']:.0f} % of {found['product GFLOP/s']} GFLOP/s | "
                f"{row.get('peak MB', 'not measured')} |"
            )
    apart = ", ".join(f"{result[stage]['losses apart']:.1e} in {stage}" for stage in STAGES)
    return "\n".join([*lines, "", f"First losses of the two, relative difference: {apart}."]) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=HelpFormatter)
    parser.add_argument("--model_name", default=TINY, help="architecture; ViT-L-14-336 is AA-CLIP's")
    parser.add_argument("--img_size", type=int, help="default 128 for the tiny CLIP, 518 otherwise")
    parser.add_argument("--batch_size", type=int, default=2, help="images per step")
    parser.add_argument("--repeats", type=int, default=5, help="timed turns")
    parser.add_argument("--device", help="torch device; default CUDA if there, else CPU")
    parser.add_argument(
        "--memory", action="store_true", help="peak of every way, in processes of their own (CPU)"
    )
    parser.add_argument("--quick", action="store_true", help="less than a minute: the tiny CLIP, two turns")
    parser.add_argument("--out", help="folder for training_step.json and training_step.md")
    parser.add_argument("--child", nargs=2, metavar=("STAGE", "WAY"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.quick:
        args.model_name, args.repeats = TINY, 2
    args.img_size = args.img_size or (128 if args.model_name == TINY else 518)
    if args.child:
        return child(args)
    device = choose_device(args.device)
    typed = sys.argv[1:] if argv is None else argv
    result = {
        "command": " ".join(["python -m benchmarks.training_step", *typed]),
        "model_name": args.model_name,
        "img_size": args.img_size,
        "batch_size": args.batch_size,
        "repeats": args.repeats,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "clock": "Wall-clock" if device.type == "cuda" else "Processor",
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}",
    }
    shape = (args.model_name, args.img_size, args.batch_size)
    bench, meta = Bench(*shape, device), Bench(*shape, "meta")
    for stage in STAGES:
        ways = WAYS if stage == "stage 2" else WAYS[:2]
        result[stage] = measured(bench, meta, stage, ways, args.repeats)
        if args.memory:
            for way in ways:
                result[stage]["ways"][way]["peak MB"] = peak_of(args, stage, way)
    text = markdown(result)
    if args.out:
        write_text(Path(args.out) / "training_step.json", json.dumps(result, indent=1) + "\n")
        write_text(Path(args.out) / "training_step.md", text)
    print(text)


if __name__ == "__main__":
    run_main(main)
