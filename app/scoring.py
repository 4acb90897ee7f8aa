"""What the page shows of pictures, as plain functions: scores, decisions, heatmaps, and which words matter."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from evaluation.photographs.calibration import threshold_for, what_is_scored
from evaluation.photographs.drawing import small
from evaluation.photographs.scorer import PhotographScorer, mask_of
from evaluation.photographs.subject import Subject, subject_of_text
from evaluation.photographs.views import read_photograph
from evaluation.photographs.word_attention import WordAttention, attention_of_words
from files.cells import plain
from files.pictures import heatmap, outline
from forward_utils import FREE_CLASS, prompts_of

MOST_PICTURES = 24  # at once; a folder is predict.py's
SIDE = 900  # longer side of what is drawn, in pixels
MOST_WORDS = 12  # left out one by one, and shown of those attended to


@dataclass(frozen=True)
class Side:
    """One of the models that are shown: its name, its scorer, and the file of its calibrated thresholds, if any."""

    name: str
    scorer: PhotographScorer
    thresholds: Path | None


@dataclass(frozen=True)
class Shown:
    """A scored picture as the page keeps it, of SIDE pixels at most: RGB bytes [H, W, 3] and its map [H, W].

    `head`, `levels`: of evaluation.photographs.scorer.Prediction, for the mask.
    """

    name: str
    photograph: np.ndarray
    map: np.ndarray
    score: float
    head: float
    levels: int


class Threshold(NamedTuple):
    """From which score on a picture is called anomalous, None for none, and where that comes from, in words."""

    value: float | None
    origin: str


class WordEffect(NamedTuple):
    """What a score is without a word: the text that is left, the score, and what the word adds to the whole score."""

    word: str
    text: str
    score: float
    adds: float


def subject_in_words(text: str | None, domain: str) -> Subject:
    """The subject of what a visitor typed. Raises ValueError where it says nothing, or too much for the text tower."""
    if not text or not text.strip():
        raise ValueError("Say what the pictures show, such as: steel bolt")
    subject = subject_of_text(text, domain)
    prompts_of(subject.registered(), subject.class_name)
    return subject


def read_pictures(
    files: Sequence[str | Path] | None,
) -> tuple[list[tuple[str, Image.Image]], list[str]]:
    """([(name, RGB picture)], why others could not be read).

    Raises:
        ValueError: there are none, more than MOST_PICTURES, or none that can be read.
    """
    if not files:
        raise ValueError("Drop a picture first")
    if len(files) > MOST_PICTURES:
        raise ValueError(
            f"{len(files)} pictures are more than {MOST_PICTURES} at once: predict.py scores whole folders"
        )
    pictures, refused = [], []
    for file in files:
        name = plain(Path(file).name)
        try:
            pictures.append((name, read_photograph(file)))
        except (OSError, ValueError):
            refused.append(f"{name} is no picture that can be read")
    if not pictures:
        raise ValueError("; ".join(refused))
    return pictures, refused


def score_pictures(side: Side, pictures: Sequence[tuple[str, Image.Image]], subject: Subject) -> list[Shown]:
    """Score pictures with one model, in their order."""
    found = []
    for name, picture in pictures:
        result = side.scorer(picture, subject)
        photograph = small(np.asarray(picture), SIDE)
        scores = cv2.resize(result.map, photograph.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        found.append(Shown(name, photograph, scores, result.score, result.head, result.levels))
    return found


def typed_number(text: str | None) -> float | None:
    """A typed threshold; None for an empty field. Raises ValueError where it is no finite number."""
    if not text or not text.strip():
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"Threshold {plain(text.strip())}: expected a number such as 0.42, or nothing")
    return number


def threshold_of(side: Side, subject: Subject, typed: float | None) -> Threshold:
    """The typed threshold, else the calibrated one for these weights and words, else none."""
    if typed is not None:
        return Threshold(float(typed), "typed")
    if side.thresholds is None or not side.thresholds.is_file():
        return Threshold(None, "none is stored, run calibrate.py on normal pictures or type one")
    try:
        return Threshold(
            threshold_for(side.thresholds, what_is_scored(side.scorer, subject, None)), "calibrated"
        )
    except ValueError as error:
        return Threshold(None, str(error).removeprefix("--calibrated: "))


def decision(score: float, threshold: float | None) -> str:
    """ "anomalous" from the threshold on, "normal" below, "" without one."""
    if threshold is None:
        return ""
    return "anomalous" if score >= threshold else "normal"


def common_scale(found: Sequence[Shown]) -> tuple[float, float]:
    """Lowest and highest map score of some pictures of one model."""
    return min(float(one.map.min()) for one in found), max(float(one.map.max()) for one in found)


def drawn(
    one: Shown, scale: tuple[float, float], opacity: float, cut: float, threshold: float | None
) -> np.ndarray:
    """The heatmap over its photograph, RGB bytes [H, W, 3]; with a threshold the mask's edge in green.

    Args:
        scale: the scores that are blue and red.
        opacity: of the heatmap, 0 to 1.
        cut: share of the scale below which the photograph is left as it is, 0 to 1.
    """
    low, high = scale
    colours = heatmap(one.map, low, high).astype(np.float32)
    weight = opacity * (one.map >= low + cut * (high - low))[..., None].astype(np.float32)
    picture = (colours * weight + one.photograph * (1 - weight)).round().astype(np.uint8)
    if threshold is None:
        return picture
    return outline(picture, mask_of(one.map, one.head, one.levels, threshold))


def without_each_word(text: str) -> list[tuple[str, str]]:
    """[(word, text without it)] for every word of a text; without its only word it names no product."""
    words = text.split()
    return [
        (word, " ".join([*words[:place], *words[place + 1 :]]) or FREE_CLASS)
        for place, word in enumerate(words)
    ]


def word_effects(side: Side, picture: Image.Image, subject: Subject) -> list[WordEffect]:
    """What every word adds to a picture's score: the whole text's score minus the score without the word.

    Raises:
        ValueError: more than MOST_WORDS words.
    """
    left = without_each_word(subject.text)
    if len(left) > MOST_WORDS:
        raise ValueError(f"{len(left)} words: up to {MOST_WORDS} are left out one by one; say it shorter")
    whole = side.scorer(picture, subject).score
    effects = []
    for word, text in left:
        score = side.scorer(picture, subject_of_text(text, subject.domain)).score
        effects.append(WordEffect(word, text, score, whole - score))
    return effects


def words_attended(side: Side, picture: Image.Image, subject: Subject) -> list[WordAttention]:
    """The MOST_WORDS prompt words that a picture's most abnormal patch attends to; [] without cross-attention."""
    return attention_of_words(side.scorer, picture, subject)[:MOST_WORDS]
