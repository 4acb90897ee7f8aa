"""All rows of the table, in its order."""

import os

import torch

# The order of the table: each import enters its rows.
# isort: off
from promises import kills, orphans, signals  # noqa: F401
from promises import readers, payloads, fuzz  # noqa: F401
from promises import wrong_inputs, finite, full_disk, two_runs, stale  # noqa: F401
from promises import pictures, metadata, names  # noqa: F401
from promises import fill, same_seed, supply  # noqa: F401

# isort: on


def one_thread() -> None:
    """Forked children of a process with torch's threads would wait for them."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
