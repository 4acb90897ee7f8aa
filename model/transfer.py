"""Small tensors on their way to the device, without a wait for it."""

import torch
from torch import Tensor


def send(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A CPU tensor of any shape on a device; the caller goes on while it travels.

    CUDA copies from ordinary memory only after all its work is done; from pinned memory it does not wait.
    """
    to_cuda = torch.device(device).type == "cuda" and tensor.device.type == "cpu"
    # A traced copy is the compiler's to arrange; without CUDA there is nothing to pin for.
    if to_cuda and torch.cuda.is_available() and not torch.compiler.is_compiling():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
