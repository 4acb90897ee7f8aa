"""What can be odd about a data set's files and rows: the kinds, what each means, and how many there are."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

PROBLEM, NOTE = "problem", "note"
UNREADABLE = "unreadable file"
KINDS = {  # {kind: (problem or note, what it means)}
    UNREADABLE: (PROBLEM, "damaged, truncated or no picture: training and testing stop there"),
    "cut short": (PROBLEM, "the end of the file is missing: training and testing stop where its pixels do"),
    "several frames": (PROBLEM, "which one is meant is not known: training and testing stop there"),
    "too large": (PROBLEM, "more pixels than are read: training and testing stop there"),
    "no defined white": (PROBLEM, "float or 32-bit picture: training and testing stop there"),
    "sizes differ": (PROBLEM, "mask and image do not fit"),
    "refused row": (
        PROBLEM,
        "the metadata cannot be read as it is; pictures are looked at once its rows are right",
    ),
    "swapped": (PROBLEM, "the mask looks like a photograph: is it the image, or another image?"),
    "shared mask": (PROBLEM, "the same mask file belongs to several pictures"),
    "empty mask": (PROBLEM, "label 1, and no pixel counts as defect"),
    "mask of a normal picture": (PROBLEM, "label 0, and its mask, which is not read, shows a defect"),
    "inverted mask": (PROBLEM, "most of the picture and its border count as defect"),
    "vanishing mask": (PROBLEM, "no defect pixel is left at img_size"),
    "duplicate": (PROBLEM, "the same picture under another label, class, split or data set"),
    "one label": (PROBLEM, "nothing to learn, or image metrics that are undefined"),
    "repeated picture": (NOTE, "the same picture twice under one label, class and split: counted twice"),
    "repeated mask": (NOTE, "different mask files with the same defect: does each belong to its picture?"),
    "shrinking mask": (NOTE, "less than half of the defect's share of the picture is left at img_size"),
    "EXIF orientation": (NOTE, "the file says how to turn it"),
    "16-bit image": (NOTE, "the upper eight bits are read"),
    "palette image": (NOTE, "read by its colours"),
    "dark 16-bit image": (PROBLEM, "few of its bits are used, so the upper eight say little"),
    "transparent image": (NOTE, "transparency is ignored"),
    "16-bit mask": (NOTE, "every value that is not 0 is defect"),
    "palette mask": (NOTE, "every label that is not background is defect"),
    "alpha mask": (NOTE, "read from the alpha channel where the colours say nothing"),
    "JPEG mask": (NOTE, "lossy: its noise is not 0"),
    "several values": (NOTE, "the mask has more than two values"),
}


class Finding(NamedTuple):
    """One oddity of one file or class."""

    kind: str  # of KINDS
    file: str  # as in the table of results, or the class
    source: str  # metadata file:line
    text: str

    @property
    def is_problem(self) -> bool:
        return KINDS[self.kind][0] == PROBLEM


def by_kind(findings: Iterable[Finding]) -> dict[str, list[Finding]]:
    """{kind: its findings}, in the order of KINDS."""
    found = {kind: [] for kind in KINDS}
    for one in findings:
        found[one.kind].append(one)
    return {kind: own for kind, own in found.items() if own}


def one_line(kind: str, own: Sequence[Finding]) -> str:
    """A kind's findings in one log line: how many, what it means, the first."""
    first = own[0]
    more = f", {len(own)} in all, the first is" if len(own) > 1 else ""
    return f"{kind}: {KINDS[kind][1]}{more}: {first.file} ({first.text})"
