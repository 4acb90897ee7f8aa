"""What a prediction leaves behind: scores.csv, scores.json, heatmaps, masks, and one page of all pictures."""

import io
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader

from evaluation.photographs.drawing import data_uri, labelled_heatmap, small, write_mask
from evaluation.photographs.scorer import ScoredPicture, at_size, mask_of
from evaluation.photographs.views import Unreadable, read_photograph
from files.atomic import write_text
from files.cells import CellWriter, plain
from files.pictures import overlay, write_png

MADE_BY = "predict.py"
SCORES, TABLE, PAGE, LOG = "scores.json", "scores.csv", "index.html", "predict.log"
OWN, COMMON, MASKS, MAPS = "heatmaps", "heatmaps_common_scale", "masks", ".maps"
THUMBNAIL = 360  # longer side of a picture on the page, in pixels
COLUMNS = ("file", "score", "decision", "text", "width", "height", "seconds", "heatmap", "mask")
TEMPLATES = Path(__file__).parent / "templates"


class Scored(NamedTuple):
    """A scored picture without its map, which lies in a file.

    `decision`: "anomalous", "normal", or "" without a threshold. `low`, `high`: ends of its map.
    """

    number: int
    file: str
    name: str  # of its PNGs
    size: tuple[int, int]
    score: float
    head: float
    low: float
    high: float
    decision: str
    seconds: float


@dataclass(frozen=True)
class PredictedFolder:
    """A prediction of many pictures, as its files tell it.

    `common_scale`: lowest and highest map score of all pictures. `mask_threshold`: on the map instead of on the score.
    """

    out: Path
    text: str
    levels: int
    threshold: float | None
    mask_threshold: float | None
    pictures: Sequence[Scored] = ()
    skipped: Sequence[tuple[str, str]] = ()  # (file, reason)
    common_scale: tuple[float, float] = (0.0, 1.0)
    few_shot: str = ""  # what is to be said of normal references

    @property
    def masks(self) -> bool:
        """Whether there is a threshold to make masks from."""
        return self.threshold is not None or self.mask_threshold is not None

    def mask(self, one: Scored, scores: np.ndarray) -> np.ndarray:
        """The mask [H, W] bool of a picture's map."""
        if self.mask_threshold is not None:
            return scores >= np.float64(self.mask_threshold)
        return mask_of(scores, one.head, self.levels, self.threshold)


def prepare_folder(out: Path | str) -> Path:
    """Make the folder of a prediction; what an earlier one left in it stays.

    Raises:
        ValueError: it holds something else.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()) and not _is_prediction(out):
        raise ValueError(
            f"--out {out} holds files that are no earlier prediction's: name a folder that is empty or does not exist"
        )
    if not (out / SCORES).exists():
        mark_unfinished(out)
    return out


def mark_unfinished(out: Path) -> None:
    """Write a scores.json that says whose folder it is and that nothing is in it yet."""
    write_text(out / SCORES, json.dumps({"made_by": MADE_BY, "unfinished": True}) + "\n")


def clear_folder(out: Path) -> None:
    """Delete what an earlier prediction left in its folder."""
    mark_unfinished(out)
    for folder in (OWN, COMMON, MASKS):
        for picture in (out / folder).glob("*.png"):
            picture.unlink()
    for name in (TABLE, PAGE):
        (out / name).unlink(missing_ok=True)
    shutil.rmtree(out / MAPS, ignore_errors=True)


def _is_prediction(out: Path) -> bool:
    try:
        found = json.loads((out / SCORES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("made_by") == MADE_BY


def kept(
    prediction: PredictedFolder,
    found: Iterable[ScoredPicture | Unreadable],
    files: Sequence[Path],
    names: Sequence[str],
) -> PredictedFolder:
    """The prediction with what a scorer found; maps go to files, so that memory does not grow with the pictures."""
    (prediction.out / MAPS).mkdir(exist_ok=True)
    pictures, skipped = [], {}
    for one in found:
        if isinstance(one, Unreadable):
            skipped[one.picture] = (str(files[one.picture]), one.reason)
            continue
        np.save(map_file(prediction, one.number), one.map)
        decision = ""
        if prediction.threshold is not None:
            decision = "anomalous" if one.score >= prediction.threshold else "normal"
        ends = float(one.map.min()), float(one.map.max())
        file, name = str(files[one.number]), names[one.number]
        pictures.append(
            Scored(one.number, file, name, one.size, one.score, one.head, *ends, decision, one.seconds)
        )
    pictures.sort(key=lambda one: (-one.score, one.number))
    scale = (min(one.low for one in pictures), max(one.high for one in pictures)) if pictures else (0.0, 1.0)
    return replace(
        prediction,
        pictures=pictures,
        skipped=[skipped[number] for number in sorted(skipped)],
        common_scale=scale,
    )


def map_file(prediction: PredictedFolder, number: int) -> Path:
    """Where the map of a picture waits for being drawn."""
    return prediction.out / MAPS / f"{number}.npy"


def write_tables(prediction: PredictedFolder, info: dict[str, Any]) -> None:
    """Write scores.csv and scores.json, pictures by falling score; `info` stands in the latter."""
    rows = [row_of(prediction, one) for one in prediction.pictures]
    text = io.StringIO()
    writer = CellWriter(text, lineterminator="\n")
    writer.writerows([COLUMNS, *([row[key] for key in COLUMNS] for row in rows)])
    write_text(prediction.out / TABLE, text.getvalue())
    content = {"made_by": MADE_BY} | info
    content |= {
        "threshold": prediction.threshold,
        "mask_threshold": prediction.mask_threshold,
        "common_scale": prediction.common_scale,
        "pictures": [
            row | {"decision": one.decision or None, "head": one.head, "map_range": [one.low, one.high]}
            for row, one in zip(rows, prediction.pictures, strict=True)
        ],
        "skipped": [{"file": file, "reason": reason} for file, reason in prediction.skipped],
    }
    write_text(prediction.out / SCORES, json.dumps(content, indent=1) + "\n")


def row_of(prediction: PredictedFolder, one: Scored) -> dict[str, Any]:
    """A picture's row of scores.csv."""
    width, height = one.size
    mask = f"{MASKS}/{one.name}" if prediction.masks else ""
    values = (one.file, one.score, one.decision, prediction.text, width, height, one.seconds)
    return dict(zip(COLUMNS, (*values, f"{OWN}/{one.name}", mask), strict=True))


def draw(
    prediction: PredictedFolder, on_page: int, workers: int = 0
) -> Iterator[dict[str, str] | Unreadable]:
    """Draw every picture, by falling score.

    Args:
        on_page: so many have small pictures for the page.
        workers: threads.

    Yields:
        {"photograph", "own", "common"} -> source of an HTML image, {} for what is not on the page; Unreadable for a
        file that was taken away or replaced meanwhile.
    """
    pool = ThreadPoolExecutor(max(1, workers))
    ranked = enumerate(prediction.pictures)
    try:
        yield from pool.map(lambda ranked: draw_one(prediction, ranked[1], ranked[0] < on_page), ranked)
    finally:
        pool.shutdown(cancel_futures=True)  # after an error nothing more is drawn


def draw_one(prediction: PredictedFolder, one: Scored, on_page: bool) -> dict[str, str] | Unreadable:
    """Write the PNGs of one picture; what `draw` yields."""
    try:
        photograph = np.asarray(read_photograph(one.file))
        if photograph.shape[1::-1] != one.size:
            raise ValueError(f"--input: {one.file!r} was replaced while it was scored: score it again")
    except (OSError, ValueError) as error:
        return Unreadable(one.number, str(error))
    scores = at_size(np.load(map_file(prediction, one.number)), one.size)
    words = ["score", f"{one.score:.5f}", *([one.decision] if one.decision else [])]
    scales = {OWN: ("own scale", (one.low, one.high)), COMMON: ("common scale", prediction.common_scale)}
    for folder, (title, scale) in scales.items():
        write_png(
            prediction.out / folder / one.name, labelled_heatmap(photograph, scores, scale, [*words, title])
        )
    if prediction.masks:
        write_mask(prediction.out / MASKS / one.name, prediction.mask(one, scores))
    if not on_page:
        return {}
    tiny, tiny_scores = small(photograph, THUMBNAIL), small(scores, THUMBNAIL)
    return {
        "photograph": data_uri(tiny),
        "own": data_uri(overlay(tiny, tiny_scores, one.low, one.high)),
        "common": data_uri(overlay(tiny, tiny_scores, *prediction.common_scale)),
    }


def write_page(prediction: PredictedFolder, small_pictures: Sequence[dict[str, str]], summary: str) -> Path:
    """Write the page of all pictures by falling score; returns its path.

    Args:
        small_pictures: of the first pictures, as `draw` yields them; one without stands in the page in words.
        summary: what was done, one sentence.
    """
    cards = [
        one._asdict() | {"file": plain(one.file), "path": one.name, "sources": sources}
        for one, sources in zip(prediction.pictures, small_pictures, strict=False)
    ]
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("page.html").render(
        text=plain(prediction.text),
        summary=plain(summary),
        cards=cards,
        total=len(prediction.pictures),
        decided={word: sum(one.decision == word for one in prediction.pictures) for word in DECISIONS},
        prediction=prediction,
        skipped=[(plain(file), plain(reason)) for file, reason in prediction.skipped],
        folders={"own": OWN, "common": COMMON, "masks": MASKS},
    )
    path = prediction.out / PAGE
    write_text(path, page)
    return path


DECISIONS = ("anomalous", "normal")
