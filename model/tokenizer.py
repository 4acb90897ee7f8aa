"""CLIP's byte-pair tokenizer under AA-CLIP's public name."""

from collections.abc import Iterable
from typing import Any

import torch


def word_tokenizer() -> Any:
    """open_clip's tokenizer of OpenAI's vocabulary, with `encode` and `decoder`."""
    import open_clip  # here, because importing it takes two seconds

    return open_clip.get_tokenizer("ViT-L-14")


def tokenize(texts: str | Iterable[str], context_length: int = 77, truncate: bool = False) -> torch.Tensor:
    """Token ids of one text or a list of texts.

    Args:
        texts: str or list of str.
        context_length: tokens per text T; start and end tokens included, zero padded.
        truncate: cut longer texts instead of refusing them.

    Returns:
        int64 [P, T].

    Raises:
        ValueError: a text needs more than `context_length` tokens and `truncate` is off.
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    tokenizer = word_tokenizer()
    tokens = tokenizer(texts, context_length=context_length)
    if not truncate:
        for text in texts:
            needed = len(tokenizer.encode(text)) + 2  # start and end token
            if needed > context_length:
                raise ValueError(
                    f"{text!r} needs {needed} tokens, the text tower takes {context_length}: "
                    "shorten the class's real name, or pass truncate=True"
                )
    return tokens.to(torch.int64)
