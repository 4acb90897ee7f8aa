"""Prompts after text block 0, which no adapter and no image has reached yet: made once per class, not once per step."""

from collections.abc import Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from model.clip import CLIP
from model.transfer import send


class PromptStart(NamedTuple):
    """A class's prompts from where the trained part of the text tower begins, on the device.

    `tokens` [P, T, W] after text block 0, T of the longest; `end` [P]: the place of each prompt's end token. `ids` is
    the tensor they were made of.
    """

    tokens: Tensor
    end: Tensor
    ids: Tensor


MOST = 256  # classes that are kept, above all data sets' numbers of them: a scorer may be asked for any words
# {backbone: (what its weights are, {id of a class's token ids: PromptStart})}
_starts: WeakKeyDictionary[CLIP, tuple[tuple, dict[int, PromptStart]]] = WeakKeyDictionary()


def prompt_start(clip: CLIP, ids: Tensor, lengths: Sequence[int]) -> PromptStart:
    """The PromptStart of a class, kept as long as the backbone and its weights are what they were.

    A class is always computed by itself, so that its numbers do not depend on when and beside which others it is asked.

    Args:
        ids: [P, T] on the CPU, the same tensor whenever the class is asked for.
        lengths: tokens of each prompt, start and end included.
    """
    weights = weights_now(clip)
    known, starts = _starts.get(clip, (None, {}))
    if known != weights:
        starts = {}
        _starts[clip] = weights, starts
    start = starts.get(id(ids))
    if start is None or start.ids is not ids:
        device = clip.positional_embedding.device
        with torch.inference_mode(False), torch.no_grad():  # a later call may be one of training
            tokens = clip.text_tokens(send(ids[:, : max(lengths)], device), stop_after=1)
            start = PromptStart(tokens, send(torch.tensor(lengths) - 1, device), ids)
        if len(starts) >= MOST:
            del starts[next(iter(starts))]  # the oldest
        starts[id(ids)] = start
    return start


def weights_now(clip: CLIP) -> tuple:
    """What a PromptStart is made of: weights written in place, replaced, moved or converted, and CUDA's products.

    Training with `--tf32` and an evaluation in its middle, which has none, each have their own.
    """
    first = clip.transformer.resblocks[0]
    weights = [clip.token_embedding.weight, clip.positional_embedding, *first.parameters()]
    known = tuple((id(one), one._version, one.device, one.dtype) for one in weights)
    return (*known, torch.backends.cuda.matmul.fp32_precision)


def together(starts: Sequence[PromptStart]) -> tuple[Tensor, Tensor]:
    """(tokens [P, T, W], end [P]) of the prompts of several classes; shorter ones end with copies of their last token.

    Those stand behind every end token, where causal attention does not see them.
    """
    longest = max(start.tokens.shape[1] for start in starts)
    tokens = [
        torch.cat([one.tokens, one.tokens[:, -1:].expand(-1, longest - one.tokens.shape[1], -1)], dim=1)
        for one in starts
    ]
    return torch.cat(tokens), torch.cat([start.end for start in starts])
