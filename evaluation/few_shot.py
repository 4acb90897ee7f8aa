"""Which sound pictures are the normal references of an evaluation, their weight, and what its results say of them."""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils.data import Dataset

from dataset.anomaly_dataset import image_tensor
from dataset.folders import Scan
from dataset.image_files import read_image
from dataset.mask_values import UPSTREAM
from evaluation.normal_references import ReferenceBanks, WithReferences
from evaluation.scorer import AnomalyScorer
from files.atomic import sha256
from files.nearest import do_you_mean
from files.text import counted, read_json
from model.clip import CLIP
from run_folder.settings import Settings

WEIGHT_FILE = "reference_weight.json"  # in a run's folder, of `python -m evaluation.reference_weight`
TRAINED_RUN, RAW_CLIP, RARITY_ALONE = (
    "a trained run",
    "raw CLIP",
    "rarity alone",
)  # whose scores a weight suits


class References(NamedTuple):
    """The references of one class: the pictures' paths, and their content as one digest."""

    pictures: tuple[Path, ...]
    sha256: str


class FewShot(NamedTuple):
    """References of one subject, their weight, and how much their tiles overlap; None to see them whole."""

    references: References
    weight: float
    overlap: float | None = None


class ClassReferences(NamedTuple):
    """The references of every class of an evaluation, and their weight."""

    of_class: dict[str, References]
    weight: float


def require_folder(folder: Path | str) -> Path:
    """The folder itself. Raises FileNotFoundError where there is none."""
    if not Path(folder).is_dir():
        raise FileNotFoundError(
            f"--normal_references {folder}: no such folder of sound pictures; correct the path"
        )
    return Path(folder)


def references_in(folder: Path | str) -> References:
    """The pictures that lie in a folder itself.

    Raises:
        FileNotFoundError: there is no such folder, or no picture in it.
    """
    folder = require_folder(folder)
    pictures = tuple(Scan(folder).pictures(folder))
    if not pictures:
        raise FileNotFoundError(
            f"--normal_references {folder}: there is no picture in it; put one sound picture or more there"
        )
    return References(pictures, _digest(sorted(sha256(one) for one in pictures)))


def references_of_classes(folder: Path | str, class_names: Iterable[str]) -> dict[str, References]:
    """{class: the pictures of its own folder below `folder`}, the same number for every class.

    Raises:
        FileNotFoundError: a class has no folder, or no picture.
        ValueError: classes have different numbers of references, so that no k can be stated.
    """
    folder, found = require_folder(folder), {}
    for name in class_names:
        own = folder / name
        if not own.is_dir():
            there = [path.name for path in folder.iterdir() if path.is_dir()]
            raise FileNotFoundError(
                f"--normal_references {folder}: no folder {name}{do_you_mean(name, there)}: expected one folder of "
                "sound pictures for every class, called like the class"
            )
        found[name] = references_in(own)
    counts = {name: len(one.pictures) for name, one in found.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise ValueError(
            f"--normal_references {folder}: classes have different numbers of pictures ({listed}); give each the same"
        )
    return found


def refuse_references_among(tested: Sequence[Path | str], references: References) -> None:
    """Raises ValueError where a tested picture is one of the references, byte by byte; only equal sizes are read."""
    by_size: dict[int, dict[str, Path]] = {}
    for path in references.pictures:
        by_size.setdefault(os.path.getsize(path), {})[sha256(path)] = path
    for path in tested:
        same_size = by_size.get(os.path.getsize(path), {}) if os.path.isfile(path) else {}
        if same_size and sha256(path) in same_size:
            raise ValueError(
                f"{path} is the normal reference {same_size[sha256(path)]}: a picture is not tested against itself; "
                "take references from the training split"
            )


def check_references(settings: Settings) -> None:
    """Raises ValueError for flags of normal references that do not go together, before weights are looked for."""
    own = settings.own
    if own.normal_references is None:
        if own.reference_weight is not None:
            raise ValueError(
                f"--reference_weight {own.reference_weight}: does nothing without --normal_references; leave it away"
            )
        return
    if own.local_contrast:
        raise ValueError(
            "--normal_references: --local_contrast looks at no patches; leave one of the two away"
        )
    require_folder(own.normal_references)
    weight_of_evaluation(settings)


def class_references(settings: Settings, test_sets: dict[str, Dataset]) -> ClassReferences | None:
    """The normal references that test.py's settings name, checked before weights are looked for; None without any.

    Raises:
        FileNotFoundError, ValueError: as `references_of_classes`, or a tested picture is one of them.
    """
    own = settings.own
    if own.normal_references is None:
        return None
    references = references_of_classes(own.normal_references, test_sets)
    for class_name, images in test_sets.items():
        refuse_references_among([sample.image_path for sample in images.samples], references[class_name])
    return ClassReferences(references, weight_of_evaluation(settings))


def banks_of(
    references: ClassReferences | None, clip: CLIP | None, settings: Settings, keep: bool = False
) -> ReferenceBanks | None:
    """What the references are to a backbone; None without any. `keep` as ReferenceBanks's."""
    if references is None:
        return None
    upright = settings.data.mask_reading != UPSTREAM
    return ReferenceBanks(clip, images_of(references.of_class, settings.model.img_size, upright), keep)


def few_shot(
    scorer: AnomalyScorer,
    references: ClassReferences | None,
    banks: ReferenceBanks | None,
    name: str,
    info: dict[str, Any],
) -> tuple[Any, str, dict[str, Any]]:
    """(scorer, name, info) of an evaluation with normal references; as given without any."""
    if references is None:
        return scorer, name, info
    record = few_shot_record(references.of_class, references.weight)
    name += f" with {record['normal_references']} normal references"
    return WithReferences(scorer, banks, references.weight), name, info | {"few_shot": record}


def images_of(
    references: dict[str, References], img_size: int, upright: bool
) -> Callable[[str], Iterable[Tensor]]:
    """Function class name -> its references as the model sees them, [3, S, S] each, read when they are asked for."""

    def read(class_name):
        for path in references[class_name].pictures:
            yield image_tensor(read_image(str(path), "--normal_references", upright), img_size)

    return read


def few_shot_record(references: dict[str, References], weight: float) -> dict[str, Any]:
    """What results say of a few-shot evaluation: pictures a class, digest of all, weight."""
    (count,) = {len(one.pictures) for one in references.values()}
    digest = _digest([[name, one.sha256] for name, one in sorted(references.items())])
    return {"normal_references": count, "sha256": digest, "weight": weight}


def stated(few_shot: FewShot) -> str:
    """One sentence that says that scores are no zero-shot ones."""
    count = counted(len(few_shot.references.pictures), "normal reference")
    return (
        f"few-shot, not zero-shot: every patch is also held against {count}, with weight {few_shot.weight:g}"
    )


def weight_of_evaluation(settings: Settings) -> float:
    """`weight_for` what test.py's flags name."""
    own = settings.own
    scored_by = RARITY_ALONE if own.rarity_alone else RAW_CLIP if own.raw_clip else TRAINED_RUN
    return weight_for(settings.run.save_path, own.reference_weight, settings.data.dataset, scored_by)


def weight_for(
    save_path: Path | str, given: float | None, dataset: str | None = None, scored_by: str = TRAINED_RUN
) -> float:
    """The weight of normal references: the flag's, else the one that was found and stored in the run's folder.

    Args:
        dataset: what is tested; None where it is none.
        scored_by: TRAINED_RUN, RAW_CLIP or RARITY_ALONE; scores of each have a scale of their own.

    Raises:
        ValueError: neither is there, it is out of range, the file is none of that command's, or the weight was found on
            the data set that is tested or for scores of the other kind.
    """
    if given is not None:
        if not (given >= 0 and math.isfinite(given)):
            raise ValueError(f"--reference_weight {given}: expected 0 or more")
        return given
    path = Path(save_path) / WEIGHT_FILE
    if not path.is_file():
        raise ValueError(
            f"--normal_references needs a weight: find it on training classes (python -m evaluation.reference_weight "
            f"writes {path}), or give --reference_weight"
        )
    stored = stored_weight(path)
    if dataset is not None and stored["dataset"] == dataset:
        raise ValueError(
            f"{path}: the weight was found on {dataset}, which is tested here; find it on another data set, or give "
            "--reference_weight and say so"
        )
    if found_for(stored) not in (None, scored_by):
        raise ValueError(
            f"{path}: the weight was found for {found_for(stored)}, which is not what is tested, {scored_by}; find it "
            "for that (python -m evaluation.reference_weight, with another --save_path), or give --reference_weight"
        )
    return float(stored["weight"])


def found_for(stored: dict[str, Any]) -> str | None:
    """Whose scores a stored weight was found for; None where an older file does not say it."""
    if stored.get("rarity_alone"):
        return RARITY_ALONE
    if "raw_clip" not in stored:
        return None
    return RAW_CLIP if stored["raw_clip"] else TRAINED_RUN


def stored_weight(path: Path) -> dict[str, Any]:
    """What `python -m evaluation.reference_weight` stored. Raises ValueError where it is something else."""
    stored = read_json(path)
    is_number = isinstance(stored, dict) and type(stored.get("weight")) in (int, float)
    if (
        not is_number
        or not (stored["weight"] >= 0 and math.isfinite(stored["weight"]))
        or not isinstance(stored.get("dataset"), str)
    ):
        raise ValueError(
            f"{path}: expected the weight (0 or more) and the dataset that python -m evaluation.reference_weight "
            "writes; delete it and find the weight again, or give --reference_weight"
        )
    return stored


def _digest(values):
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()
