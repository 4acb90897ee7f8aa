"""A trained run, or raw CLIP, as one call: a photograph and what it shows -> its anomaly map and score.

>>> scorer = load_scorer("ckpt/visa")
>>> result = scorer("photo.jpg", "steel bolt")
>>> result.score, result.map.shape  # [H, W] of the photograph
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from evaluation.few_shot import FewShot, few_shot_record
from evaluation.normal_references import ReferenceBanks, WithReferences
from evaluation.photographs.subject import Subject, subject_of_text
from evaluation.photographs.tiles import TiledMap, Tiling
from evaluation.photographs.views import Batch, Place, Unreadable, Views, batches, collated, read_photograph
from evaluation.provenance import flags_at_test
from evaluation.scorer import AnomalyScorer, raw_clip_scorer, scorer_of
from files.logs import quiet_logger
from metrics import unnormalised_score_of_peak
from model.clip import CLIP
from run_folder.flags import settings_of
from run_folder.loaded_run import GROUPS, load_run
from run_folder.session import create_backbone
from run_folder.settings import Settings
from utils import choose_device

KEPT_SUBJECTS = 64  # whose anchors are kept


@dataclass(frozen=True)
class Prediction:
    """What a run says of one photograph.

    `map`: [H, W] float32, of the photograph's size upright, higher is more anomalous; `score`: of this photograph
    alone, comparable between photographs of one subject; `text`: what it was said to show. `head`: the
    score of the photograph as a whole, half of `score`; `levels`: how many maps `map` is the sum of.
    """

    map: np.ndarray
    score: float
    text: str
    head: float
    levels: int

    def mask(self, threshold: float) -> np.ndarray:
        """[H, W] bool: the pixels of `mask_of`."""
        return mask_of(self.map, self.head, self.levels, threshold)


@dataclass(frozen=True)
class ScoredPicture:
    """One picture of many: its number, (width, height), map as the model gave it ([S, S], or [H, W] of tiles), head
    score, image score, and the seconds the model took for it."""

    number: int
    size: tuple[int, int]
    map: np.ndarray
    head: float
    score: float
    seconds: float


def mask_of(scores: np.ndarray, head: float, levels: int, threshold: float) -> np.ndarray:
    """Pixels [H, W] bool that would give their picture a score of `threshold` if each were the map's peak.

    Where nothing reaches it, the picture does not either: one threshold decides on pictures and pixels.

    Args:
        scores: the map [H, W].  head: the picture's head score.  levels: the map is a sum of so many.
    """
    return unnormalised_score_of_peak(scores, np.float32(head), levels) >= np.float64(
        threshold
    )  # as scores are compared


def at_size(scores: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map at a picture's (width, height): [H, W] float32, bilinear."""
    if scores.shape == size[::-1]:
        return scores
    return cv2.resize(scores, size, interpolation=cv2.INTER_LINEAR)


class PhotographScorer:
    """Scores photographs of any size, in any words.

    Args:
        scorer_of_dataset: {dataset name} -> the AnomalyScorer of its classes.
        img_size: side of what the model sees, in pixels.
        device: where it runs.
        needs_other_classes: the run lets a class see another class's prompts (a control), so that a class alone is not
            enough.
        origin: what it was loaded from, for records.
    """

    def __init__(
        self,
        scorer_of_dataset: Callable[[str], AnomalyScorer],
        img_size: int,
        device: torch.device,
        needs_other_classes: bool = False,
        origin: dict[str, Any] | None = None,
    ):
        self.img_size, self.device, self.origin = img_size, device, origin or {}
        self._make, self._needs_others = scorer_of_dataset, needs_other_classes
        self.of = lru_cache(maxsize=KEPT_SUBJECTS)(self._scorer_of)

    def _scorer_of(self, subject: Subject) -> AnomalyScorer:
        """The AnomalyScorer of a subject; its anchors are made once."""
        whole = self._needs_others and subject.dataset is not None
        return self._make(subject.dataset if whole else subject.registered())

    def __call__(
        self,
        photograph: str | Path | Image.Image | np.ndarray,
        text: str | Subject,
        tiling: Tiling | None = None,
        batch_size: int = 8,
    ) -> Prediction:
        """Score one photograph.

        Args:
            photograph: a file, a PIL image, or RGB bytes [H, W, 3].
            text: what it shows, such as "steel bolt"; or a Subject, for a class of a data set.
            tiling: for a photograph larger than the model; None to see it whole.
            batch_size: tiles scored together.

        Raises:
            FileNotFoundError, ValueError: the file is missing or no picture that can be read, or the text is empty.
        """
        subject = subject_of_text(text) if isinstance(text, str) else text
        picture = opened_photograph(photograph)
        scorer, views, items, done = self.of(subject), Views([], self.img_size, tiling), [], []
        joining = Joining(scorer.levels, views)
        for view in views.views_of(picture):
            items.append(view)
            if len(items) == batch_size:
                done += joining.add(*self._scored(scorer, subject, collated(items)))
                items = []
        if items:
            done += joining.add(*self._scored(scorer, subject, collated(items)))
        (found,) = done
        return Prediction(
            at_size(found.map, found.size), found.score, subject.text, found.head, scorer.levels
        )

    def score_files(
        self,
        pictures: Sequence[Path],
        subject: Subject,
        *,
        batch_size: int,
        workers: int = 0,
        tiling: Tiling | None = None,
    ) -> Iterator[ScoredPicture | Unreadable]:
        """Score files in batches; each comes when it is done, in whatever order, unreadable ones likewise."""
        scorer, views = self.of(subject), Views(pictures, self.img_size, tiling)
        joining = Joining(scorer.levels, views)
        for batch in batches(views, batch_size, workers, pinned=self.device.type == "cuda"):
            yield from batch.unreadable
            if batch.images is not None:
                yield from joining.add(*self._scored(scorer, subject, batch))

    def _scored(
        self, scorer: AnomalyScorer, subject: Subject, batch: Batch
    ) -> tuple[list[Place], np.ndarray, np.ndarray, float]:
        """(places, maps [b, S, S], heads [b], seconds of each view)."""
        begin = time.perf_counter()
        maps, heads = scorer.score(batch.images.to(self.device, non_blocking=True), subject.class_name)
        maps, heads = to_numpy(maps), to_numpy(heads)
        return batch.places, maps, heads, (time.perf_counter() - begin) / len(batch.places)


class Joining:
    """Views that come batch by batch, joined to pictures.

    Args:
        levels: a map is the sum of so many.
        views: tells which tiles a picture has.
    """

    def __init__(self, levels: int, views: Views):
        self._levels, self._views = levels, views
        self._open: dict[int, tuple[TiledMap, list[float], list[float]]] = {}

    def add(
        self, places: Sequence[Place], maps: np.ndarray, heads: np.ndarray, seconds: float
    ) -> list[ScoredPicture]:
        """Add scored views; returns the pictures that are whole now.

        The head score of a picture in tiles is its most abnormal tile's.
        """
        whole = []
        for place, scores, head in zip(places, maps, heads, strict=True):
            if place.box is None:
                whole.append(self._picture(place, scores, float(head), seconds))
                continue
            boxes = self._views.boxes(place.size)
            if place.picture not in self._open:
                self._open[place.picture] = TiledMap(place.size, boxes), [], []
            tiled, own_heads, own_seconds = self._open[place.picture]
            tiled.add(place.box, scores)
            own_heads.append(float(head))
            own_seconds.append(seconds)
            if len(own_heads) == len(boxes):
                del self._open[place.picture]
                whole.append(self._picture(place, tiled.finish(), max(own_heads), sum(own_seconds)))
        return whole

    def _picture(self, place: Place, scores: np.ndarray, head: float, seconds: float) -> ScoredPicture:
        score = float(unnormalised_score_of_peak(scores.max(), np.float32(head), self._levels))
        return ScoredPicture(place.picture, place.size, scores, head, score, seconds)


def to_numpy(values: Tensor) -> np.ndarray:
    """A tensor as float32 array, the one wait for the device per batch."""
    return values.float().cpu().numpy()


def opened_photograph(photograph: str | Path | Image.Image | np.ndarray) -> Image.Image:
    """An RGB picture of a file, a PIL image or RGB bytes [H, W, 3].

    Raises:
        FileNotFoundError, ValueError: it is none.
    """
    if isinstance(photograph, Image.Image):
        return photograph.convert("RGB")
    if isinstance(photograph, np.ndarray):
        if photograph.dtype != np.uint8 or photograph.ndim != 3 or photograph.shape[2] != 3:
            raise ValueError(
                f"an array of shape {list(photograph.shape)} and type {photograph.dtype}: expected RGB bytes [H, W, 3]"
            )
        return Image.fromarray(photograph)
    return read_photograph(photograph)


def load_scorer(
    run: Path | str | None = None,
    *,
    checkpoint: Path | str | None = None,
    loop: int | None = None,
    device: torch.device | str | None = None,
    settings: Settings | None = None,
    logger: logging.Logger | None = None,
    few_shot: FewShot | None = None,
) -> PhotographScorer:
    """The scorer of a trained run of any kind, or of the unadapted backbone (zero-shot, without training).

    Args:
        run: the run's folder; None for the unadapted backbone.
        checkpoint, loop: as in `load_run`.
        device: CUDA if there, else CPU when None.
        settings: of a command line, as in `load_run`'s `flags`; for the unadapted backbone they say which one it is.
        logger: told what was loaded.
        few_shot: sound pictures of the subject and their weight; None for zero-shot.

    Raises:
        FileNotFoundError, ValueError, RuntimeError: as `load_run` and `create_backbone`.
    """
    logger = logger or quiet_logger()
    if run is None:
        settings = settings or settings_of(GROUPS, {})
        where = choose_device(device or settings.run.device)
        clip = create_backbone(settings, where, logger)
        img_size = settings.model.img_size
        origin = {
            "kind": "raw CLIP",
            "backbone": clip.source.sha256,
            "model_name": settings.model.model_name,
            "tested_with": flags_at_test(settings),
        }
        make = partial(raw_clip_scorer, clip, img_size=img_size)
        make = partial(with_references, make, clip, few_shot)
        return PhotographScorer(make, img_size, where, origin=origin | told_of(few_shot))
    loaded = load_run(run, checkpoint, loop, device, flags=settings, logger=logger)
    contexts = loaded.settings.contexts
    origin = {
        "kind": loaded.kind.name,
        "checkpoint": str(loaded.checkpoint),
        "files": loaded.files,
        "backbone": loaded.model.clipmodel.source.sha256,
        "model_name": loaded.settings.model.model_name,
        "tested_with": flags_at_test(loaded.settings),
    }
    return PhotographScorer(
        partial(with_references, partial(scorer_of, loaded), loaded.model.clipmodel, few_shot),
        loaded.settings.model.img_size,
        next(loaded.model.parameters()).device,
        contexts is not None and contexts.context_control == "other_class",
        origin | told_of(few_shot),
    )


def with_references(
    make: Callable[[str], AnomalyScorer], clip: CLIP, few_shot: FewShot | None, name: str
) -> AnomalyScorer | WithReferences:
    """The scorer that `make` makes of a name, which also knows the normal references where there are some."""
    scorer = make(name)
    if few_shot is None:
        return scorer
    tiling = None if few_shot.overlap is None else Tiling(scorer.img_size, few_shot.overlap)
    views = Views(few_shot.references.pictures, scorer.img_size, tiling)
    return WithReferences(scorer, ReferenceBanks(clip, lambda _: reference_views(views)), few_shot.weight)


def reference_views(views: Views) -> Iterator[Tensor]:
    """The references as the model sees them, [3, S, S] each. Raises ValueError where one cannot be read."""
    for one in views:
        if isinstance(one, Unreadable):
            raise ValueError(f"--normal_references: {one.reason}")
        yield one[1]


def told_of(few_shot: FewShot | None) -> dict[str, Any]:
    """What a scorer's origin says of its normal references; {} of a zero-shot scorer."""
    return (
        {} if few_shot is None else {"few_shot": few_shot_record({"": few_shot.references}, few_shot.weight)}
    )
