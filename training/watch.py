"""What a stage's modules do while they train: how far weights move, where attentions look, what their gates are.

Shares of a gradient say little under Adam, whose steps do not depend on the gradient's length. These say whether a
module left its first values, and whether an attention tells its keys and its queries apart: one whose entropy is that
of uniform weights, or whose output is one vector for every query, adds a constant and no more.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

LOOKED_AT = 8  # sequences of a call, and queries of each, whose attention weights are computed once more
VALUES = ("gate", "temperature")  # attributes of a module that are logged as they are at the epoch's end


class Watch:
    """Watches {key: module} from where it is made, which is before a stage is resumed.

    An attention is any part of a module with `attention_weights(x [n, N, C], context [S, W] or [n, S, W])` ->
    [n, heads, N, S], which is called as `attention(x, context)` -> [n, N, width]. It is looked at in training mode
    alone, draws no random number and changes none. Nothing here waits for a device before the epoch's end.
    """

    def __init__(self, modules: dict[str, nn.Module]):
        self.modules = modules
        self.start = {
            key: [parameter.detach().clone() for parameter in module.parameters()]
            for key, module in modules.items()
        }
        self.sums: dict[str, dict[str, Tensor]] = {}  # {what: {part: [sum, count]}}

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Look at every call of the attentions; begins an epoch."""
        self.sums = {}
        hooks = [
            part.register_forward_hook(partial(self._look, name))
            for name, part in self._parts()
            if hasattr(part, "attention_weights")
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @torch.no_grad()
    def _look(self, name, attention, arguments, output):
        if not attention.training:
            return
        x, context = arguments
        rows, queries = every_so_many(len(x), LOOKED_AT), every_so_many(x.shape[1], LOOKED_AT)
        context = context if context.dim() == 2 else context[rows]
        weights = attention.attention_weights(x[rows, queries], context)
        if weights.shape[-1] > 1:
            self._add("attention_entropy", name, entropy_share(weights).mean())
        if output.shape[-2] > 1:
            self._add("output_cosine", name, mean_cosine(output).mean())

    def _add(self, what, name, value):
        """Add a scalar, which counts where it is finite: of a step that may be left out it is not."""
        finite = value.isfinite()
        added = torch.stack([torch.where(finite, value, 0.0), finite.to(value.dtype)])
        before = self.sums.setdefault(what, {})
        before[name] = before[name] + added if name in before else added

    def content(self) -> dict[str, Any]:
        """What the epoch has summed up, as a checkpoint holds it."""
        return {what: dict(values) for what, values in self.sums.items()}

    def restore(self, content: dict[str, Any], device: torch.device | str) -> None:
        """Go on from what `content` gave."""
        self.sums = {
            what: {name: pair.to(device) for name, pair in values.items()} for what, values in content.items()
        }

    @torch.no_grad()
    def entry(self) -> dict[str, dict[str, Any]]:
        """An epoch's entry; this waits for the device.

        Returns:
            {"displacement": {key: |W - W0| / |W0|, W0 the module's parameters where the watch was made},
            "attention_entropy": {part: mean share of the uniform weights' entropy},
            "output_cosine": {part: mean cosine between the outputs of different queries of a sequence},
            "gate", "temperature": {part: number, or list of them}}; what a stage has none of is left out.
        """
        found = {"displacement": {key: self._displacement(key) for key in self.modules}}
        for what, values in self.sums.items():
            pairs = {name: pair.tolist() for name, pair in values.items()}
            found[what] = {name: total / count for name, (total, count) in pairs.items() if count}
        for what in VALUES:
            values = {name: getattr(part, what, None) for name, part in self._parts()}
            found[what] = {n: value.tolist() for n, value in values.items() if isinstance(value, Tensor)}
        return {what: values for what, values in found.items() if values}

    def _displacement(self, key):
        pairs = list(zip(self.modules[key].parameters(), self.start[key], strict=True))
        moved = torch.stack([(now - start).norm() for now, start in pairs]).norm()
        return float(moved / torch.stack([start.norm() for _, start in pairs]).norm())

    def _parts(self):
        """(name, module) of all modules and what they are made of."""
        for key, module in self.modules.items():
            for name, part in module.named_modules():
                yield f"{key}.{name}" if name else key, part


def every_so_many(count: int, most: int) -> slice:
    """A slice of `count` entries that takes at most `most`, evenly spread."""
    return slice(None, None, math.ceil(count / most))


def entropy_share(weights: Tensor) -> Tensor:
    """Entropy of attention weights [..., S] that sum to 1, as a share of log S, that of uniform ones: [...]."""
    return torch.special.entr(weights.float()).sum(dim=-1) / math.log(weights.shape[-1])


def mean_cosine(outputs: Tensor) -> Tensor:
    """Mean cosine between different vectors of outputs [..., N, width], N of at least 2: [...].

    (|sum of the N unit vectors|^2 - N) / (N (N - 1)); not a number where one of them is 0, as behind a gate of 0.
    """
    outputs, count = outputs.float(), outputs.shape[-2]
    unit = outputs / outputs.norm(dim=-1, keepdim=True)
    return (unit.sum(dim=-2).square().sum(dim=-1) - count) / (count * (count - 1))


def watch_line(entry: dict[str, dict[str, Any]]) -> str:
    """`Watch.entry` as one line of a log."""
    return "; ".join(
        f"{what.replace('_', ' ')}: " + ", ".join(f"{name} {shown(value)}" for name, value in values.items())
        for what, values in entry.items()
    )


def shown(value: Any) -> str:
    """A number, or numbers, with four digits."""
    return "/".join(map(shown, value)) if isinstance(value, list) else f"{value:.4g}"
