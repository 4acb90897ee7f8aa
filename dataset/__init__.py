"""Images, masks and what they show: `get_dataset` is the way in, `constants` the registries of known datasets.

Where a dataset's rows come from, first match first: `--dataset_config`'s jsonl; dataset/metadata/<name>/; a jsonl in
the dataset's own folder; a scan of that folder in its published layout (`dataset.prepare`).
"""

import logging
import os
from pathlib import Path

from dataset.anomaly_dataset import Augmentation, BaseDataset, BaseSingleClassDataset
from dataset.constants import CLASS_NAMES, DATA_PATH, DOMAINS, METADATA_FILES
from dataset.custom import load_dataset_config, load_real_names, register_dataset
from dataset.extra import add_extra
from dataset.few_shot import select
from dataset.folders import say_what_has_no_row
from dataset.image_files import Reading
from dataset.jsonl import Sample, check_rows, parse_rows
from dataset.mask_values import mask_reading_of
from dataset.paths import DataFolder, dataset_folder, require_dataset_name, resolve_data_root
from dataset.prepare import scan
from dataset.randomness import EpochSampler
from dataset.survey import look_at_files
from dataset.unknown import for_training, labelled, say_what_is_unknown
from files.logs import quiet_logger

__all__ = [
    "CLASS_NAMES",
    "DATA_PATH",
    "DOMAINS",
    "BaseDataset",
    "BaseSingleClassDataset",
    "EpochSampler",
    "get_dataset",
    "load_dataset_config",
    "load_real_names",
    "register_dataset",
]

METADATA_FOLDER = Path(__file__).parent / "metadata"


def get_dataset(
    dataset_name: str,
    img_size: int,
    training_mode: str | None,
    shot: int,
    split: str | None = None,
    logger: logging.Logger | None = None,
    *,
    stage: str | None = None,
    data_root: str | os.PathLike | None = None,
    meta_path: str | os.PathLike | None = None,
    seed: int = 111,
    extra_meta: str | os.PathLike | None = None,
    extra_ratio: float | None = None,
    mask_reading: str | None = None,
    look: bool = True,
) -> tuple[BaseDataset, BaseDataset] | dict[str, BaseSingleClassDataset]:
    """Datasets for training or testing; every row of their metadata is checked here. The call forms are AA-CLIP's.

    split "train": (text set, image set), the same samples; the text set varies geometry, the image set colour too.
    split "test": {class: its samples}, in the order of CLASS_NAMES, all of them whatever `training_mode` (None will
    do) and `shot` are. `stage` is another name of `split`.
    `training_mode` "few_shot" takes `shot` images per class (0 = all) from <shot>-shot.jsonl, or chosen by `seed`;
    "full_shot" takes all. `data_root` defaults to $AACLIP_DATA, else ./data; `meta_path` names a full-shot file to
    read instead of the registered one. `seed` also keys the augmentation. `extra_meta` and `extra_ratio` add rows of
    another file to the training sets (`dataset.extra.add_extra`). `mask_reading`: as the flag; None is the data set's
    own. With `look` every file's header is read first, and what is odd is logged (`dataset.survey`).

    Raises ValueError for an unknown name, mode, split or bad metadata, for files that cannot be read or whose sizes
    differ, and FileNotFoundError for a missing root, dataset folder or file; messages say what to do.
    """
    if stage is not None and split is not None:
        raise ValueError(
            f"split {split!r} and stage {stage!r} are two names of one argument: give one of them"
        )
    split = stage if split is None else split
    modes = (None, "few_shot", "full_shot") if split == "test" else ("few_shot", "full_shot")
    for option, value, known in (
        ("training_mode", training_mode, modes),
        ("split", split, ("train", "test")),
    ):
        if value not in known:
            raise ValueError(f"{option} is {value!r}: expected {' or '.join(map(str, known))}")
    logger = logger or quiet_logger()
    require_dataset_name(dataset_name)
    root = resolve_data_root(data_root)
    reading = Reading(mask_reading_of(dataset_name, mask_reading))
    if split == "test":
        samples = _load_samples(dataset_name, root, 0, seed, meta_path, logger)
        reading = look_at_files(samples, dataset_name, reading, logger) if look else reading
        return _test_sets(samples, dataset_name, img_size, logger, reading)
    shot = 0 if training_mode == "full_shot" else shot
    samples = _load_samples(dataset_name, root, shot, seed, meta_path, logger)
    samples = add_extra(samples, extra_meta, extra_ratio, dataset_name, root, seed, logger)
    samples = for_training(samples, dataset_name, logger)
    reading = look_at_files(samples, dataset_name, reading, logger, training=True) if look else reading
    return tuple(
        BaseDataset(samples, img_size, Augmentation(stage, colour, seed), logger, reading)
        for stage, colour in (("text", False), ("image", True))
    )


def _test_sets(
    samples: list[Sample], dataset_name: str, img_size: int, logger: logging.Logger, reading: Reading
):
    say_what_is_unknown(samples, dataset_name, logger)
    by_class = {
        class_name: [sample for sample in samples if sample.class_name == class_name]
        for class_name in CLASS_NAMES[dataset_name]
    }
    return {
        class_name: BaseSingleClassDataset(own, img_size, class_name, logger, reading)
        for class_name, own in by_class.items()
        if own
    }


def _load_samples(
    dataset_name: str,
    data_root: Path,
    shot: int,
    seed: int,
    meta_path: str | os.PathLike | None,
    logger: logging.Logger,
) -> list[Sample]:
    """Checked samples from the first source that has them; `shot` 0 means all."""
    named = meta_path or METADATA_FILES.get(dataset_name)
    folders = [METADATA_FOLDER / dataset_name, dataset_folder(dataset_name, data_root)]
    few_shot = _first_file(folders, f"{shot}-shot.jsonl") if shot > 0 and not named else None
    file = few_shot or named or _first_file(folders, "full-shot.jsonl")
    data = DataFolder(dataset_name, data_root, beside=Path(file).parent if file else None)
    if file:
        source = str(file)
        logger.info("%s: rows from %s", dataset_name, source)
        rows = parse_rows(file)
    else:
        source = f"scan of {data.folder}"
        logger.info("%s: no full-shot.jsonl, rows from a %s", dataset_name, source)
        found = scan(dataset_name, data.folder, logger)
        rows = [(f"{source}, row {number}", row) for number, row in enumerate(found, start=1)]
    samples = check_rows(rows, CLASS_NAMES[dataset_name], data, source, logger)
    if file and not few_shot:
        say_what_has_no_row(samples, [row for _, row in rows], dataset_name, data.folder, logger)
    if few_shot or shot == 0:
        return samples
    logger.info("%s: %d-shot rows chosen with seed %d", dataset_name, shot, seed)
    return select(labelled(samples), shot, seed)


def _first_file(folders: list[Path], name: str) -> Path | None:
    return next((folder / name for folder in folders if (folder / name).is_file()), None)
