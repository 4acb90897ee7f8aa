"""Fake tensors: shapes, types and a device, and no values. Nothing is computed, and any network fits into memory."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from torch._subclasses.fake_tensor import FakeTensorMode

from forward_utils import upsample


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Tensors made inside are fake and may lie on "cuda" without a GPU; autocast believes in it too.

    Modules stay where they are made, under `torch.device("cuda")`: torch cannot move fake parameters.
    """
    kept = upsample.__globals__["_interpolation_matrix"]
    kept.cache_clear()
    try:
        with (
            warnings.catch_warnings(),
            patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False),
            patch("torch.cuda.is_bf16_supported", lambda *_, **__: True),
            patch("torch.nn.Module.to", lambda module, *_, **__: module),
            FakeTensorMode(allow_non_fake_inputs=True),
        ):
            warnings.filterwarnings(
                "ignore", "Accessing the data pointer of FakeTensor"
            )  # a module's copy does
            yield
    finally:
        kept.cache_clear()  # a fake matrix must not be met by a real map
