"""A data set's files by their headers, before the first is decoded: what stops a run, and what it should know."""

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from dataset.findings import UNREADABLE, Finding, by_kind, one_line
from dataset.image_files import Header, Reading, Unsuitable, header_of, sizes_differ, turn_of_mask
from dataset.jsonl import PROBLEMS_SHOWN, Sample
from dataset.mask_values import MEANINGS, UPSTREAM

THREADS = min(16, 2 * (os.cpu_count() or 1))  # opening files waits for disks
STOPPING = {UNREADABLE, "several frames", "too large", "no defined white"}
Headers = dict[
    tuple[str, str], Header | ValueError
]  # {("image" or "mask", path): header, or why there is none}


def look_at_files(
    samples: Sequence[Sample],
    dataset_name: str,
    reading: Reading,
    logger: logging.Logger,
    training: bool = False,
) -> Reading:
    """Read every file's header and log, a line per kind, what is odd about files and rows.

    Returns:
        the reading, with `as_stored` where the masks of turned pictures turn out to be drawn on the stored pixels.

    Raises:
        ValueError: files that no run can read, or masks of other sizes than their images; PROBLEMS_SHOWN are named.
    """
    headers = headers_of(samples)
    reading = reading._replace(as_stored=are_drawn_as_stored(samples, headers))
    findings = [*header_findings(samples, headers, reading), *row_findings(samples, training)]
    united = {sample.source for sample in samples if len(sample.mask_paths) > 1}
    stops = [one.text for one in findings if one.kind in STOPPING or _sizes_stop(one, reading, united)]
    if stops:
        more = [f"… and {len(stops) - PROBLEMS_SHOWN} more files"] if len(stops) > PROBLEMS_SHOWN else []
        raise ValueError("\n".join(stops[:PROBLEMS_SHOWN] + more))
    if any(sample.mask_path for sample in samples):
        logger.info("%s: masks are read %s (--mask_reading): %s", dataset_name, *how(reading))
    for kind, own in by_kind(findings).items():
        level = logging.WARNING if own[0].is_problem or kind == "EXIF orientation" else logging.INFO
        logger.log(level, "%s: %s", dataset_name, one_line(kind, own))
    return reading


def _sizes_stop(finding: Finding, reading: Reading, united: set[str]) -> bool:
    """Whether a mask of another size ends a run: not where AA-CLIP resizes a single one by itself."""
    return finding.kind == "sizes differ" and (reading.masks != UPSTREAM or finding.source in united)


def how(reading: Reading) -> tuple[str, str]:
    """(name, meaning) of a reading."""
    return reading.masks, MEANINGS[reading.masks]


def files_of(sample: Sample) -> list[tuple[str, str]]:
    """[("image" or "mask", path)] of a sample."""
    return [("image", sample.image_path), *(("mask", path) for path in sample.mask_paths)]


def headers_of(samples: Sequence[Sample]) -> Headers:
    """The headers of all files, several at once, each once."""
    wanted = {}
    for sample in samples:
        for file in files_of(sample):
            wanted.setdefault(file, sample.source)

    def read(item):
        (what, path), source = item
        try:
            return header_of(what, path, source)
        except ValueError as error:
            return error

    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(read, wanted.items())
        bar = tqdm(found, "file headers", len(wanted), leave=False, delay=2, disable=None)
        return dict(zip(wanted, bar, strict=True))


def header_findings(samples: Sequence[Sample], headers: Headers, reading: Reading) -> list[Finding]:
    """What the headers say: files that cannot be read, sizes, orientation, bit depths, palettes, alpha, JPEG masks."""
    findings, seen = [], set()
    for sample in samples:
        for what, path in files_of(sample):
            header = headers[what, path]
            if isinstance(header, ValueError) and (what, path) not in seen:
                kind = header.kind if isinstance(header, Unsuitable) else UNREADABLE
                findings.append(Finding(kind, sample.file_name, sample.source, str(header)))
            elif (what, path) not in seen:
                findings += of_one_file(what, path, header, sample)
            seen.add((what, path))
        image = headers["image", sample.image_path]
        masks = {path: headers["mask", path] for path in sample.mask_paths}
        if all(isinstance(header, Header) for header in (image, *masks.values())):
            findings += of_geometry(sample, image, masks, reading)
    return findings


def of_one_file(what: str, path: str, header: Header, sample: Sample) -> list[Finding]:
    """Missing end, bit depth, palette, transparency and lossy compression of a file."""
    found = {
        "cut short": header.is_cut_short,
        f"16-bit {what}": header.is_deep,
        f"palette {what}": header.mode == "P",
        "transparent image" if what == "image" else "alpha mask": header.is_transparent,
        "JPEG mask": what == "mask" and header.is_lossy,
    }
    text = f"{path}: {header.format}, mode {header.mode}"
    return [Finding(kind, sample.file_name, sample.source, text) for kind, there in found.items() if there]


def of_geometry(sample: Sample, image: Header, masks: dict[str, Header], reading: Reading) -> list[Finding]:
    """Orientation of an image, and whether its masks {path: header} fit."""
    findings, upstream = [], reading.masks == UPSTREAM
    read_as = Header(image.size) if upstream else image
    if image.orientation != 1:
        first = next(iter(masks.values()), None)
        text = f"orientation {image.orientation}: " + turned_how(image, first, reading)
        findings.append(Finding("EXIF orientation", sample.file_name, sample.source, text))
    for path, mask in masks.items():
        own = Header(mask.size) if upstream else mask
        if turn_of_mask(own, read_as) is None:
            text = sizes_differ(sample.source, path, own, read_as)
            findings.append(Finding("sizes differ", sample.file_name, sample.source, text))
    return findings


def turned_how(image: Header, mask: Header | None, reading: Reading) -> str:
    """What is done with a picture that is to be turned, and with its mask."""
    if reading.masks == UPSTREAM:
        return "left as stored, as AA-CLIP reads it; --mask_reading robust turns it upright"
    if mask is None:
        return "turned upright"
    if mask.orientation == 1 and image.size == image.upright_size == mask.size:
        drawn = "stored pixels, as other masks are" if reading.as_stored else "upright picture"
        return f"turned upright; sizes do not tell, so its mask is taken as drawn on the {drawn}"
    turn = turn_of_mask(mask, image, reading.as_stored)
    return "turned upright" + (", its mask too" if turn not in (1, None) else ", its mask is already")


def are_drawn_as_stored(samples: Sequence[Sample], headers: Headers) -> bool:
    """Whether every mask whose size tells is drawn on the stored pixels of a turned picture, and there is one."""
    tells = []
    for sample in samples:
        image = headers["image", sample.image_path]
        for mask in (headers["mask", path] for path in sample.mask_paths):
            if isinstance(image, Header) and isinstance(mask, Header) and image.size != image.upright_size:
                tells.append(mask.orientation == 1 and mask.size == image.size)
    return bool(tells) and all(tells)


def row_findings(samples: Sequence[Sample], training: bool = False) -> list[Finding]:
    """What the rows say: masks that belong to two pictures; classes of one label."""
    findings, first_of = [], {}
    for sample, path in ((one, path) for one in samples for path in one.mask_paths):
        image, mask = os.path.realpath(sample.image_path), os.path.realpath(path)
        first = first_of.setdefault(mask, sample)
        if os.path.realpath(first.image_path) != image:
            text = f"same mask {path} as {first.file_name}: {first.source} and {sample.source}"
            findings.append(Finding("shared mask", sample.file_name, sample.source, text))
    return findings + one_label_findings(samples, training)


def one_label_findings(samples: Sequence[Sample], training: bool) -> list[Finding]:
    """Classes without an anomalous or without a normal picture; a training set without any defect."""
    labels: dict[str, set] = {}
    for sample in samples:
        if sample.label is not None:
            labels.setdefault(sample.class_name, set()).add(sample.label)
    if training and labels and not any(1 in own for own in labels.values()):
        text = "no anomalous picture in the training set: there is no defect to learn from; train on a test split"
        return [Finding("one label", "all classes", samples[0].source, text)]
    words = {0: "no anomalous picture, only normal ones", 1: "no normal picture, only anomalous ones"}
    return [
        Finding("one label", f"class {name}", "", words[next(iter(own))])
        for name, own in labels.items()
        if len(own) == 1
    ]
