"""What checkpoints and modules hold, for tests that compare them."""

import hashlib

import torch


def state(folder, file):
    """The content of a checkpoint."""
    return torch.load(folder / file, weights_only=True)


def digest(module):
    """One hash of all weights of a module."""
    content = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        content.update(name.encode() + value.contiguous().numpy().tobytes())
    return content.hexdigest()
