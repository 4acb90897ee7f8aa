"""Training batches from the bank: a function of (seed, step, process) alone, so a resumed run draws the same ones."""

from dataclasses import dataclass

import cv2
import numpy as np
import open_clip
import torch

from tiny_clip.caption_bank import content_words

MEAN = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(3, 1, 1)
STD = torch.tensor(open_clip.OPENAI_DATASET_STD).view(3, 1, 1)


@dataclass(frozen=True)
class Batch:
    """images [B, 3, S, S] normalised; tokens [B, 77] compact; also_true [B, B] bool; generator for patch dropout."""

    images: torch.Tensor
    tokens: torch.Tensor
    also_true: torch.Tensor
    generator: torch.Generator


class CaptionBatches:
    """Draws batches of a Bank; `token_ids` lists the vocabulary entries its captions use, in rising order."""

    def __init__(self, bank, seed):
        """bank: a Bank; seed: of the order and the augmentation."""
        self.images, self.seed = bank.images, seed
        texts = sorted({text for captions in (*bank.captions, *bank.short_captions) for text in captions})
        number = {text: index for index, text in enumerate(texts)}
        tokens = open_clip.get_tokenizer("ViT-B-32")(texts)  # [texts, 77]
        # Rising order keeps the end token the largest id, which is how CLIP finds it.
        self.token_ids = torch.unique(tokens)
        self.tokens = torch.searchsorted(self.token_ids, tokens)
        self.captions = [
            np.array([[number[text] for text in captions] for captions in table])
            for table in (bank.captions, bank.short_captions)
        ]
        words = sorted(frozenset().union(*bank.words))
        column = {word: index for index, word in enumerate(words)}
        self.said = _indicators([content_words(text) & column.keys() for text in texts], column)
        self.true = _indicators(bank.words, column)

    def draw(self, step: int, rank: int, image_size: int, count: int) -> Batch:
        """`count` images of `image_size` pixels for one process: full captions at even steps, else short ones."""
        rng = np.random.default_rng([self.seed, step, rank])
        chosen = rng.integers(len(self.images), size=count)
        # Among full captions colours alone tell most pairs apart; only a batch of bare names asks for the thing itself.
        captions = self.captions[step % 2]
        texts = captions[chosen, rng.integers(captions.shape[1], size=count)]
        pictures = np.stack([_random_crop(self.images[index], image_size, rng) for index in chosen])
        images = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
        images = _jitter(images, torch.from_numpy(rng.uniform(0.85, 1.15, size=(2, count, 1, 1, 1))).float())
        untrue = (~self.true[chosen]).float() @ self.said[
            texts
        ].float().T  # [B, B] words of caption j not true of i
        also_true = (untrue == 0) & ~torch.eye(count, dtype=torch.bool)
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        return Batch((images - MEAN) / STD, self.tokens[texts], also_true, generator)


def _indicators(sets, column):
    table = torch.zeros(len(sets), len(column), dtype=torch.bool)
    for row, words in enumerate(sets):
        table[row, [column[word] for word in words]] = True
    return table


def _random_crop(image, size, rng):
    """A square of 80-100 % of the side, resized; no flip, since captions say left and right."""
    side = int(round(len(image) * rng.uniform(0.8, 1.0)))
    top, left = rng.integers(len(image) - side + 1, size=2)
    square = np.ascontiguousarray(image[top : top + side, left : left + side])
    return cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_LINEAR)


def _jitter(images, factors):
    """Brightness and contrast, little enough to leave the colour names true.

    images [B, 3, S, S] in [0, 1], factors [2, B, 1, 1, 1].
    """
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return (((images - mean) * factors[1] + mean) * factors[0]).clamp(0, 1)
