"""The optional packages of semantic fill, imported where a flag has asked for them."""

from collections.abc import Iterator
from contextlib import contextmanager

OPTIONAL = ("diffusers", "peft", "transformers", "tokenizers", "accelerate")


@contextmanager
def optional_packages() -> Iterator[None]:
    """Around imports that need them.

    Raises:
        ModuleNotFoundError: one is missing; the message says how to install all.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in OPTIONAL:
            raise
        raise ModuleNotFoundError(
            f"semantic fill needs {error.name}: pip install -r requirements-synthesis.txt", name=error.name
        ) from error
