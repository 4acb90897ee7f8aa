"""A threshold from normal pictures alone, with a false positive rate that holds for finitely many of them.

Split conformal prediction (V. Vovk, A. Gammerman, G. Shafer, "Algorithmic Learning in a Random World", 2005): of n
normal pictures and one more from the same source, every order of the n + 1 scores is equally likely, so that the one
more exceeds the k-th smallest of the n with probability at most 1 - k / (n + 1), whatever the scores' distribution.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import scipy

from dataset.jsonl import read_rows
from evaluation.photographs.scorer import PhotographScorer
from evaluation.photographs.subject import Subject
from evaluation.photographs.tiles import Tiling
from files.atomic import write_text

THRESHOLDS = "thresholds.json"  # in a run's folder
COVERAGE = 0.9  # of the interval


@dataclass(frozen=True)
class Calibration:
    """`threshold`: scores from it on are anomalous. `false_positive_rate`: what was asked for and holds on average over
    draws of `normal_pictures`; `interval`: where the rate of this very draw lies with probability 0.9 (if scores are
    continuous)."""

    threshold: float
    false_positive_rate: float
    normal_pictures: int
    interval: tuple[float, float]


def pictures_needed(false_positive_rate: float) -> int:
    """The fewest normal pictures that a rate can be kept with."""
    return math.ceil(1 / Fraction(str(false_positive_rate))) - 1


def calibrated(scores: Sequence[float], false_positive_rate: float) -> Calibration:
    """The lowest threshold that a normal picture reaches with the rate's probability at most.

    Args:
        scores: of normal pictures [n].

    Raises:
        ValueError: the rate is not between 0 and 1, or there are too few pictures for it.
    """
    check_rate(false_positive_rate)
    count = len(scores)
    check_count(count, false_positive_rate)
    above = math.floor((count + 1) * Fraction(str(false_positive_rate)))  # exact: 20 * 0.05 is 1
    rank = count + 1 - above
    exceeded = sorted(scores)[rank - 1]
    tails = (1 - COVERAGE) / 2, (1 + COVERAGE) / 2
    low, high = (float(end) for end in scipy.stats.beta.ppf(tails, above, rank))
    # whatever is above the score, not at it, is anomalous
    return Calibration(math.nextafter(exceeded, math.inf), false_positive_rate, count, (low, high))


def check_count(count: int, false_positive_rate: float) -> None:
    """Raises ValueError where so few normal pictures cannot keep the rate."""
    if count < pictures_needed(false_positive_rate):
        raise ValueError(
            f"--false_positive_rate {false_positive_rate}: needs {pictures_needed(false_positive_rate)} normal "
            f"pictures, got {count}; give more, or a rate of {1 / (count + 1):.3g} and above"
        )


def check_rate(false_positive_rate: float) -> None:
    """Raises ValueError where it is not between 0 and 1."""
    if not 0 < false_positive_rate < 1:
        raise ValueError(
            f"--false_positive_rate {false_positive_rate}: expected a share between 0 and 1, such as 0.05"
        )


def refuse_abnormal(pictures: Sequence[Path], rows_file: Path | str) -> None:
    """Refuse pictures that rows of a metadata file call anomalous; their paths are relative to the file's folder.

    Raises:
        ValueError: names the first; or one that no row names, of which the rows say nothing.
    """
    folder = Path(rows_file).parent
    rows = {
        (folder / str(row.get("image_path"))).resolve(): (source, row.get("label"))
        for source, row in read_rows(rows_file)
    }
    unnamed = [path for path in pictures if path.resolve() not in rows]
    if unnamed:
        raise ValueError(
            f"{rows_file}: no row names {len(unnamed)} of {len(pictures)} pictures, such as {unnamed[0]}; "
            "image_path is taken relative to the file's folder: put the file there, or leave --rows away"
        )
    abnormal = {path: source for path, (source, label) in rows.items() if label == 1}
    found = [path for path in pictures if path.resolve() in abnormal]
    if found:
        raise ValueError(
            f"{len(found)} of {len(pictures)} pictures are anomalous, says {abnormal[found[0].resolve()]}: {found[0]}; "
            "a threshold comes from normal pictures alone, take them out"
        )


def what_is_scored(scorer: PhotographScorer, subject: Subject, tiling: Tiling | None) -> dict[str, Any]:
    """What a threshold holds for, as JSON: weights, words, image size and tiles."""
    return {
        "class_name": subject.class_name,
        "text": subject.text,
        "domain": subject.domain,
        "img_size": scorer.img_size,
        "tile": None if tiling is None else tiling.overlap,
        "files": scorer.origin.get("files", {}),
        "backbone": scorer.origin.get("backbone"),
        "tested_with": scorer.origin.get("tested_with", {}),
        **({"few_shot": scorer.origin["few_shot"]} if "few_shot" in scorer.origin else {}),
    }


def stored(path: Path | str) -> list[dict[str, Any]]:
    """The entries of a thresholds file; [] where there is none.

    Raises:
        ValueError: it is no such file.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise ValueError(
            f"{path}: cannot be read as JSON ({error}); delete it and calibrate again"
        ) from error
    keys = {"scored", "threshold"}
    if not isinstance(found, list) or not all(isinstance(one, dict) and keys <= one.keys() for one in found):
        raise ValueError(
            f"{path}: expected a list of thresholds as calibrate.py writes it; delete it and calibrate again"
        )
    return found


def store(path: Path | str, calibration: Calibration, scored: dict[str, Any]) -> None:
    """Put a threshold into a file, in the place of an earlier one for the same."""
    others = [one for one in stored(path) if one["scored"] != scored]
    write_text(path, json.dumps([*others, asdict(calibration) | {"scored": scored}], indent=1) + "\n")


def entries_of(path: Path | str, text: str) -> list[dict[str, Any]]:
    """The stored entries of what pictures are said to show.

    Raises:
        ValueError: there is none; says what is stored.
    """
    entries = [one for one in stored(path) if isinstance(one["scored"], dict)]
    if found := [one for one in entries if one["scored"].get("text") == text]:
        return found
    there = ", ".join(sorted({repr(one["scored"].get("text")) for one in entries})) or "none"
    raise ValueError(
        f"--calibrated: no threshold for {text!r} in {path}: it has {there}; calibrate with the same flags"
    )


def threshold_for(path: Path | str, scored: dict[str, Any]) -> float:
    """The stored threshold for what is scored.

    Raises:
        ValueError: there is none; says what is stored.
    """
    near = entries_of(path, scored["text"])
    for one in near:
        if one["scored"] == scored:
            return float(one["threshold"])
    others = [one["scored"] for one in near]
    differing = sorted(
        {key for other in others for key in scored | other if other.get(key) != scored.get(key)}
    )
    raise ValueError(
        f"--calibrated: no threshold for {scored['text']!r} in {path}: those of {scored['text']!r} differ in "
        f"{', '.join(differing)}; calibrate with the same flags"
    )
