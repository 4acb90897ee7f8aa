"""The shapes of a training step's tensors in the log, as found: `train_semantic_fill.py --debug`."""

import logging

import torch

from synthesis.latents import diptych_of
from synthesis.system import FillSystem
from synthesis.training_step import Schedule, loss_of, step_inputs

LOGGED = (
    "visible_img",
    "target_img",
    "semantic_img",
    "diptych",
    "x_0",
    "x_cond",
    "semantic_tokens",
    "x_t",
    "x_t_enhanced",
    "hidden_states",
)


def loss_with_shapes(
    system: FillSystem,
    batch: dict[str, torch.Tensor | list[str]],
    schedule: Schedule,
    step: int,
    logger: logging.Logger,
) -> torch.Tensor:
    """`training_loss`, and a line "[DEBUG] name: shape" for each tensor of LOGGED."""
    inputs = step_inputs(system, batch, schedule, step)
    found = {f"{panel}_img": batch[panel] for panel in ("visible", "target", "semantic")}
    found["diptych"] = diptych_of(batch["visible"], batch["target"])
    found |= {"x_0": inputs.encoded.clean, "x_cond": inputs.encoded.condition}

    def see_semantics(module, args, output):
        found.update(x_t=args[0], semantic_tokens=args[1], x_t_enhanced=output)

    def see_transformer(module, args, kwargs, output):
        found.update(hidden_states=kwargs["hidden_states"])

    hooks = [
        system.attention.register_forward_hook(see_semantics),
        system.backbone.transformer.register_forward_hook(see_transformer, with_kwargs=True),
    ]
    try:
        loss = loss_of(system, inputs, schedule)
    finally:
        for hook in hooks:
            hook.remove()
    for name in LOGGED:
        logger.info(f"[DEBUG] {name}: {tuple(found[name].shape)}")
    return loss
