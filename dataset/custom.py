"""Datasets and real names that come from the user's files; both change the registries in `dataset.constants`.

A dataset file (JSON or YAML) maps each new dataset's name to an entry:

    {"Bolts": {"path": "bolts", "domain": "Industrial", "classes": {"m8": "steel bolt"}, "metadata": "bolts.jsonl"}}

`path` is the folder under the data root; `metadata` is relative to the dataset file, and without it the folder is
scanned in MVTec's layout. A real-names file maps datasets to classes to names: {"MVTec": {"screw": "metal screw"}}.
"""

import json
import os
from pathlib import Path, PurePath

import yaml

from dataset import constants

_BUILT_IN = frozenset(constants.DATA_PATH)
_ENTRY_KEYS = {"path", "domain", "classes", "metadata"}
_DOMAIN_NAMES = ("Industrial", "Medical")


def register_dataset(
    name: str, path: str, domain: str, classes: dict[str, str], metadata: str | os.PathLike | None = None
) -> None:
    """Add a dataset to CLASS_NAMES, REAL_NAMES, DOMAINS, DATA_PATH and METADATA_FILES for this process.

    A dataset registered before is replaced; a built-in one raises ValueError, as do an unknown domain, a path that is
    absolute or leads upwards, and classes that are not a non-empty {class: real name}.
    """
    if name in _BUILT_IN:
        raise ValueError(
            f"dataset {name!r} is built in: choose another name; --real_names rewords its classes"
        )
    if domain not in _DOMAIN_NAMES:
        raise ValueError(f"dataset {name!r}: domain is {domain!r}: expected Industrial or Medical")
    if not isinstance(path, str) or PurePath(path).is_absolute() or ".." in PurePath(path).parts:
        raise ValueError(
            f"dataset {name!r}: path is {path!r}: expected a folder relative to the data root, without .."
        )
    if not _is_text_mapping(classes):
        raise ValueError(f"dataset {name!r}: classes is {classes!r}: expected {{class: real name}}, all text")
    for folder in (name, *classes):  # results are written to folders of these names
        if PurePath(folder).name != folder or "\\" in folder:
            raise ValueError(f"dataset {name!r}: the name {folder!r} cannot be a folder's: take out / and \\")
    constants.REAL_NAMES[name] = dict(classes)
    constants.CLASS_NAMES[name] = list(classes)
    constants.DOMAINS[name] = domain
    constants.DATA_PATH[name] = path
    constants.METADATA_FILES.pop(name, None)
    if metadata is not None:
        constants.METADATA_FILES[name] = str(metadata)


def load_dataset_config(path: str | os.PathLike) -> list[str]:
    """Register every dataset of a dataset file; returns their names. Raises FileNotFoundError or ValueError."""
    entries = _load_mapping(path, "dataset names to entries")
    for name, entry in entries.items():
        if not isinstance(entry, dict) or not {"path", "domain", "classes"} <= entry.keys() <= _ENTRY_KEYS:
            found = sorted(map(str, entry)) if isinstance(entry, dict) else entry
            raise ValueError(
                f"{path}: dataset {name!r} has {found!r}: expected the keys path, domain, classes and, "
                "unless the folder is in MVTec's layout, metadata"
            )
        metadata = Path(path).parent / str(entry["metadata"]) if "metadata" in entry else None
        try:
            register_dataset(str(name), entry["path"], entry["domain"], entry["classes"], metadata)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return [str(name) for name in entries]


def load_real_names(path: str | os.PathLike) -> None:
    """Replace the real names a file lists, {dataset: {class: name}}. Raises ValueError for unknown keys."""
    entries = _load_mapping(path, "dataset names to {class: real name}")
    for dataset_name, names in entries.items():
        known = constants.REAL_NAMES.get(dataset_name)
        if known is None:
            raise ValueError(
                f"{path}: unknown dataset {dataset_name!r}: known are {', '.join(constants.REAL_NAMES)}"
            )
        if not _is_text_mapping(names):
            raise ValueError(f"{path}: {dataset_name} is {names!r}: expected {{class: real name}}")
        unknown = [class_name for class_name in names if class_name not in known]
        if unknown:
            raise ValueError(
                f"{path}: {dataset_name} has no class {unknown[0]!r}: its classes are {', '.join(known)}"
            )
    for dataset_name, names in entries.items():
        constants.REAL_NAMES[dataset_name].update(names)


def _load_mapping(path: str | os.PathLike, meaning: str) -> dict:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {str(path)!r}: expected JSON or YAML that maps {meaning}")
    try:
        text = path.read_text(encoding="utf-8")
        # JSON is read as JSON (YAML forbids tabs, which JSON allows).
        content = json.loads(text) if path.suffix.lower() == ".json" else yaml.safe_load(text)
    except (UnicodeDecodeError, json.JSONDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: neither JSON (.json) nor YAML (any other ending): {error}") from error
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path}: expected a mapping of {meaning}, got {content!r}")
    return content


def _is_text_mapping(value: object) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(
            isinstance(key, str) and isinstance(text, str) and text.strip() for key, text in value.items()
        )
    )
