"""The fenced blocks of the documents: what of them is run on tiny data, and what is only read."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
FENCE = re.compile(
    r"(?:^<!-- (?P<mark>tiny|weights)(?: (?P<file>\S+))? -->\n)?"
    r"^```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^```$",
    re.M | re.S,
)


class Block(NamedTuple):
    """A fenced block: `mark` is "tiny" (it is run), "weights" (it needs real weights or data) or None."""

    page: str
    mark: str | None
    file: str | None  # the text is written there instead of run
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in its order."""
    found = FENCE.finditer(page.read_text(encoding="utf-8"))
    name = str(page.relative_to(ROOT))
    return [Block(name, one["mark"], one["file"], one["language"], one["text"]) for one in found]


def command_lines(text: str) -> list[list[str]]:
    """The words behind `python` of every command of this project in a shell block."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # a quote that ends on another line
            continue
        if "python" not in words:
            continue
        rest = words[words.index("python") + 1 :]
        for end in ("|", "||", "&&", ";", ">"):
            rest = rest[: rest.index(end)] if end in rest else rest
        if rest:
            found.append([word.rstrip(";") for word in rest])
    return found


def command_of(words: list[str]) -> tuple[str, list[str]]:
    """("train.py" or "-m package.module", the words behind it)."""
    return (f"-m {words[1]}", words[2:]) if words[0] == "-m" else (words[0], words[1:])
