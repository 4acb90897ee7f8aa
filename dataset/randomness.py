"""Randomness keyed by what it is for, so that a resumed run draws exactly what an uninterrupted one would.

Nothing here touches torch's global generator: the order of an epoch depends on (seed, epoch) and the augmentation of
a sample on (seed, stage, epoch, index), whatever the number of loader workers and wherever a run was resumed.
"""

import hashlib

import torch
from torch.utils.data import Sampler


def keyed_generator(*key: int | str) -> torch.Generator:
    """A CPU generator seeded by a stable hash of `key` (Python's own hash of strings differs between processes)."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


class EpochSampler(Sampler[int]):
    """A permutation of range(length) that depends on (seed, epoch) only; call `set_epoch` before each epoch.

    `skip`: indices left out at its begin, for an epoch that goes on in its middle; `set_epoch` sets it to 0.
    """

    def __init__(self, length: int, seed: int):
        self.length = length
        self.seed = seed
        self.epoch = self.skip = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch, self.skip = epoch, 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self):
        generator = keyed_generator(self.seed, "order", self.epoch)
        return iter(torch.randperm(self.length, generator=generator).tolist()[self.skip :])
