"""The names in a state dict, whoever wrapped the module it came from."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

NESTED = ("state_dict", "model_state_dict", "model", "module")  # where training programs put it
WRAPPERS = (
    re.compile(  # DataParallel and DDP, Lightning, Fabric, averages of weights, modules that hold a CLIP
        r"^(?:module|model|_forward_module|ema_model|clip_model|clip|backbone|network|net)\."
    )
)
INSIDE = re.compile(  # torch.compile, FSDP and activation checkpoints, at any depth
    r"(^|\.)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.)"
)
COUNTERS = ("n_averaged",)  # what torch's AveragedModel keeps beside its module


def nested_state(content: Any) -> Any:
    """The state dict inside a training program's checkpoint; other contents as they are."""
    while isinstance(content, Mapping):
        inner = next((content[key] for key in NESTED if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    return content


def unwrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without the prefixes that wrappers give its names.

    `_orig_mod` (torch.compile) and FSDP's go wherever they stand; `module.`, `model.` and their like go where every
    name has them.

    Raises:
        ValueError: two names become the same.
    """
    names = {name: INSIDE.sub("", name).lstrip(".") for name in state if name not in COUNTERS}
    while names and (common := _common_prefix(names.values())):
        names = {old: name.removeprefix(common) for old, name in names.items()}
    if len(set(names.values())) != len(names):
        raise ValueError("two of its tensors have one name when the prefixes of wrappers are taken away")
    return {name: state[old] for old, name in names.items()}


def _common_prefix(names) -> str:
    """The wrapper's prefix that all names have, or ""."""
    names = list(names)
    found = WRAPPERS.match(names[0])
    return found[0] if found and all(name.startswith(found[0]) for name in names) else ""
