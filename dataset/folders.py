"""The one scan of folders of pictures: what is taken, what is left out and why, which masks belong to which picture.

Hidden files and folders are none (macOS and Jupyter leave copies), links below the folder are followed, and everything
else that is not taken is counted by its reason, for one line in the log.
"""

import logging
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from dataset.constants import CLASS_NAMES
from dataset.jsonl import Sample
from files.foreign_paths import composed

# Everything OpenCV has a reader for and Pillow reads too, which is what decodes.
IMAGE_ENDINGS = frozenset(
    ".png .jpg .jpeg .jpe .jfif .bmp .dib .tif .tiff .webp .jp2 .avif .gif .pbm .pgm .ppm .pnm .ras".split()
)
NORMAL_FOLDERS = frozenset(  # without blanks, hyphens and underscores, in lower case
    "good normal ok nominal healthy clean intact perfect defectfree nodefect nodefects nondefect nondefective "
    "anomalyfree noanomaly nonanomalous undamaged unbroken faultless faultfree flawless".split()
)
SHOWN = 3  # examples of each reason


def is_normal(folder_name: str) -> bool:
    """Whether a folder of this name holds pictures without defect: good, OK, normal, defect-free, …"""
    return re.sub(r"[\s_-]", "", folder_name).casefold() in NORMAL_FOLDERS


class Scan:
    """One look through a dataset's folder; remembers what it left out.

    Args:
        folder: everything is reported relative to it.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.notes: list[str] = []  # sentences for the log line
        self._left_out: dict[str, dict[str, None]] = {}  # {reason: paths, in the order they were met}
        self._read: set[str] = set()  # paths of annotations

    def leave_out(self, reason: str, path: Path) -> None:
        """Count something that is not taken."""
        self._left_out.setdefault(reason, {})[self._name(path)] = None

    def read_beside(self, path: Path) -> None:
        """Note a file that is no picture and is read all the same, such as annotations: it is not left out."""
        self._read.add(self._name(path))

    def _name(self, path: Path) -> str:
        return Path(os.path.relpath(path, self.folder)).as_posix()

    def pictures(self, folder: Path) -> list[Path]:
        """The pictures directly in a folder, sorted by name; a missing folder has none."""
        found = []
        for entry in _entries(folder):
            path, ending = folder / entry.name, os.path.splitext(entry.name)[1].lower()
            if entry.name.startswith("."):
                self.leave_out("hidden", path)
            elif _is(entry.is_dir):
                continue
            elif ending not in IMAGE_ENDINGS:
                self.leave_out(f"of ending {ending}" if ending else "without an ending", path)
            elif not _is(entry.is_file):
                self.leave_out("links to nothing" if entry.is_symlink() else "no regular files", path)
            else:
                found.append(path)
        return found

    def folders(self, folder: Path) -> list[Path]:
        """The folders directly in a folder, sorted by name; a missing folder has none."""
        found = []
        for entry in _entries(folder):
            if entry.name.startswith("."):
                self.leave_out("hidden", folder / entry.name)
            elif _is(entry.is_dir):
                found.append(folder / entry.name)
        return found

    def below(self, folder: Path) -> list[Path]:
        """The folders in a folder at any depth, each before what is in it; a link back to one around it is left out."""
        return self._below(folder, (os.path.realpath(folder),))

    def _below(self, folder: Path, around: tuple[str, ...]) -> list[Path]:
        found = []
        for path in self.folders(folder):
            real = os.path.realpath(path)
            if real in around:
                self.leave_out("links in a circle", path)
            else:
                found += [path, *self._below(path, (*around, real))]
        return found

    def spelled(self, folder: Path, name: str) -> Path:
        """The folder of this name in whatever Unicode form, or the name itself if there is none."""
        found = () if (folder / name).is_dir() else self.folders(folder)
        return next((path for path in found if composed(path.name) == composed(name)), folder / name)

    def child(self, folder: Path, name: str) -> Path:
        """The folder of this name in whatever capitals and Unicode form, or the name itself if there is none."""
        found = () if (folder / name).is_dir() else self.folders(folder)
        wanted = composed(name).casefold()
        return next((path for path in found if composed(path.name).casefold() == wanted), folder / name)

    def summary(self, rows: Sequence[dict]) -> str:
        """One line on the whole scan."""
        anomalous = sum(row.get("label") == 1 for row in rows)
        read = f"{len(rows)} pictures read, {anomalous} of them anomalous"
        return "; ".join([read, *self.left_out(), *self.notes])

    def left_out(self) -> list[str]:
        """How many files were left out for which reason, with examples."""
        found = []
        for reason, names in sorted(self._left_out.items()):
            names = [name for name in names if name not in self._read]
            found += [f"{len(names)} left out, {reason} ({_some(names)})"] if names else []
        return found

    @property
    def is_remarkable(self) -> bool:
        """Whether something was left out that a user may miss; hidden files are not."""
        return bool(self.notes or set(self._left_out) - {"hidden"})


def _entries(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is(kind: Callable[[], bool]) -> bool:
    try:
        return kind()
    except OSError:  # a link to itself
        return False


def _some(paths: Sequence[str]) -> str:
    return ", ".join(paths[:SHOWN]) + (", …" if len(paths) > SHOWN else "")


def masks_of(
    scan: Scan, folder: Path, stems: Iterable[str], suffix: str = "_mask", groups: Iterable[str] = ()
) -> dict[str, list[Path]]:
    """The masks in a folder by the stem of the picture they belong to.

    A picture `name` has the mask `name_mask` or `name` of any picture ending, all pictures in a folder of one of these
    names (MVTec LOCO AD), and `name_mask_1`, `name_1` and so on.

    Args:
        suffix: in the place of `_mask`.
        groups: folders of masks of other pictures, which are not missed.

    Raises:
        ValueError: two masks differ in nothing but their endings.
    """
    stems, by_name, found = set(stems), {}, {}
    for mask in scan.pictures(folder):
        if mask.stem in by_name:
            raise ValueError(f"two masks of one name, {by_name[mask.stem]} and {mask}: remove one")
        by_name[mask.stem] = mask
    inside = {path.name: path for path in scan.folders(folder)}
    numbered: dict[str, list[Path]] = {}
    for name, mask in by_name.items():
        owner = re.fullmatch(rf"(.+?)(?:{re.escape(suffix)}[_-]?|[_-])\d+", name)
        if owner and owner[1] in stems and name not in stems:
            numbered.setdefault(owner[1], []).append(mask)
    for stem in stems:
        names = (f"{stem}{suffix}", stem)
        own = next(([by_name[name]] for name in names if name in by_name), [])
        own += next((scan.pictures(inside[name]) for name in names if name in inside), [])
        if own := own + numbered.get(stem, []):
            found[stem] = own
    used = {mask for masks in found.values() for mask in masks}
    spare = [mask for mask in by_name.values() if mask not in used]
    others = stems | set(groups)
    spare += [path for name, path in inside.items() if name.removesuffix(suffix) not in others]
    for mask in spare:
        scan.leave_out("masks of no picture", mask)
    return found


def without_a_row(samples: Sequence[Sample], rows: Iterable[dict], folder: Path) -> list[str]:
    """Pictures that lie beside those of a metadata file and have no row in it, relative to the dataset's folder.

    Looked through are the folders that hold a row's picture and, in a folder `test`, those beside them. VisA's own
    table of splits leaves its training pictures out on purpose: beside it nothing is looked for.
    """
    if (folder / "split_csv" / "1cls.csv").is_file():
        return []
    listed = {
        os.path.realpath(path) for sample in samples for path in (sample.image_path, *sample.mask_paths)
    }
    for row in rows:  # a normal picture's mask is no picture either, though nobody reads it
        named = row.get("mask_path") or []
        for path in named if isinstance(named, list) else [named]:
            if isinstance(path, str) and "\0" not in path:
                listed.add(os.path.realpath(folder / path))
    places = {os.path.dirname(sample.image_path) for sample in samples}
    tests = {os.path.dirname(place) for place in places if os.path.basename(os.path.dirname(place)) == "test"}
    places |= {str(path) for test in tests for path in Scan(folder).folders(Path(test))}
    scan, found = Scan(folder), []
    for place in sorted(places):
        real = os.path.realpath(place)
        for path in scan.pictures(
            Path(place)
        ):  # most are no links: their real path needs no look at the disk
            if os.path.join(real, path.name) not in listed and os.path.realpath(path) not in listed:
                found.append(os.path.relpath(path, folder))
    return found


def say_what_has_no_row(
    samples: Sequence[Sample],
    rows: Iterable[dict],
    dataset_name: str,
    folder: Path,
    logger: logging.Logger,
) -> None:
    """One line on pictures and classes without a row in a metadata file; none where all have one."""
    pictures = without_a_row(samples, rows, folder)
    having = {sample.class_name for sample in samples}
    missing = [name for name in CLASS_NAMES[dataset_name] if name not in having]
    parts = [f"{len(pictures)} pictures without a row ({_some(pictures)})"] if pictures else []
    parts += [f"classes without a row: {', '.join(missing)}"] if missing else []
    if pictures:
        parts.append(
            f"if they belong to it, write its rows anew: python -m dataset.prepare --dataset {dataset_name} --overwrite"
        )
    if parts:
        logger.log(
            logging.WARNING if pictures else logging.INFO,
            "%s: %d rows; %s",
            dataset_name,
            len(samples),
            "; ".join(parts),
        )
