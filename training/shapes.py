"""`--check_shapes`: the documented shapes as one batch has them, and the gradient of every new parameter."""

from collections.abc import Callable
from functools import partial
from logging import Logger
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from files.command import Refusal
from files.logs import close_logger, open_logger, quiet_logger
from forward_utils import class_tokens, frozen_image_features, probability_map
from forward_utils_cross_attention import anchors_and_means, text_context_dictionary
from model.adapter import patch_logits
from model.matrix_products import matrix_products
from run_folder.session import Session, declare_datasets
from run_folder.settings import Settings
from training.engine import StepLoss, to_device
from training.feedback import Run, image_loss, prepare, text_loss
from training.optimisation import only_training
from training.stages import loss_levels
from utils import choose_device, setup_seed


class Row(NamedTuple):
    """One documented shape: what has it, its axes as docs/method.md names them, and the shape as found."""

    name: str
    axes: tuple[str, ...]
    found: tuple[int, ...]


def check_shapes(settings: Settings) -> None:
    """Print both stages' documented shapes on one batch, with each new parameter's gradient norm; write no file.

    Raises:
        RuntimeError: a shape is not the documented one; everything was printed.
    """
    setup_seed(settings.run.seed, settings.run.fast)
    declare_datasets(settings.data)
    device, logger = choose_device(settings.run.device), open_logger("shapes")
    with matrix_products(settings.run.matmul, device, logger):
        deviating = print_shapes(prepare(Session(settings, device, quiet_logger())), logger)
    close_logger(logger)
    if deviating:
        raise Refusal(f"not of the documented shape: {', '.join(deviating)}; see the lines above")


def print_shapes(run: Run, logger: Logger) -> list[str]:
    """Print the shapes and norms of one batch of each stage; returns the names of what is not as documented."""
    deviating = []
    for stage, loader, check in (
        ("text", run.text_loader, check_text_stage),
        ("image", run.image_loader, check_image_stage),
    ):
        batch = to_device(next(iter(loader)), run.session.device)
        sizes = sizes_of(run, batch)
        logger.info(f"stage {stage}: " + ", ".join(f"{axis} {size}" for axis, size in sizes.items()))
        rows, norms = check(run, batch)
        for row in rows:
            logger.info(line_of(row, sizes))
        for name, norm in norms.items():
            logger.info(f"gradient norm of {name}: " + ("none" if norm is None else f"{norm:.3e}"))
        deviating += [row.name for row in rows if not is_documented(row, sizes)]
    logger.info("k_proj.bias gets no more than rounding: softmax does not see a shift of all its logits")
    return deviating


def sizes_of(run: Run, batch: dict) -> dict[str, int]:
    """{axis: size} of the axes whose size the backbone, the prompts and the batch fix; others are as found."""
    visual, clip = run.model.clipmodel.visual, run.model.clipmodel
    prompts, length = class_tokens(run.session.settings.data.dataset, batch["class_name"][0])[0].shape
    patches = visual.grid_size[0] * visual.grid_size[1]
    return {
        "B": len(batch["image"]),
        "H": visual.image_size[0],
        "L": patches,
        "1+L": 1 + patches,
        "C": visual.proj.shape[0],
        "P": prompts,
        "P*T": prompts * length,
        "W": clip.ln_final.weight.shape[0],
        "E": clip.embed_dim,
    }


def is_documented(row: Row, sizes: dict[str, int]) -> bool:
    """Whether a shape has the documented axes; digits stand for themselves, axes of no fixed size for any."""
    expected = [int(axis) if axis.isdecimal() else sizes.get(axis) for axis in row.axes]
    return len(expected) == len(row.found) and all(
        size is None or size == found for size, found in zip(expected, row.found, strict=True)
    )


def line_of(row: Row, sizes: dict[str, int]) -> str:
    """A row as it is printed."""
    verdict = "" if is_documented(row, sizes) else "  <- not as documented"
    return f"  {row.name}: [{', '.join(row.axes)}] = {[*row.found]}{verdict}"


def row(name: str, axes: str, tensor: Tensor) -> Row:
    """The Row of a tensor; `axes` is separated by blanks."""
    return Row(name, tuple(axes.split()), tuple(tensor.shape))


def check_text_stage(run: Run, batch: dict) -> tuple[list[Row], dict[str, float | None]]:
    """Stage 1 on one batch: (rows, {new parameter: gradient norm})."""
    model, settings = run.model, run.session.settings
    levels = loss_levels(model, settings.corrections)
    features = frozen_image_features(model, run.clip_surgery, [model.levels[0], *levels])
    loss, notes = noting(text_loss(run, features, attends=True), "patches_of", "anchors_of")
    attended, norms = attend_and_measure(model, model.text_modules, "text_cross_attn", partial(loss, batch))
    (patches, cls), anchors = notes["patches_of"], notes["anchors_of"]
    rows = [
        row("images", "B 3 H H", batch["image"]),
        row("masks", "B 1 H H", batch["mask"]),
        row(f"image context (patches of level {model.levels[0]})", "B L E", patches[model.levels[0]]),
        row("CLS of plain CLIP", "B E", cls),
        *attention_rows(attended, "prompts", "P T W", "patches of the class's images", "S E"),
        row("anchors", "B E 2", anchors),
    ]
    maps = probability_map(patch_logits(patches[levels[-1]], anchors), batch["mask"].shape[-1])
    return [*rows, row("similarity map", "B 2 H H", maps)], norms


def check_image_stage(run: Run, batch: dict) -> tuple[list[Row], dict[str, float | None]]:
    """Stage 2 on one batch: (rows, {new parameter: gradient norm})."""
    model, settings = run.model, run.session.settings
    dataset, contexts_of = settings.data.dataset, settings.contexts
    contexts = text_context_dictionary(model, dataset, contexts_of.context_control)
    features = frozen_image_features(model, run.clip_surgery, model.levels[:1])
    anchors_of, _ = anchors_and_means(model, dataset, contexts_of.text_context, features, [batch])
    loss, notes = noting(image_loss(run, contexts, anchors_of), "compare", "anchors_of")
    attended, norms = attend_and_measure(model, model.image_modules, "image_cross_attn", partial(loss, batch))
    with torch.no_grad():
        seg, det = model(batch["image"])
    logits, head = notes["compare"]
    axes = "P*T W" if contexts_of.context_control != "constant" else "1 W"
    return [
        row("text context of a class", axes, contexts[batch["class_name"][0]].tokens),
        *attention_rows(attended, "image tokens", "n 1+L C", "prompt tokens of the class", "S W"),
        *(
            row(f"patches of level {level}", "B L E", one)
            for level, one in zip(model.levels, seg, strict=True)
        ),
        row("image embedding", "B E", det),
        row("anchors", "B E 2", notes["anchors_of"]),
        *(
            row(f"patch logits of level {level}", "B L 2", one)
            for level, one in zip(model.levels, logits, strict=True)
        ),
        row("head", "B 2", head),
    ], norms


def attention_rows(
    attended: list[tuple[Tensor, Tensor, Tensor]], queries: str, axes: str, context: str, context_axes: str
) -> list[Row]:
    """Rows of every call of an attention: one for each class of the batch, none where its weight is 0."""
    return [
        one
        for x, seen, y in attended
        for one in (
            row(f"{queries} that attend", axes, x),
            row(f"  to {context}", context_axes, seen),
            row("  what is added, before scale and norm match", axes, y),
        )
    ]


def noting(loss: partial, *arguments: str) -> tuple[StepLoss, dict[str, Any]]:
    """(the same loss, {argument: what that function of the loss has returned last})."""
    notes = {}
    noted = {name: partial(call_and_note, loss.keywords[name], notes, name) for name in arguments}
    return partial(loss, **noted), notes


def call_and_note(function: Callable, notes: dict[str, Any], name: str, *values: Any) -> Any:
    """The function's result, also left in the notes."""
    notes[name] = function(*values)
    return notes[name]


def attend_and_measure(
    model: nn.Module, modules: dict[str, nn.Module], attention: str, terms_of: Callable[[], dict[str, Tensor]]
) -> tuple[list[tuple[Tensor, Tensor, Tensor]], dict[str, float | None]]:
    """([(x, context, result)] of every call of an attention, {new parameter: gradient norm of the loss, or None})."""
    attended = []
    handle = modules[attention].register_forward_hook(
        lambda module, inputs, result: attended.append((*inputs, result))
    )
    try:
        with only_training(model, modules):
            parameters = {
                f"{key}.{name}": parameter
                for key, module in modules.items()
                if key not in ("text_adapter", "image_adapter")
                for name, parameter in module.named_parameters()
            }
            loss = sum(terms_of().values())
            gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    finally:
        handle.remove()
    norms = [None if gradient is None else float(gradient.norm()) for gradient in gradients]
    return attended, dict(zip(parameters, norms, strict=True))
