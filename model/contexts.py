"""What a batch's rows attend to: prompts to patches, images to prompt tokens.

Every function states which rows attend to which context; nothing is inferred from shapes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.cross_attention import Context, Contexts

# (patches [B, L, E], class names) -> {class: [S, E], or None for nothing}
Scope = Callable[[Tensor, Sequence[str]], dict[str, Tensor | None]]


@dataclass(frozen=True)
class TextContext:
    """What images of one class attend to.

    `tokens` [P * T, W]: every token of the class's prompts after text block 0 and its adapter; `real` [P * T] bool:
    which of them are tokens of a prompt, and not the padding behind it, which nothing attends to; `seen` [S, W]: those
    tokens, or (those of the normal prompts, those of the abnormal ones) to be attended to apart. They are picked once,
    here or by who knows the prompts' lengths: a mask's size is only known to the device, and a step that asks has to
    wait.
    """

    tokens: Tensor
    real: Tensor
    seen: Context | None = None

    def __post_init__(self):
        if self.seen is None:
            object.__setattr__(self, "seen", self.tokens[self.real])

    @property
    def split(self) -> bool:
        """Whether normal and abnormal prompts are attended to apart."""
        return isinstance(self.seen, tuple)


def text_context_groups(contexts: dict[str, TextContext], class_names: Sequence[str]) -> Contexts:
    """Groups (image rows, `seen`) of a batch: every image attends to its own class's prompts.

    Args:
        contexts: {class name: TextContext}. With none at all, nothing attends to anything.
        class_names: of the batch's images, in order.

    Raises:
        KeyError: a class of the batch has no context, although others have.
    """
    if not contexts:
        return []
    rows_of = rows_by_class(class_names)
    if missing := sorted(rows_of.keys() - contexts.keys()):
        raise KeyError(
            f"no text context of {', '.join(missing)}: there are those of {', '.join(contexts)}; make them of the "
            "dataset the images are from"
        )
    return [(rows, contexts[name].seen) for name, rows in rows_of.items()]


def rows_by_class(class_names: Sequence[str]) -> dict[str, list[int]]:
    """{class name: [rows]} in order of first appearance."""
    rows = {}
    for row, name in enumerate(class_names):
        rows.setdefault(name, []).append(row)
    return rows


def class_scope(patches: Tensor, class_names: Sequence[str]) -> dict[str, Tensor]:
    """Image context per class: {class: patches [n * L, E]} of all the batch's images of that class."""
    return {
        name: torch.cat([patches[row] for row in rows]) for name, rows in rows_by_class(class_names).items()
    }


def batch_scope(patches: Tensor, class_names: Sequence[str]) -> dict[str, Tensor]:
    """Image context per class: {class: mean patches [L, E] of the whole batch}, the reference fork's behaviour."""
    mean = patches.mean(dim=0)
    return {name: mean for name in rows_by_class(class_names)}


def no_scope(patches: Tensor, class_names: Sequence[str]) -> dict[str, None]:
    """Image context per class: {class: None}, prompts that attend to nothing, whatever the patches [B, L, E]: a loop
    before `--cross_attn_start_loop`."""
    return dict.fromkeys(rows_by_class(class_names))
