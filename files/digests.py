"""Digests of what a checkpoint holds: one per tensor, and one of everything else."""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
IMAGE_DIGEST = "image_digest"  # key of a batch: `tensor_digest` of every image
THREADS = min(8, os.cpu_count() or 1)  # hashing leaves Python's lock


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's type, shape and values, in hexadecimal."""
    found = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
    values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    found.update(values.numpy())
    return found.hexdigest()


def tensor_digests(tensors: dict[str, Tensor]) -> dict[str, str]:
    """{name: digest}, several tensors at once."""
    with ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(tensors, pool.map(tensor_digest, tensors.values()), strict=True))


def state_digest(state: dict[str, Tensor]) -> str:
    """SHA-256 of a state dict's names, types, shapes and values, whatever file and order they came in."""
    lines = sorted(f"{name} {digest}\n" for name, digest in tensor_digests(state).items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def content_digests(content: dict) -> dict[str, dict[str, str]]:
    """What is kept in a checkpoint to know its content again.

    Args:
        content: dictionaries, lists and tuples of tensors and plain values.

    Returns:
        {"tensors": {place: digest}, "values": {key of content: digest of everything in it that is no tensor}}

    Raises:
        TypeError: it holds something that a safe load would refuse.
    """
    tensors, values = {}, {}
    for key, part in content.items():
        found = hashlib.sha256()
        for place, value in leaves(part, str(key)):
            if isinstance(value, Tensor):
                tensors[place] = value
            elif type(value) not in PLAIN:
                raise TypeError(
                    f"{place} is {type(value).__name__}: a checkpoint holds tensors, numbers, text, lists, tuples and "
                    "dictionaries of them, nothing else would be read again"
                )
            found.update(f"{place} {'tensor' if isinstance(value, Tensor) else repr(value)}\n".encode())
        values[str(key)] = found.hexdigest()
    return {"tensors": tensor_digests(tensors), "values": values}


def leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """(place, tensor or plain value) of nested containers; a container stands for itself by its kind and keys."""
    if isinstance(value, dict):
        yield place, f"dict {list(value)!r}"
        for key, inner in value.items():
            yield from leaves(inner, f"{place}/{key}" if place else str(key))
    elif isinstance(value, list | tuple):
        yield place, f"{'list' if isinstance(value, list) else 'tuple'} {len(value)}"
        for number, inner in enumerate(value):
            yield from leaves(inner, f"{place}/{number}")
    else:
        yield place, value


def differences(content: dict, wanted: Any) -> list[str]:
    """Places where a content is not what its digests say; [] where all is well.

    Keys taken away as a whole (settings, an optimiser) or added since are no differences, changed ones are.
    """
    try:
        tensors, values = dict(wanted["tensors"]), dict(wanted["values"])
    except (TypeError, LookupError, ValueError):
        return ["the digests themselves"]
    found = content_digests({key: part for key, part in content.items() if str(key) in values})
    changed = [place for place, digest in found["tensors"].items() if tensors.get(place) != digest]
    return changed + [f"values of {key}" for key, digest in found["values"].items() if values[key] != digest]
