"""Datasets and real names that come from the user's files; both change the registries in `dataset.constants`.

A dataset file (JSON or YAML) maps each new dataset's name to an entry:

    {"Bolts": {"path": "bolts", "domain": "Industrial", "classes": {"m8": "steel bolt"}, "metadata": "bolts.jsonl"}}

`path` is the folder under the data root; `metadata` is relative to the dataset file, and without it the folder is
scanned in MVTec's layout. A real-names file maps datasets to classes to names: {"MVTec": {"screw": "metal screw"}}.
"""

import os
from pathlib import Path, PurePath

from dataset import constants
from files.foreign_paths import WINDOWS, composed, has_control, with_slashes
from files.text import read_mapping, shown

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
    problems = _problems_of(name, path, domain, classes, metadata)
    if problems:
        raise ValueError("; ".join(problems))
    path = with_slashes(path)
    constants.REAL_NAMES[name] = dict(classes)
    constants.CLASS_NAMES[name] = list(classes)
    constants.DOMAINS[name] = domain
    constants.DATA_PATH[name] = path
    constants.METADATA_FILES.pop(name, None)
    if metadata is not None:
        constants.METADATA_FILES[name] = str(metadata)


def _problems_of(name, path, domain, classes, metadata) -> list[str]:
    """Everything that is wrong with a dataset's entry, in sentences."""
    found = []
    if name in _BUILT_IN:
        found.append(f"dataset {name!r} is built in: choose another name; --real_names rewords its classes")
    if domain not in _DOMAIN_NAMES:
        found.append(f"dataset {name!r}: domain is {shown(domain)}: expected Industrial or Medical")
    if not isinstance(path, str) or has_control(path) or not _stays_below(path):
        found.append(
            f"dataset {name!r}: path is {shown(path)}: expected a folder relative to the data root, without .."
        )
    if metadata is not None and (not str(metadata) or has_control(str(metadata))):
        found.append(f"dataset {name!r}: metadata is {shown(str(metadata))}: expected a file's path")
    if not _is_text_mapping(classes):
        found.append(
            f"dataset {name!r}: classes is {shown(classes)}: expected {{class: real name}}, all text on one line (put "
            "numbers, yes and no into quotes)"
        )
        classes = {}
    for folder in (name, *classes):  # results are written to folders of these names
        if PurePath(folder).name != folder or folder == ".." or "\\" in folder or has_control(folder):
            found.append(
                f"dataset {name!r}: the name {folder!r} cannot be a folder's: take out /, \\ and control characters"
            )
    forms = [composed(one) for one in classes]
    twice = sorted({one for one in forms if forms.count(one) > 1})
    if twice:
        found.append(f"dataset {name!r}: class {twice[0]!r} stands twice in two Unicode forms: keep one")
    return found


def _stays_below(path: str) -> bool:
    parts = PurePath(with_slashes(path))
    return not (parts.is_absolute() or ".." in parts.parts or WINDOWS.match(path))


def load_dataset_config(path: str | os.PathLike) -> list[str]:
    """Register every dataset of a dataset file; returns their names.

    Raises:
        FileNotFoundError: no such file.
        ValueError: everything that is wrong with its entries; none is registered.
    """
    entries = {str(name): entry for name, entry in read_mapping(path, "dataset names to entries").items()}
    problems, found = [], []
    for name, entry in entries.items():
        if not isinstance(entry, dict) or not {"path", "domain", "classes"} <= entry.keys() <= _ENTRY_KEYS:
            keys = sorted(map(str, entry)) if isinstance(entry, dict) else entry
            problems.append(
                f"dataset {name!r} has {shown(keys)}: expected the keys path, domain, classes and, unless the "
                "folder is in MVTec's layout, metadata"
            )
            continue
        metadata = entry.get("metadata")
        if metadata is not None and not isinstance(metadata, str):
            problems.append(f"dataset {name!r}: metadata is {shown(metadata)}: expected a file's path")
        place = Path(path).parent / with_slashes(str(metadata)) if metadata is not None else None
        found.append((name, entry["path"], entry["domain"], entry["classes"], place))
        problems += _problems_of(*found[-1])
    _raise_all(path, problems)
    for arguments in found:
        register_dataset(*arguments)
    return list(entries)


def load_real_names(path: str | os.PathLike) -> None:
    """Replace the real names a file lists, {dataset: {class: name}}. Raises ValueError for everything unknown in it."""
    entries = read_mapping(path, "dataset names to {class: real name}")
    problems = []
    for dataset_name, names in entries.items():
        known = constants.REAL_NAMES.get(dataset_name)
        if known is None:
            problems.append(
                f"unknown dataset {shown(dataset_name)}: known are {', '.join(constants.REAL_NAMES)}"
            )
        elif not _is_text_mapping(names):
            problems.append(
                f"{dataset_name} is {shown(names)}: expected {{class: real name}}, all text on one line"
            )
        else:
            problems += [
                f"{dataset_name} has no class {name!r}: its classes are {', '.join(known)}"
                for name in names
                if name not in known
            ]
    _raise_all(path, problems)
    for dataset_name, names in entries.items():
        constants.REAL_NAMES[dataset_name].update(names)


def _raise_all(path: str | os.PathLike, problems: list[str]) -> None:
    if problems:
        raise ValueError("\n".join(f"{path}: {problem}" for problem in problems))


def _is_text_mapping(value: object) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(
            isinstance(key, str) and isinstance(text, str) and text.strip() and not has_control(text)
            for key, text in value.items()
        )
    )
