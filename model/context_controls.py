"""Controls of a study of cross-attention: contexts without the information a tower should gain from the other.

A run with `--context_control` has the same parameters and steps as one without. "constant" says nothing at all.
"other_class" keeps the statistics of real contexts and what all classes share (that something is damaged), but belongs
to another class; as its images see the prompts of one fixed other class, a class can still be told by it. Where the
surgery attends across the batch before the first level (ViT-L with AA-CLIP's defaults), patches of another class
already carry something of the own images: `--surgery_attention spatial` keeps them apart.
"""

import torch
from torch import Tensor

from model.contexts import Scope, TextContext
from model.settings import CONTEXT_CONTROLS


def check_control(control: str) -> None:
    """Raises ValueError for a control that is none."""
    if control not in CONTEXT_CONTROLS:
        raise ValueError(f"--context_control {control}: expected one of {', '.join(CONTEXT_CONTROLS)}")


def controlled_scope(scope: Scope, control: str) -> Scope:
    """Stage 1's image context under a control.

    Args:
        scope: of model.contexts, `class_scope` or `batch_scope`.
        control: "none"; "other_class": a class sees the batch's images of the next class in the batch, and nothing
            where the batch has one class; "constant": every prompt sees one token of equal entries and unit length.

    Returns:
        a scope: (patches [B, L, E], class names) -> {class: [S, E], or None for nothing}.

    Raises:
        ValueError: there is no such control.
    """
    check_control(control)

    def shifted(patches, class_names):
        contexts = scope(patches, class_names)
        names = list(contexts)
        if len(names) == 1:
            return {names[0]: None}
        return {name: contexts[other] for name, other in zip(names, names[1:] + names[:1], strict=True)}

    def constant(patches, class_names):
        return dict.fromkeys(scope(patches, class_names), constant_token(patches))

    return {"none": scope, "other_class": shifted, "constant": constant}[control]


def controlled_text_contexts(contexts: dict[str, TextContext], control: str) -> dict[str, TextContext]:
    """Text contexts of a dataset under a control.

    Args:
        contexts: {class name: TextContext}.
        control: "none"; "other_class": images of a class see the prompts of the dataset's next class; "constant": one
            token of equal entries and unit length.

    Raises:
        ValueError: there is no such control, or "other_class" with a dataset of one class.
    """
    check_control(control)
    if control == "none" or not contexts:
        return contexts
    names = list(contexts)
    if control == "constant":
        tokens = {name: constant_token(context.tokens) for name, context in contexts.items()}
        return {
            name: TextContext(
                token, contexts[name].real.new_ones(1), (token, token) if contexts[name].split else token
            )
            for name, token in tokens.items()
        }
    if len(names) == 1:
        raise ValueError(
            f"--context_control other_class: the dataset has one class alone, {names[0]!r}; use constant"
        )
    return {name: contexts[other] for name, other in zip(names, names[1:] + names[:1], strict=True)}


def constant_token(like: Tensor) -> Tensor:
    """[1, width] of equal entries and unit length, of the width, dtype and device of `like`."""
    width = like.shape[-1]
    return torch.full((1, width), width**-0.5, dtype=like.dtype, device=like.device)


def another_image(count: int) -> Tensor:
    """[count] of which other image of a batch each one's control is: one cycle through all in a fixed random order.

    Not the next one: test images stand in order of their labels, so the next mostly has the same.

    Raises:
        ValueError: a batch of one.
    """
    if count < 2:
        raise ValueError(
            "a control that sees another image of the batch: a batch of one image has none; choose a --batch_size that "
            "leaves no image of a class alone"
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(count))
    return torch.empty_like(order).scatter_(0, order, order.roll(-1))
