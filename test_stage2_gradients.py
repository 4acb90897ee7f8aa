"""Gradient dilution, measured: the image adapter's gradient with cross-attention over the one without.

Same weights, same batches, dropout off. Prints the gradient norm of the whole image adapter without and with
cross-attention and their ratio; [OK] and exit status 0 when it is at least 0.8, [CAUTION] and 1 below; then the same of
every layer adapter. With --steps each variant trains that long from the same start and its norms are the mean over
the second half of the steps: how much gradient reaches the adapters while they learn, and not at their first step
alone. The embedded default is measured on images it renders itself; --run and --dataset take real checkpoints and data.
"""

import copy
import statistics
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from dataset import get_dataset
from demo_world.render_sets import Counts, render_demo
from files.command import run_main
from files.logs import quiet_logger
from forward_utils import fixed_anchors
from forward_utils_cross_attention import comparison_seeing_prompts, text_context_dictionary
from model.adapter_cross_attention import AdaptedCLIPWithCrossAttention
from model.matrix_products import matrix_products
from model.settings import option
from run_folder.flags import parse
from run_folder.loaded_run import GROUPS as RUN_GROUPS
from run_folder.loading import load_parts
from run_folder.session import create_adapted_model, create_backbone, declare_datasets
from run_folder.settings import Settings, TrainingSettings
from training.engine import StepLoss, gradient_norm, to_device
from training.optimisation import adam
from training.stages import image_stage_loss
from utils import choose_device, setup_seed

HEALTHY = 0.8


@dataclass(frozen=True)
class MeasurementSettings:
    """measurement"""

    run: str | None = option(
        None, "folder of a trained run, baseline or cross-attention; default fresh modules"
    )
    text_only: bool = option(False, "of --run: its text side alone, as stage 2 starts")
    steps: int = option(0, "measure over the second half of this many steps")
    image_lr: float = option(TrainingSettings.image_lr, "learning rate of these steps, by default training's")
    batch_size: int = option(8, "images per batch")
    batches: int = option(4, "batches measured")


GROUPS = {**RUN_GROUPS, "own": MeasurementSettings}
del GROUPS[
    "mix"
]  # one step of stage 2 against the run's own anchors is measured, whatever the run learned against
DEFAULTS = {"model_name": "ViT-Tiny-8-demo", "dataset": None, "shot": 0, "save_path": None}


def training_images(settings: Settings, folder: str) -> tuple[str, Dataset]:
    """(dataset name, images): the training set the flags name, or a few rendered images of DemoA."""
    data, seed, size = settings.data, settings.run.seed, settings.model.img_size
    quiet = quiet_logger()
    if data.dataset:
        return data.dataset, get_dataset(
            data.dataset,
            size,
            "few_shot",
            data.shot,
            "train",
            quiet,
            data_root=data.data_root,
            seed=seed,
            mask_reading=data.mask_reading,
        )[1]
    render_demo("DemoA", folder, seed, counts=Counts(train_good=0, test_good=2, test_defective=2))
    return "DemoA", get_dataset("DemoA", size, "full_shot", 0, "train", quiet, data_root=folder, seed=seed)[1]


def set_gradients(modules: Iterable[nn.Module], loss: Tensor) -> None:
    """Leave the loss's gradient, and nothing of an earlier one, in the modules' parameters."""
    parameters = [parameter for module in modules for parameter in module.parameters()]
    for parameter, gradient in zip(
        parameters, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True
    ):
        parameter.grad = gradient


def part_norms(model: AdaptedCLIPWithCrossAttention) -> dict[str, float]:
    """Norm of the gradient now in each layer adapter and in the whole image adapter: {name: value}."""
    adapters = dict(enumerate(model.image_adapter["layer_adapters"]))
    parts = {f"layer adapter {i}": adapter for i, adapter in adapters.items()} | {
        "image adapter": model.image_adapter
    }
    return {name: float(gradient_norm(part)) for name, part in parts.items()}


def norms_at_the_start(
    model: AdaptedCLIPWithCrossAttention, batches: list[dict], step_loss: StepLoss
) -> dict[str, float]:
    """Norms of the mean gradient over the batches."""
    mean = {}
    for batch in batches:
        set_gradients([model.image_adapter], sum(step_loss(batch).values()) / len(batches))
        for name, parameter in model.image_adapter.named_parameters():
            if parameter.grad is not None:
                mean[name] = mean.get(name, 0) + parameter.grad
    for name, parameter in model.image_adapter.named_parameters():
        parameter.grad = mean.get(name)
    return part_norms(model)


def norms_in_training(
    model: AdaptedCLIPWithCrossAttention, batches: list[dict], step_loss: StepLoss, steps: int, lr: float
) -> dict[str, float]:
    """Mean norms of the batches' gradients over the second half of `steps` steps of stage 2, the batches in turn."""
    optimizer, norms_of_steps = adam(model.image_modules, lr), []
    for step in range(steps):
        set_gradients(model.image_modules.values(), sum(step_loss(batches[step % len(batches)]).values()))
        optimizer.step()
        norms_of_steps.append(part_norms(model))
    late = norms_of_steps[steps // 2 :]
    return {name: statistics.mean(norms[name] for norms in late) for name in late[0]}


def measure(
    model: AdaptedCLIPWithCrossAttention,
    batches: list[dict],
    contexts: dict,
    anchors_of: Callable,
    start: dict,
    own: MeasurementSettings,
) -> dict[str, float]:
    """Norms of stage 2's gradient from the weights `start`, images attending to `contexts` ({} for nothing)."""
    compare = comparison_seeing_prompts(model, contexts)
    step_loss = partial(image_stage_loss, compare=compare, anchors_of=anchors_of)
    model.load_state_dict(start)
    if own.steps:
        return norms_in_training(model, batches, step_loss, own.steps, own.image_lr)
    return norms_at_the_start(model, batches, step_loss)


def main(argv: Sequence[str] | None = None) -> int:
    settings = parse(__doc__, GROUPS, argv, DEFAULTS)
    own = settings.own
    setup_seed(settings.run.seed, settings.run.fast)
    device = choose_device(settings.run.device)
    declare_datasets(settings.data)
    clip = create_backbone(settings, device, quiet_logger())
    model = create_adapted_model(clip, settings, device).eval()
    if own.run:
        load_parts(model, own.run, text_only=own.text_only)
    model.requires_grad_(False)
    for module in model.image_modules.values():
        module.requires_grad_(True)
    with tempfile.TemporaryDirectory() as folder:
        name, images = training_images(settings, folder)
        order = torch.randperm(
            len(images), generator=torch.Generator().manual_seed(settings.run.seed)
        ).tolist()
        loader = DataLoader(images, own.batch_size, sampler=order[: own.batches * own.batch_size])
        batches = [to_device(batch, device) for batch in loader]
    with matrix_products(settings.run.matmul, device, quiet_logger()):
        contexts = text_context_dictionary(model, name, settings.contexts.context_control)
        anchors_of, start = fixed_anchors(model, name), copy.deepcopy(model.state_dict())
        without = measure(model, batches, {}, anchors_of, start, own)
        beside = measure(model, batches, contexts, anchors_of, start, own)

    attention = settings.cross_attention
    when = f"over the second half of {own.steps} steps" if own.steps else "at the first step"
    measured = (
        f"{settings.model.model_name}, {name}, {len(batches)} batches of {own.batch_size}, {when}, "
        f"image_cross_attn_weight {attention.image_cross_attn_weight}, norm matching "
        f"{'off' if attention.no_norm_match else 'on'}, context normalised "
        f"{'no' if attention.no_normalize_context else 'yes'}"
    )
    return print_ratios(without, beside, measured)


def print_ratios(without: dict[str, float], beside: dict[str, float], measured: str) -> int:
    """Print the norms without and with cross-attention and the verdict, in the reference fork's words, then every part.

    Args:
        without, beside: {part: norm}.
        measured: what was measured, in words.

    Returns:
        the exit status.
    """
    ratio = beside["image adapter"] / without["image adapter"]
    print("Image adapter gradient norm:")
    print(f"Without cross-attention: {without['image adapter']:.6f}")
    print(f"With cross-attention: {beside['image adapter']:.6f}")
    print(f"Ratio: {ratio:.4f}x")
    if ratio >= HEALTHY:
        print("[OK] Cross-attention doesn't harm gradient flow significantly")
    else:
        print("[CAUTION] Cross-attention reduces image adapter gradients significantly")
        print(
            f"A ratio below {HEALTHY}: lower --image_cross_attn_weight, keep norm matching and normalised contexts on"
        )
    print(f"\n{measured}")
    print(f"{'gradient norm of':18s} {'without':>12s} {'with':>12s} {'ratio':>8s}")
    for part, norm in without.items():
        print(f"{part:18s} {norm:12.6f} {beside[part]:12.6f} {beside[part] / norm:8.3f}")
    return int(ratio < HEALTHY)


if __name__ == "__main__":
    run_main(main)
