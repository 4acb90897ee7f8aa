"""Pictures of both cross-attentions for chosen images: where a word looks, and which words a patch looks at."""

from logging import Logger
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dataset import DOMAINS
from dataset.anomaly_dataset import image_tensor
from dataset.image_files import read_image
from evaluation.photographs.subject import Subject, subject_of_class, subject_of_text
from evaluation.picture_folders import picture_folder
from evaluation.scorer import AnomalyScorer, scorer_of
from files.cells import plain
from files.given import require_regular
from files.names import safe_name
from files.pictures import overlay, sheet, to_picture, write_png
from forward_utils import class_tokens, prompts_of
from forward_utils_cross_attention import TextContext
from model.adapter_cross_attention import AdaptedCLIPWithCrossAttention
from model.tokenizer import word_tokenizer
from run_folder.loaded_run import LoadedRun
from run_folder.settings import Settings

WORDS_SHOWN = 12
LINE = 18  # pixels per line of text


def word_rows(tokens: Tensor, word: str) -> list[tuple[int, int]]:
    """(prompt, position) pairs at which a word stands in token ids [P, T]; multi-piece words count with every piece.

    Raises:
        ValueError: no prompt has the word.
    """
    pieces = word_tokenizer().encode(word)
    rows_of_word = []
    for prompt, row in enumerate(tokens.tolist()):
        for start in range(len(row) - len(pieces) + 1):
            if row[start : start + len(pieces)] == pieces:
                rows_of_word += [(prompt, start + offset) for offset in range(len(pieces))]
    if not rows_of_word:
        raise ValueError(
            f"--attention_word {word!r} stands in no prompt: choose a word such as damaged, broken, flaw"
        )
    return rows_of_word


@torch.no_grad()
def text_to_image(model: AdaptedCLIPWithCrossAttention, patches: Tensor, tokens: Tensor, word: str) -> Tensor:
    """Where a word looks: attention [G, G] of its tokens over an image's patches [L, E], mean over all."""
    clip = model.clipmodel
    x = clip.text_tokens(tokens, stop_after=1)  # [P, T, W], what text_cross_attn sees
    weights = model.text_cross_attn.attention_map(x, patches)  # [P, T, L]
    prompts, positions = zip(*word_rows(tokens, word), strict=True)
    side = int(patches.shape[0] ** 0.5)
    return weights[list(prompts), list(positions)].mean(dim=0).reshape(side, side)


@torch.no_grad()
def image_to_text(
    model: AdaptedCLIPWithCrossAttention, image: Tensor, patch: int, tokens: Tensor, context: TextContext
) -> dict[str, float]:
    """Which words a patch looks at: {token text: share of its attention}, largest first, summed over the prompts.

    Args:
        image: [3, H, W].  patch: index in 0..L-1.
        tokens: the class's token ids [P, T].  context: the class's TextContext.
    """
    x = model.attending_tokens(image[None])[:, patch + 1 : patch + 2]  # CLS stands first
    weights = model.image_cross_attn.attention_map(x, context.seen)[0, 0]
    decoder, shares = word_tokenizer().decoder, {}
    for token, weight in zip(tokens.flatten()[context.real].tolist(), weights.tolist(), strict=True):
        text = decoder[token].replace("</w>", "")
        shares[text] = shares.get(text, 0.0) + weight
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def word_list(shares: dict[str, float], side: int) -> np.ndarray:
    """A white picture [side, side, 3] with the words of largest share and bars for the shares."""
    picture = np.full((max(side, LINE * (WORDS_SHOWN + 1)), max(side, 220), 3), 255, np.uint8)
    shown = list(shares.items())[:WORDS_SHOWN]
    for i, (word, share) in enumerate(shown):
        bottom = LINE * (i + 1)
        width = int((picture.shape[1] - 10) * share / shown[0][1])
        cv2.rectangle(picture, (5, bottom - 12), (5 + width, bottom + 3), (205, 225, 245), -1)
        cv2.putText(
            picture,
            f"{word} {100 * share:.1f}%",
            (8, bottom),
            cv2.FONT_HERSHEY_SIMPLEX,
            0.42,
            (20, 20, 20),
            1,
        )
    return picture


def draw_attention(
    run: LoadedRun, scorer: AnomalyScorer, test_sets: dict[str, Dataset], settings: Settings, logger: Logger
) -> None:
    """Write <save_path>/attention/<dataset>/<image>_{text_to_image,image_to_text}.png for `--attention_of`.

    The patch of the second picture is the one with the highest anomaly score; a yellow square marks it.

    Raises:
        ValueError: an image is neither in the dataset nor a file, nobody says what a file shows, or cross-attention is
            off.
    """
    dataset, own = settings.data.dataset, settings.own
    if not scorer.contexts:
        raise ValueError(
            "--attention_of: nothing to draw, cross-attention is off; leave --no_cross_attention away, or choose a "
            "loop that was trained with it"
        )
    folder = picture_folder(settings.run.save_path, "attention", dataset)
    for name in own.attention_of:
        found = find_image(test_sets, name)
        if found is not None:
            pictures = attention_pictures(run, scorer, dataset, *found, own.attention_word)
        else:
            image = photograph(name, scorer.img_size, test_sets)
            subject = subject_shown(name, own.attention_shows, dataset, test_sets)
            known = subject.dataset or subject.registered()
            its_scorer = scorer if known == dataset else scorer_of(run, known)
            pictures = attention_pictures(
                run, its_scorer, known, subject.class_name, image, own.attention_word
            )
        base = safe_name(Path(name).with_suffix(""))
        for direction, picture in pictures.items():
            write_png(folder / f"{base}_{direction}.png", picture)
        logger.info(f"attention of {plain(name)}: {folder / base}_*.png")


def attention_pictures(
    run: LoadedRun, scorer: AnomalyScorer, dataset: str, class_name: str, image: Tensor, word: str
) -> dict[str, np.ndarray]:
    """{"text_to_image", "image_to_text": RGB picture} of one image.

    Args:
        scorer: of the data set that has the class.
        image: [3, S, S].
    """
    model, contexts = run.model, scorer.contexts
    image, picture = image.to(model.device), to_picture(image)
    tokens = class_tokens(dataset, class_name)[0].to(model.device)
    patches = run.first_patches(contexts)({"image": image[None], "class_name": [class_name]})[0]
    looks = text_to_image(model, patches, tokens, word).cpu().numpy()
    large = cv2.resize(looks, picture.shape[:2], interpolation=cv2.INTER_NEAREST)
    seen = overlay(picture, large, float(looks.min()), float(looks.max()))

    side, size = looks.shape[0], picture.shape[0]
    row, column = most_abnormal_patch(scorer, image, class_name, side)
    cell = size // side
    corner = (column * cell, row * cell)
    marked = cv2.rectangle(picture.copy(), corner, (corner[0] + cell, corner[1] + cell), (255, 255, 0), 1)
    shares = image_to_text(model, image, row * side + column, tokens, contexts[class_name])
    words = word_list(shares, size)
    marked = np.pad(marked, ((0, words.shape[0] - size), (0, 0), (0, 0)), constant_values=255)
    return {"text_to_image": sheet([[picture, seen]]), "image_to_text": sheet([[marked, words]])}


def most_abnormal_patch(scorer: AnomalyScorer, image: Tensor, class_name: str, side: int) -> tuple[int, int]:
    """(row, column) of the patch with the highest mean score, of `side` in a row; image [3, S, S]."""
    scores = scorer.score(image[None], class_name)[0][0].cpu().numpy()
    cells = cv2.resize(scores, (side, side), interpolation=cv2.INTER_AREA)
    row, column = np.unravel_index(int(cells.argmax()), cells.shape)
    return int(row), int(column)


def find_image(test_sets: dict[str, Dataset], name: str) -> tuple[str, Tensor] | None:
    """(class name, image [3, S, S]) of a test image by its metadata path; None where there is none."""
    for class_name, images in test_sets.items():
        for index, sample in enumerate(images.samples):
            if sample.file_name == name:
                return class_name, images[index]["image"]
    return None


def photograph(name: str, img_size: int, test_sets: dict[str, Dataset]) -> Tensor:
    """A file that is no row of the data set as the model sees it, [3, S, S].

    Raises:
        ValueError: there is no such file, or it is no picture that can be read.
    """
    if not Path(name).exists():
        example = next(iter(test_sets.values())).samples[0].file_name
        raise ValueError(
            f"--attention_of {plain(name)}: not in the dataset's test images, and no such file; a path there looks "
            f"like {example}"
        )
    require_regular(name, "--attention_of")
    return image_tensor(read_image(name, "--attention_of"), img_size)


def subject_shown(name: str, shows: str | None, dataset: str, test_sets: dict[str, Dataset]) -> Subject:
    """What a photograph shows: a class of the data set, or own words.

    Raises:
        ValueError: nobody says it, and the data set has several classes; or the words are empty or too long.
    """
    if shows is None and len(test_sets) > 1:
        raise ValueError(
            f"--attention_of {plain(name)}: no image of {dataset}; say what it shows with --attention_shows, one of "
            f"{', '.join(test_sets)} or own words such as 'steel bolt'"
        )
    shows = next(iter(test_sets)) if shows is None else shows
    if shows in test_sets:
        return subject_of_class(shows, dataset)
    subject = subject_of_text(shows, DOMAINS[dataset])
    prompts_of(subject.registered(), subject.class_name)
    return subject
