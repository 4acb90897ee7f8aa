"""The pictures of a folder by the names that annotations call them."""

from pathlib import Path

from dataset.folders import Scan
from files.foreign_paths import composed, with_slashes
from files.given import can_name_a_file


class PicturesBelow:
    """All pictures of a data set's folder, at any depth.

    Args:
        scan: notes what is no picture.
    """

    def __init__(self, scan: Scan):
        self._scan = scan
        folders = [scan.folder, *scan.below(scan.folder)]
        self.paths = [
            path.relative_to(scan.folder).as_posix() for one in folders for path in scan.pictures(one)
        ]
        self._by_name: dict[str, list[str]] = {}
        for path in self.paths:
            self._by_name.setdefault(composed(Path(path).name), []).append(path)

    def find(self, name: object, beside: Path) -> str | None:
        """The picture that annotations call `name`, relative to the folder; None, and counted, without exactly one.

        A name is read relative to the annotations' folder `beside`, to the data set's folder, and else as the end of
        one picture's path.
        """
        if not can_name_a_file(name):
            self._scan.leave_out("names that are no path", self._scan.folder / repr(name)[:60])
            return None
        wanted = composed(with_slashes(name)).removeprefix("./")
        wanted = wanted.removeprefix(f"{self._scan.folder.as_posix()}/")  # absolute
        candidates = self._by_name.get(wanted.rpartition("/")[2], [])
        for begin in dict.fromkeys((self._inside(beside), "")):
            exact = [one for one in candidates if composed(one) == begin + wanted]
            if exact:
                return exact[0]
        ending = [one for one in candidates if f"/{composed(one)}".endswith(f"/{wanted}")]
        if len(ending) == 1:
            return ending[0]
        reason = "named in the annotations and not there" if not ending else "named as several pictures are"
        self._scan.leave_out(reason, self._scan.folder / wanted)
        return None

    def _inside(self, folder: Path) -> str:
        """The folder as a beginning of paths, "" where it is not below the data set's."""
        try:
            found = folder.resolve().relative_to(self._scan.folder.resolve()).as_posix()
        except ValueError:
            return ""
        return "" if found == "." else f"{found}/"

    def rest(self, taken: set[str], reason: str, outside: tuple[str, ...] = ()) -> None:
        """Count the pictures that were not taken; those in folders that begin with one of `outside` are none."""
        for path in self.paths:
            if path not in taken and not path.startswith(outside or ("\0",)):
                self._scan.leave_out(reason, self._scan.folder / path)
