"""What every process of one study has to agree on, kept in study.json: a run made otherwise is never mixed in."""

import hashlib
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from dataset import get_dataset
from dataset.jsonl import Sample
from dataset.prepare.published import PUBLISHED
from files.atomic import sha256, write_text
from files.logs import quiet_logger
from model.weights_file import find_weights, published_as
from studies.arm_runs import ROOT

STUDY = "study.json"
FROZEN = (  # what turns runs into a verdict
    "compare.py",
    "comparison/*.py",
    "metrics/*.py",
    "studies/real_study/analysis.py",
    "studies/real_study/anchors.py",
)


def analysis_files() -> dict[str, str]:
    """{file: SHA-256} of the frozen analysis."""
    files = sorted(file for pattern in FROZEN for file in ROOT.glob(pattern))
    return {file.relative_to(ROOT).as_posix(): sha256(file) for file in files}


def hardware(device: str | None) -> dict[str, str]:
    """What rounds a run's numbers: device, its name, torch and CUDA."""
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = kind.startswith("cuda")
    name = torch.cuda.get_device_name(torch.device(kind)) if on_gpu else platform.machine()
    return {
        "device": kind.partition(":")[0],
        "name": name,
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
    }


def weights_of(model_name: str, clip_weights: str | None) -> dict[str, str | None]:
    """The backbone's file by its hash, and OpenAI's name of it if they published that very file.

    Raises:
        FileNotFoundError: there are no weights.
    """
    digest = sha256(find_weights(model_name, clip_weights=clip_weights))
    return {"sha256": digest, "published_as": published_as(digest)}


def samples_of(dataset: str, data_root: str) -> list[Sample]:
    """A set's checked rows, no picture read.

    Raises:
        FileNotFoundError, ValueError: the set, or one of its files, is not there.
    """
    test_sets = get_dataset(dataset, 14, None, 0, "test", quiet_logger(), data_root=data_root, look=False)
    return [sample for images in test_sets.values() for sample in images.samples]


def data_of(datasets: Sequence[str], data_root: str) -> dict[str, dict[str, Any]]:
    """Per set: pictures found and published, and a hash of its rows."""
    found = {}
    for dataset in datasets:
        samples = samples_of(dataset, data_root)
        rows = "\n".join(
            f"{one.class_name} {one.label} {one.file_name} {one.mask_path is not None}" for one in samples
        )
        published = PUBLISHED.get(dataset)
        found[dataset] = {
            "normal": sum(one.label == 0 for one in samples),
            "anomalous": sum(one.label == 1 for one in samples),
            "published": list(published[:2]) if published else None,
            "rows_sha256": hashlib.sha256(rows.encode()).hexdigest(),
        }
    return found


def differing_counts(data: dict[str, dict[str, Any]]) -> list[str]:
    """Sets whose pictures are not as many as published, as sentences."""
    return [
        f"{name} has {own['normal']} normal and {own['anomalous']} anomalous pictures, published were "
        f"{own['published'][0]} and {own['published'][1]}"
        for name, own in data.items()
        if own["published"] and own["published"] != [own["normal"], own["anomalous"]]
    ]


def bind(out: Path, agreed: dict[str, Any]) -> None:
    """Begin a study in a folder, or go on with the one that was begun there.

    Args:
        agreed: what must be the same in all its processes, JSON values.

    Raises:
        ValueError: the study was begun with something else; the message names it.
    """
    file = out / STUDY
    out.mkdir(parents=True, exist_ok=True)
    with FileLock(out / ".study.lock"):  # shards may begin at the same time
        if not file.is_file():
            write_text(file, json.dumps(agreed, indent=1) + "\n")
            return
        begun = json.loads(file.read_text(encoding="utf-8"))
    differing = [sentence for key in agreed for sentence in difference(key, begun.get(key), agreed[key])]
    if differing:
        raise ValueError(
            f"{file}: the study was begun otherwise:\n"
            + "\n".join(differing)
            + "\nMixed runs decide nothing: go on "
            "where and as it was begun, or give another --out"
        )


def arms_begun(out: Path) -> tuple[str, ...] | None:
    """The arms a study was begun with, or None."""
    file = out / STUDY
    return tuple(json.loads(file.read_text(encoding="utf-8"))["arms"]) if file.is_file() else None


def difference(key: str, before: Any, now: Any) -> list[str]:
    """What differs in one entry, as sentences."""
    if before == now:
        return []
    if isinstance(before, dict) and isinstance(now, dict):
        names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
        return [f"{key}, {name}: {before.get(name)} then, {now.get(name)} now" for name in names]
    return [f"{key}: {before} then, {now} now"]
