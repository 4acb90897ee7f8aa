"""Names that users chose, made harmless where they are printed: in log lines, tables and the cells of CSV files."""

import csv
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import IO, Any

FORMULA = "=+-@＝＋－＠"  # what a spreadsheet takes for the begin of a formula
NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|nan)")
# Control characters, line and paragraph separators, marks that turn the direction of what follows, half characters.
HARMFUL = ("Cc", "Zl", "Zp", "Cs")
DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def plain(text: object) -> str:
    r"""Text on one line: newlines, escapes and marks of direction spelled as \n, \x1b, \u202e."""
    text = str(text)
    if text.isprintable():
        return text
    return "".join(one.encode("unicode_escape").decode() if _is_harmful(one) else one for one in text)


def _is_harmful(letter: str) -> bool:
    return letter in DIRECTIONS or unicodedata.category(letter) in HARMFUL


def cell(value: Any) -> Any:
    """A value for a CSV file: text on one line that no spreadsheet runs as a formula; numbers stay numbers."""
    if not isinstance(value, str):
        return value
    begin = value.lstrip()[:1]  # programs skip blanks before they look for a formula
    is_formula = begin != "" and begin in FORMULA and not NUMBER.fullmatch(value)
    return f"'{plain(value)}" if is_formula else plain(value)


class CellWriter:
    """csv.writer whose every cell went through `cell`."""

    def __init__(self, file: IO[str], lineterminator: str = "\r\n"):
        self._writer = csv.writer(file, lineterminator=lineterminator)

    def writerow(self, row: Sequence[Any]) -> None:
        self._writer.writerow([cell(value) for value in row])

    def writerows(self, rows: Iterable[Sequence[Any]]) -> None:
        for row in rows:
            self.writerow(row)
