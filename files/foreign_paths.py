"""Paths that were written on another system: their separators and Unicode forms, and what no path may hold."""

import os
import re
import unicodedata

WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")  # C:\folder, \\server\share


def has_control(text: str) -> bool:
    """Whether a name holds NUL or a character that moves the cursor or ends a line: newline, escape, U+2028; a tab may
    stand in names."""
    kinds = {unicodedata.category(one) for one in text if one != "\t"} if not text.isprintable() else set()
    return not kinds.isdisjoint(("Cc", "Zl", "Zp"))


def composed(text: str) -> str:
    """Text in the Unicode form in which two spellings of one name are equal (NFC; macOS writes NFD)."""
    return unicodedata.normalize("NFC", text)


def with_slashes(path: str) -> str:
    r"""A path as written on Windows, ring\good.png, with this system's separators."""
    return path.replace("\\", "/")


class DiskNames:
    """Finds how a path is spelled on this disk. Each folder is listed once, so an instance is for one reading."""

    def __init__(self):
        self._names: dict[tuple, dict[str, str]] = {}

    def respelled(self, folder: str, path: str) -> str | None:
        """`path` below `folder` as it is on the disk, Unicode forms and backslashes aside; None where there is none."""
        for candidate in dict.fromkeys((path, with_slashes(path))):
            found = self._walk(folder, candidate, composed)
            if found is not None:
                return found
        return None

    def in_other_case(self, folder: str, path: str) -> str | None:
        """What is there in other capitals, for a hint: systems that ignore case wrote many a metadata file."""
        return self._walk(folder, with_slashes(path), _without_case)

    def _walk(self, folder, path, key):
        here, parts = folder, []
        for part in path.split("/"):
            if part in ("", ".", "..") or os.path.lexists(os.path.join(here, part)):
                name = part
            else:
                name = self._names_in(here, key).get(key(part))
                if name is None:
                    return None
            parts.append(name)
            here = os.path.join(here, name)
        return "/".join(parts)

    def _names_in(self, folder, key):
        try:
            known = self._names.get((folder, key))
            if known is None:
                known = self._names[folder, key] = {key(name): name for name in sorted(os.listdir(folder))}
            return known
        except OSError:
            return {}


def _without_case(text: str) -> str:
    return composed(text).casefold()
