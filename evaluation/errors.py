"""The pictures an evaluation is most wrong about, as one page with their heatmaps: `test.py --errors N`.

A false alarm's rank is the share of its class's defective pictures that score lower, a miss's the share of its class's
sound pictures that score higher: no threshold is chosen, and classes of different scales stand in one list. Only the
listed pictures are scored a second time, for their maps.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset, Subset

from dataset.image_files import read_image_of
from evaluation.photographs.drawing import data_uri, small
from evaluation.picture_folders import what_is_shown
from evaluation.picture_scores import PictureScore
from evaluation.predictions import predict_batches, sees_another_image
from evaluation.scorer import AnomalyScorer
from files.atomic import write_text
from files.cells import plain
from files.names import safe_name
from files.pictures import outline, overlay

TEMPLATES = Path(__file__).parent / "templates"
SIDE = 320  # longer side of an embedded picture, in pixels
EVALUATION = '<meta name="evaluation" content="{}">'  # of a page's head: what its numbers were made of


class Mistake(NamedTuple):
    """A picture on the wrong side of pictures of its class."""

    picture: PictureScore
    number: int  # in its class's data set
    share: float  # of the class's pictures of the other label on whose wrong side it lies; a tie counts half
    place: int  # among its class's pictures of its own label, 0 for the worst


class Drawn(NamedTuple):
    """What a page shows of a mistake; pictures are RGB bytes or scores [H, W] at the page's size."""

    photograph: np.ndarray
    truth: (
        np.ndarray | None
    )  # the photograph with the true defect's edge; None where there is none or nobody knows it
    scores: np.ndarray
    low: float
    high: float


def mistakes_in(pictures: Sequence[PictureScore], label: int) -> list[Mistake]:
    """All pictures of one label that lie on the wrong side of one of the other label, the worst first.

    Args:
        pictures: of all classes, each class in its data set's order; those without a label are left out.
        label: 0 for false alarms, 1 for misses.
    """
    by_class: dict[str, list[PictureScore]] = {}
    for one in pictures:
        by_class.setdefault(one.class_name, []).append(one)
    found = []
    for own in by_class.values():
        numbers = [number for number, one in enumerate(own) if one.label == label]
        others = np.sort([one.score for one in own if one.label == 1 - label])
        scores = np.array([own[number].score for number in numbers])
        if not len(others) or not numbers:
            continue
        lower = sum(np.searchsorted(others, scores, side) for side in ("left", "right")) / 2 / len(others)
        share = 1 - lower if label else lower
        places = np.argsort(np.argsort(scores if label else -scores, kind="stable"))
        found += [
            Mistake(own[number], number, float(wrong), int(place))
            for number, wrong, place in zip(numbers, share, places, strict=True)
            if wrong > 0
        ]
    return sorted(found, key=lambda one: (-one.share, one.place, one.picture.class_name, one.picture.file))


def draw(
    mistakes: Sequence[Mistake],
    scorer: AnomalyScorer,
    test_sets: dict[str, Dataset],
    *,
    batch_size: int,
    device: torch.device,
) -> list[Drawn]:
    """Score the pictures of some mistakes again, class by class, and shrink what is shown of them.

    Where a picture's scores depend on another of its batch, under a control, its whole class is scored again.
    """
    drawn: dict[tuple[str, int], Drawn] = {}
    for name in dict.fromkeys(one.picture.class_name for one in mistakes):
        images = test_sets[name]
        numbers = [one.number for one in mistakes if one.picture.class_name == name]
        scored = range(len(images)) if sees_another_image(scorer) else numbers
        waiting = iter(scored)
        for batch in predict_batches(
            scorer, Subset(images, scored), name, batch_size=batch_size, device=device
        ):
            for scores, mask, known in zip(
                *(batch[key] for key in ("maps", "masks", "mask_known")), strict=True
            ):
                number = next(waiting)
                if number not in numbers:
                    continue
                photograph = small(np.asarray(read_image_of(images.samples[number], images.reading)), SIDE)
                size = photograph.shape[1::-1]
                edge = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
                drawn[name, number] = Drawn(
                    photograph,
                    outline(photograph, edge) if known and mask.any() else None,
                    cv2.resize(scores, size, interpolation=cv2.INTER_LINEAR),
                    float(scores.min()),
                    float(scores.max()),
                )
    return [drawn[one.picture.class_name, one.number] for one in mistakes]


def errors_file(save_path: Path | str, dataset: str, checkpoint: str) -> Path:
    """Where the page of one evaluation lies; `checkpoint` as in metrics.json."""
    return Path(save_path) / "errors" / safe_name(dataset) / f"{safe_name(checkpoint)}.html"


def clear_stale_page(path: Path, info: dict[str, Any]) -> bool:
    """Delete a page that shows another evaluation than the one that is written now.

    Args:
        info: of evaluation.provenance.provenance.

    Returns:
        whether it was deleted.
    """
    if not path.is_file() or evaluation_mark(info) in path.read_text(encoding="utf-8"):
        return False
    path.unlink()
    return True


def evaluation_mark(info: dict[str, Any]) -> str:
    """A line of a page's head that differs where the evaluation does."""
    made_of = json.dumps(what_is_shown(info), sort_keys=True, default=str)
    return EVALUATION.format(hashlib.sha256(made_of.encode()).hexdigest())


def write_errors(
    path: Path,
    title: str,
    count: int,
    pictures: Sequence[PictureScore],
    info: dict[str, Any],
    how: dict[str, Any],
) -> tuple[int, int]:
    """Write the page of the `count` worst false alarms and the `count` worst misses.

    Args:
        title: data set, checkpoint and image size.
        pictures: all of the evaluation, each class in its data set's order.
        info: of evaluation.provenance.provenance.
        how: arguments of `draw`: scorer, test_sets, batch_size, device.

    Returns:
        how many false alarms and misses it shows; fewer than `count` where there are no more.
    """
    from jinja2 import Environment, FileSystemLoader  # most evaluations write no page

    sides = {label: mistakes_in(pictures, label) for label in (0, 1)}
    shown = {label: found[:count] for label, found in sides.items()}
    listed = [*shown[0], *shown[1]]
    drawn = draw(listed, **how)
    scale = (min((one.low for one in drawn), default=0.0), max((one.high for one in drawn), default=1.0))
    cards = [card(one, picture, scale) for one, picture in zip(listed, drawn, strict=True)]
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    sections = [
        ("False alarms", "sound", "defective", "lower", cards[: len(shown[0])], len(sides[0])),
        ("Misses", "defective", "sound", "higher", cards[len(shown[0]) :], len(sides[1])),
    ]
    counts = {label: sum(one.label == label for one in pictures) for label in (0, 1)}
    page = environment.get_template("errors.html").render(
        title=plain(title), scale=scale, sections=sections, counts=counts, mark=evaluation_mark(info)
    )
    write_text(path, page)
    return len(shown[0]), len(shown[1])


def card(one: Mistake, drawn: Drawn, scale: tuple[float, float]) -> dict[str, Any]:
    """One picture of the page."""
    heat = overlay(drawn.photograph, drawn.scores, *scale)
    figures = [("picture", data_uri(drawn.photograph))]
    if drawn.truth is not None:
        figures.append(("true defect, outlined", data_uri(drawn.truth)))
    elif one.picture.label:
        figures[0] = ("picture; the defect's place is unknown", figures[0][1])
    figures.append(("heatmap, common scale", data_uri(heat)))
    return {
        "class_name": plain(one.picture.class_name),
        "file": plain(one.picture.file),
        "share": one.share,
        "picture": one.picture,
        "figures": figures,
    }
