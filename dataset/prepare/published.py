"""What was published: how many pictures the test split of a set has, and who says so."""

import logging
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from dataset.constants import CLASS_NAMES


class Published(NamedTuple):
    """Pictures of a set's test split."""

    normal: int
    anomalous: int
    source: str


# Nobody here had the archives: where one differs from these counts, the command says so and writes what is there.
_SPLIT = "AA-CLIP's test split of the set"
_PAPERS = "as papers count the set"
_PAGE = "as the set's page counts it"
PUBLISHED = {
    "MVTec": Published(467, 1258, _SPLIT),
    "VisA": Published(962, 1200, _SPLIT),
    "BTAD": Published(451, 290, _SPLIT),
    "MPDD": Published(176, 282, _SPLIT),
    "Brain": Published(640, 3075, _SPLIT),
    "Liver": Published(833, 660, _SPLIT),
    "Retina": Published(1041, 764, _SPLIT),
    "Colon_Kvasir": Published(0, 1000, _SPLIT),
    "Colon_clinicDB": Published(0, 612, _SPLIT),
    "Colon_colonDB": Published(0, 380, _SPLIT),
    "Colon_cvc300": Published(0, 60, _SPLIT),
    "MVTecLOCO": Published(575, 993, _PAPERS),
    "DAGM": Published(6996, 1054, _PAPERS),
    "DTDSynthetic": Published(357, 947, _PAPERS),
    "KolektorSDD": Published(347, 52, _PAPERS),
    "Br35H": Published(1500, 1500, _PAGE),
    "BrainMRI": Published(98, 155, _PAGE),
    "HeadCT": Published(100, 100, _PAGE),
    "ELPV": Published(1508, 715, "the package's table, without doubtful cells"),
    "Textile": Published(1000, 1000, "the package"),
}
# Their papers count other splits together with the one that is read here.
UNCOUNTED = {
    "MVTecAD2": "its public test split's count",
    "RealIAD": "its test split's count (99721 normal and 51329 anomalous pictures in all splits)",
}


def counts_of(rows: Sequence[dict]) -> dict[str, Counter]:
    """{class: Counter of "normal", "anomalous", "unlabelled", "without a mask"} of metadata rows."""
    found: dict[str, Counter] = {}
    for row in rows:
        own = found.setdefault(row["class_name"], Counter())
        own[{0: "normal", 1: "anomalous", None: "unlabelled"}[row.get("label")]] += 1
        own["without a mask"] += row.get("label") == 1 and not row.get("mask_path")
    return found


def say_counts(rows: Sequence[dict], logger: logging.Logger) -> None:
    """One line per class on what was taken."""
    for name, own in counts_of(rows).items():
        words = [f"{own['normal']} normal", f"{own['anomalous']} anomalous"]
        words += [f"{own[kind]} {kind}" for kind in ("unlabelled", "without a mask") if own[kind]]
        logger.info("  %s: %s", name, ", ".join(words))


def check_published(dataset_name: str, rows: Sequence[dict], strict: bool, logger: logging.Logger) -> None:
    """Compare a built-in set's rows with what was published; one line, a warning where they differ.

    Args:
        strict: refuse instead of warning.

    Raises:
        ValueError: they differ and it is `strict`.
    """
    if dataset_name in UNCOUNTED:
        logger.info("%s: %s is not known here: not checked", dataset_name, UNCOUNTED[dataset_name])
    if dataset_name not in PUBLISHED:
        return
    normal, anomalous, source = PUBLISHED[dataset_name]
    counts = counts_of(rows)
    found = [sum(own[kind] for own in counts.values()) for kind in ("normal", "anomalous")]
    published = f"{normal + anomalous} pictures, {normal} normal and {anomalous} anomalous ({source})"
    if found == [normal, anomalous]:
        logger.info("%s: as published: %s", dataset_name, published)
        return
    absent = [name for name in CLASS_NAMES[dataset_name] if name not in counts]
    text = (
        f"{dataset_name}: NOT as published: {sum(found)} pictures, {found[0]} normal and {found[1]} anomalous, "
        f"published were {published}" + (f"; no picture of {', '.join(absent)}" if absent else "")
    )
    if strict:
        raise ValueError(f"{text}; unpack the set anew, or leave --strict away to write these rows")
    logger.warning("%s; results on it are not comparable with published ones", text)
