"""Which words of the prompts the most abnormal patch of a photograph attends to, in a run with cross-attention."""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dataset.anomaly_dataset import image_tensor
from evaluation.attention_pictures import image_to_text, most_abnormal_patch
from evaluation.photographs.scorer import PhotographScorer, opened_photograph
from evaluation.photographs.subject import Subject
from forward_utils import class_tokens
from model.mixing import BothSides
from model.tokenizer import word_tokenizer


class WordAttention(NamedTuple):
    """A piece of a word, its share of a patch's attention, and what its share is where attention is even."""

    word: str
    share: float
    even: float


@torch.no_grad()
def attention_of_words(
    scorer: PhotographScorer, photograph: str | Path | Image.Image | np.ndarray, subject: Subject
) -> list[WordAttention]:
    """The words that the patch with the highest score looks at; shares sum to 1.

    A word that stands in many prompts has a large share whatever the attention: `even` says how large, and first come
    those that exceed it most.

    Returns:
        [] where nothing attends to words: no cross-attention, or one that is switched off.
    """
    found, name = scorer.of(subject), subject.class_name
    context = found.contexts.get(name)
    if context is None:
        return []
    model = found.network.model if isinstance(found.network, BothSides) else found.network
    image = image_tensor(opened_photograph(photograph), scorer.img_size).to(scorer.device)
    side = model.clipmodel.visual.grid_size[0]
    row, column = most_abnormal_patch(found, image, name, side)
    tokens = class_tokens(subject.registered(), name)[0].to(scorer.device)
    shares = image_to_text(model, image, row * side + column, tokens, context)
    even = even_shares(tokens, context.real)
    words = [WordAttention(word, share, even[word]) for word, share in shares.items()]
    return sorted(words, key=lambda one: one.even - one.share)


def even_shares(tokens: Tensor, real: Tensor) -> dict[str, float]:
    """{piece of a word: how many of the real tokens [P * T] bool of ids [P, T] it is, as a share}."""
    ids, decoder = tokens.flatten()[real].tolist(), word_tokenizer().decoder
    counts = Counter(decoder[one].replace("</w>", "") for one in ids)
    return {word: count / len(ids) for word, count in counts.items()}
