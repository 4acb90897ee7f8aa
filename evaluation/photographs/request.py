"""What predict.py and calibrate.py are asked to score and with what: flags, checked before weights are looked for."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from evaluation.few_shot import FewShot, references_in, refuse_references_among, weight_for
from evaluation.photographs.subject import DOMAIN_NAMES, Subject, subject_of_class, subject_of_text
from evaluation.photographs.tiles import Tiling
from forward_utils import prompts_of
from model.settings import option
from run_folder.kinds import find_run
from run_folder.loaded_run import GROUPS as RUN_GROUPS
from run_folder.loaded_run import describe_run
from run_folder.settings import DataSettings, RunSettings, Settings


def as_in(group: type, name: str) -> Any:
    """The flag of this name as another command's group declares it: default, help and all."""
    (one,) = (one for one in fields(group) if one.name == name)
    return field(default=one.default, metadata=one.metadata)


@dataclass(frozen=True)
class ScoringSettings:
    """scoring"""

    run: str | None = option(None, "folder of a trained run of any kind")
    raw_clip: bool = option(False, "the unadapted backbone instead of a run: zero-shot without training")
    checkpoint: str | None = option(None, "image checkpoint file of the run; default its last")
    epoch: int | None = option(None, "the run's image checkpoint after this many epochs instead of the last")
    loop: int | None = option(None, "this loop of a feedback run instead of its final model")
    input: list = option([], "files, folders of pictures, patterns", type=str, nargs="+")
    class_name: str | None = option(None, "class of a data set: the pictures show what its prompts say")
    text: str | None = option(None, "or in own words what the pictures show, such as 'steel bolt'")
    domain: str | None = option(
        None, "chooses the blur of maps; default the class's, Industrial for --text", choices=DOMAIN_NAMES
    )
    normal_references: str | None = option(
        None, "few-shot: folder of sound pictures of the same thing, which patches are also held against"
    )
    reference_weight: float | None = option(
        None, "weight of the references; default what evaluation.reference_weight stored in the run's folder"
    )
    tile: bool = option(False, "cut pictures larger than --img_size into overlapping tiles")
    tile_overlap: float = option(0.25, "share of a tile that neighbours have in common at least")
    batch_size: int = option(8, "views scored together; changes rounding only")
    matmul: str = as_in(RunSettings, "matmul")


@dataclass(frozen=True)
class ClassSettings:
    """data"""

    dataset: str | None = option(None, "data set whose class --class_name is, where several have it")
    dataset_config: str | None = as_in(DataSettings, "dataset_config")
    real_names: str | None = as_in(DataSettings, "real_names")


@dataclass(frozen=True)
class ProcessSettings:
    """run"""

    seed: int = option(111, "seed of what a loaded network overwrites")
    device: str | None = as_in(RunSettings, "device")
    workers: int = as_in(RunSettings, "workers")
    fast: bool = as_in(RunSettings, "fast")


def groups(own: type) -> dict[str, type]:
    """The groups of flags of a command with these of its own."""
    return {"own": own, **RUN_GROUPS, "data": ClassSettings, "run": ProcessSettings}


def check_scoring(settings: Settings) -> None:
    """Raises ValueError for flags of scoring that do not go together or are out of range."""
    own, given = settings.own, settings.explicit
    if (own.run is None) != own.raw_clip:
        raise ValueError("give either --run RUN or --raw_clip: what scores the pictures")
    if (own.class_name is None) == (own.text is None):
        raise ValueError("give either --class_name NAME or --text 'steel bolt': what the pictures show")
    if not own.input:
        raise ValueError("--input is missing: name files, folders or patterns of pictures")
    check_ranges(
        ("batch_size", own.batch_size, own.batch_size >= 1, "1 or more"),
        ("tile_overlap", own.tile_overlap, 0 <= own.tile_overlap <= 0.9, "a share from 0 to 0.9"),
        ("img_size", settings.model.img_size, settings.model.img_size >= 1, "a positive number of pixels"),
    )
    for flag, needed, there in (
        ("tile_overlap", "--tile", own.tile),
        ("dataset", "--class_name", own.class_name is not None),
        ("reference_weight", "--normal_references", own.normal_references is not None),
        *((flag, "--run", own.run is not None) for flag in ("checkpoint", "epoch", "loop")),
    ):
        if flag in given and not there:
            raise ValueError(f"--{flag}: does nothing without {needed}; leave it away")


def named_references(settings: Settings, pictures: Sequence[Path]) -> FewShot | None:
    """The normal references that are named and their weight; None without any.

    Args:
        pictures: what is scored.

    Raises:
        FileNotFoundError, ValueError: there are none, one is scored itself, or no weight is known.
    """
    own = settings.own
    if own.normal_references is None:
        return None
    references = references_in(own.normal_references)
    refuse_references_among(pictures, references)
    if own.run is None and own.reference_weight is None:
        raise ValueError("--raw_clip with --normal_references: has no run's folder, give --reference_weight")
    weight = weight_for(own.run or ".", own.reference_weight)
    return FewShot(references, weight, own.tile_overlap if own.tile else None)


def check_ranges(*checks: tuple[str, Any, bool, str]) -> None:
    """Raises ValueError for the first (flag, value, whether it holds, what is expected) that does not hold."""
    for flag, value, holds, expected in checks:
        if not holds:
            raise ValueError(f"--{flag} {value}: expected {expected}")


def is_number(value: float | None) -> bool:
    """Whether a value is finite, or not given."""
    return value is None or math.isfinite(value)


def tiling_of(settings: Settings, img_size: int) -> Tiling | None:
    """The tiles that --tile asks for."""
    return Tiling(img_size, settings.own.tile_overlap) if settings.own.tile else None


def named_subject(settings: Settings) -> Subject:
    """What the pictures show. Raises ValueError for an unknown class, or words too long for the text tower."""
    own = settings.own
    if own.text is not None:
        subject = subject_of_text(own.text, own.domain)
    else:
        subject = subject_of_class(own.class_name, settings.data.dataset, own.domain)
    prompts_of(subject.registered(), subject.class_name)
    return subject


def checked_checkpoint(settings: Settings) -> Path | None:
    """The image checkpoint that is to be loaded, whose record agrees with the flags; None for raw CLIP."""
    own = settings.own
    if own.run is None:
        return None
    kind, (file,) = find_run(own.run, own.checkpoint, loop=own.loop, epoch=own.epoch)
    describe_run(file, kind, settings)
    return file
