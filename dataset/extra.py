"""Extra training images from a second metadata file, such as synthetic anomalies: `--extra_meta`, `--extra_ratio`."""

import logging
import os
import random
from collections.abc import Sequence
from pathlib import Path

from dataset.constants import CLASS_NAMES
from dataset.jsonl import Sample, check_rows, parse_rows
from dataset.paths import DataFolder
from dataset.unknown import labelled


class ExtraFolder(DataFolder):
    """Paths of a metadata file relative to its own folder first, then as `DataFolder` reads them.

    What lies in the file's own folder may be outside the data root; nothing else may.
    """

    def __init__(self, dataset_name: str, data_root: Path, own: Path):
        super().__init__(dataset_name, data_root)
        self._own = os.path.realpath(own)

    def find(self, path: str) -> str:
        """The first candidate that is a file. Raises PathOutsideDataRoot or FileNotFoundError, as DataFolder does."""
        for spelled in (path, self._names.respelled(self._own, path)):
            real = os.path.realpath(os.path.join(self._own, spelled or path))
            if real.startswith(os.path.join(self._own, "")) and os.path.isfile(real):
                return real
        return super().find(path)

    def relative(self, path: str) -> str:
        """A found path as people see it: below the name of the file's folder, or relative to the data root."""
        if path.startswith(os.path.join(self._own, "")):
            return Path(os.path.basename(self._own), os.path.relpath(path, self._own)).as_posix()
        return super().relative(path)


def add_extra(
    samples: Sequence[Sample],
    extra_meta: str | os.PathLike | None,
    extra_ratio: float | None,
    dataset_name: str,
    data_root: Path,
    seed: int,
    logger: logging.Logger,
) -> list[Sample]:
    """The training samples followed by so many rows of `extra_meta` that these are a share `extra_ratio` of the whole.

    With N samples, M = round(N · ratio / (1 - ratio)) rows are added, each once, the same M rows in every epoch. They
    are chosen by `seed`: every class's rows are shuffled, then the classes take turns, so that all classes gain alike
    as far as the file goes. Labels are not balanced: they keep the file's proportion in expectation.
    Without both flags the samples are returned as they are.

    Raises ValueError for one flag without the other, a ratio outside (0, 1), too few rows, or rows that are bad or of
    a class the dataset does not have; FileNotFoundError for a missing file.
    """
    if extra_meta is None and extra_ratio is None:
        return list(samples)
    if extra_meta is None or extra_ratio is None:
        raise ValueError(
            f"--extra_meta is {extra_meta!r} and --extra_ratio {extra_ratio!r}: give both, or neither to train on "
            "the dataset alone"
        )
    if not 0 < extra_ratio < 1:
        raise ValueError(
            f"--extra_ratio is {extra_ratio}: expected the extra rows' share of the training set, between 0 and 1"
        )
    folder = ExtraFolder(dataset_name, data_root, Path(extra_meta).parent)
    rows = parse_rows(extra_meta)
    found = labelled(check_rows(rows, CLASS_NAMES[dataset_name], folder, str(extra_meta), logger))
    count = round(len(samples) * extra_ratio / (1 - extra_ratio))
    if not 0 < count <= len(found):
        largest = len(found) / (len(found) + len(samples))
        raise ValueError(
            f"--extra_ratio {extra_ratio} of a training set with {len(samples)} rows of its own needs {count} extra "
            f"rows, {extra_meta} has {len(found)}: use a ratio whose count is 1 to {len(found)} (at most "
            f"{largest:.3f}), or a file with more rows"
        )
    chosen = _in_turns(found, seed)[:count]
    anomalous = sum(sample.label for sample in chosen)
    logger.info(
        "%d extra rows from %s, %d of them anomalous, beside %d of %s; chosen with seed %d",
        count,
        extra_meta,
        anomalous,
        len(samples),
        dataset_name,
        seed,
    )
    return [*samples, *chosen]


def _in_turns(samples: list[Sample], seed: int) -> list[Sample]:
    """Every class's samples shuffled by the seed, then one of each class after the other; file order never matters."""
    by_class: dict[str, list[Sample]] = {}
    for sample in sorted(samples, key=lambda sample: sample.image_path):
        by_class.setdefault(sample.class_name, []).append(sample)
    turns = []
    for class_name, own in sorted(by_class.items()):
        random.Random(f"{seed}/extra/{class_name}").shuffle(own)
        turns += [(turn, class_name, sample) for turn, sample in enumerate(own)]
    return [sample for _, _, sample in sorted(turns, key=lambda entry: entry[:2])]
