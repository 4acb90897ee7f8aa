"""Text that users wrote, on whatever system: the one reader of rows, JSON, YAML and tables.

UTF-8 with or without a mark, UTF-16 and UTF-32, line ends of Windows and old Macs are read. Any other encoding is
refused with its place and a guess, a key that stands twice is refused, and nothing is read as something else.
"""

import codecs
import csv
import io
import json
import os
import reprlib
from pathlib import Path
from typing import Any

import yaml

MARKS = (  # UTF-32's little-endian mark begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
DELIMITERS = ",;\t"  # Excel writes semicolons where the comma is the decimal point
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 120
_SHORT.maxlevel = 3


def shown(value: object) -> str:
    """A value of a user's file in a message: `repr`, cut where it is long or deep."""
    return _SHORT.repr(value)


def counted(count: int, noun: str) -> str:
    """A number with its noun in a message: "1 picture", "2 pictures"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def read_text(path: Path | str) -> str:
    r"""A user's text file, every line end as \n and without a byte order mark.

    Raises:
        FileNotFoundError: it is no file (a folder, a pipe or nothing).
        ValueError: it is in an encoding that is not read; the message names line, byte and remedy.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no file {str(path)!r}")
    return decoded(Path(path).read_bytes(), path)


def decoded(data: bytes, name: Path | str) -> str:
    """The text of some bytes, as `read_text` gives it; `name` for the message."""
    mark, encoding = next(((mark, kind) for mark, kind in MARKS if data.startswith(mark)), (b"", None))
    data = data.removeprefix(mark)
    if encoding is None:
        # JSON and tables begin with an ASCII character, which in UTF-16 has a zero byte beside it
        zeros = [byte == 0 for byte in data[:2]]
        encoding = {(False, True): "utf-16-le", (True, False): "utf-16-be"}.get(tuple(zeros), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(_not_decoded(data, name, encoding, error)) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _not_decoded(data: bytes, name: Path | str, encoding: str, error: UnicodeDecodeError) -> str:
    if encoding != "utf-8":
        return (
            f"{name}: byte {error.start + 1} does not belong to {encoding.upper()}, in which it begins: the file is "
            "damaged, or made of two; save it as UTF-8"
        )
    before = data[: error.start].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    line, column = before.count(b"\n") + 1, len(before) - (before.rfind(b"\n") + 1) + 1
    byte, guesses = data[error.start], []
    for kind, words in (("cp1252", "Windows-1252"), ("mac_roman", "Mac Roman")):
        try:
            guesses.append(f"{bytes([byte]).decode(kind)!r} in {words}")
        except UnicodeDecodeError:
            continue
    guess = f" (it would be {', '.join(guesses)})" if guesses else ""
    return (
        f"{name}:{line}: byte {column} of the line, 0x{byte:02x}, is not UTF-8{guess}: save the file as UTF-8"
    )


def parse_json(text: str) -> Any:
    """JSON as Python values. Raises ValueError, also for a key that stands twice in one object or too deep nesting."""
    try:
        return json.loads(text, object_pairs_hook=_without_doubles)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(
                f"key {shown(key)} stands twice in one object, as {shown(found[key])} and {shown(value)}: take one out"
            )
        found[key] = value
    return found


def read_json(path: Path | str) -> Any:
    """A JSON file. Raises FileNotFoundError, or ValueError that names the file."""
    text = read_text(path)
    try:
        return parse_json(text)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): correct it") from error


class _Loader(yaml.SafeLoader):
    """YAML's plain values. A key that stands twice is an error, not the last one's victory, and so is an alias: a few
    lines of them make more values than fit any memory."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.composer.ComposerError(
                None,
                None,
                f"alias *{event.anchor} is not read: write out what it stands for",
                event.start_mark,
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            key = key_node.tag, str(key_node.value)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {shown(key_node.value)} stands twice: take one out", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_mapping(path: Path | str, meaning: str) -> dict:
    """A file of JSON (.json; YAML forbids tabs, which JSON allows) or YAML (any other ending) that maps something.

    Args:
        meaning: what it maps, for the messages.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is neither, is empty or maps nothing.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {str(path)!r}: expected JSON or YAML that maps {meaning}")
    text = read_text(path)
    try:
        content = parse_json(text) if path.suffix.lower() == ".json" else _Loader(text).get_single_data()
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: neither JSON (.json) nor YAML (any other ending): {reason}") from error
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path}: expected a mapping of {meaning}, got {shown(content)}")
    return content


def read_table(path: Path | str, columns: set[str]) -> list[tuple[str, dict[str, str]]]:
    """(file:line, {column: cell}) for each row of a CSV file whose first line names its columns.

    Commas, semicolons or tabs between the cells, whichever the first line has; further columns are read too.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a column is missing or stands twice, or a row has another number of cells.
    """
    lines = read_text(path)
    first = lines.partition("\n")[0]
    reader = csv.reader(io.StringIO(lines), delimiter=max(DELIMITERS, key=first.count), strict=True)
    rows, names = [], None
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if names is None:
                names = [cell.strip() for cell in cells]
                if not columns <= set(names) or len(set(names)) < len(names):
                    raise ValueError(f"{path}: columns are {names}: expected {', '.join(sorted(columns))}")
            elif len(cells) != len(names):
                raise ValueError(
                    f"{path}:{reader.line_num}: {len(cells)} cells, {len(names)} columns: correct it"
                )
            else:
                rows.append((f"{path}:{reader.line_num}", dict(zip(names, cells, strict=True))))
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num}: not a table ({error}): correct it") from error
    if names is None:
        raise ValueError(f"{path}: it is empty: expected the columns {', '.join(sorted(columns))}")
    return rows
