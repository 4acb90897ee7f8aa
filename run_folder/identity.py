"""What a checkpoint was made of, and whether it belongs where it lies: run, kind, backbone, rows, prompts, text side.

Every checkpoint carries it under "identity". Files of AA-CLIP and of older versions carry less: what they do not say
cannot be compared, and whoever takes them is told so once.
"""

import hashlib
import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from logging import Logger
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from dataset.constants import PROMPTS, REAL_NAMES
from dataset.jsonl import Sample
from files.command import Refusal
from files.digests import state_digest
from files.fingerprints import fingerprint
from files.state_dict import unwrapped
from model.weights_file import WeightsSource
from run_folder.checkpoints import check_backbone
from run_folder.kinds import BASELINE, CROSS_ATTENTION, FEEDBACK
from run_folder.settings import CROSS_ATTENTION_GROUPS

NO_TEXT = "none"  # stands for the digest of a text side: anchors of plain CLIP
SHOWN = 3  # differences named in a refusal
# A run may go on: its files may have other ones.
LENGTHS = ("text_epoch", "image_epoch", "num_feedback_loops")
COMPARED = {  # flags that move numbers; of those that only feedback recipes have, the run's id tells
    one.name
    for group in CROSS_ATTENTION_GROUPS.values()
    for one in fields(group)
    if one.metadata["moves_numbers"] and one.name not in LENGTHS
}
STORED = ("run", "kind", "rows", "prompts", "text", "base")  # what "identity" holds of an Identity


class Identity(NamedTuple):
    """What a checkpoint was made of, or what it is expected to be made of; None is not known, or not asked for.

    `run`: shared by all files of a run. `kind`: run_folder.kinds.RunKind.name. `rows`: of `rows_identity`. `prompts`:
    of `prompts_identity`. `text`: `weights_digest` of the text side an image side was trained with, or NO_TEXT. `base`:
    {module's key: SHA-256 of the file it started from}. `settings`: {flag: value}. `backbone`: of now; a file's own is
    compared by `check_backbone`.
    """

    run: str | None = None
    kind: str | None = None
    rows: dict[str, Any] | None = None
    prompts: dict[str, Any] | None = None
    text: str | None = None
    base: dict[str, str] | None = None
    settings: dict[str, Any] | None = None
    backbone: WeightsSource | None = None

    def record(self) -> dict[str, Any]:
        """What a checkpoint keeps under "identity"."""
        return {key: getattr(self, key) for key in STORED}


def identity_in(content: Mapping[str, Any]) -> Identity:
    """What a checkpoint's content says of itself; files without an identity say their kind by their keys."""
    stored = content.get("identity") or {}
    found = {key: stored.get(key) for key in STORED} | {"settings": content.get("settings")}
    return Identity(**found | {"kind": found["kind"] or kind_in(content)})


def kind_in(content: Mapping[str, Any]) -> str | None:
    """The kind of run that a checkpoint's keys and settings say; None where they fit several."""
    settings = content.get("settings") or {}
    if "num_feedback_loops" in settings or {"text_adapter", "image_adapter"} <= content.keys():
        return FEEDBACK.name
    if "cross_attn_heads" in settings or {"text_cross_attn", "image_cross_attn"} & content.keys():
        return CROSS_ATTENTION.name
    return BASELINE.name if settings else None


def new_run_id() -> str:
    """A name for a run that no other has; it takes nothing from the seeded random generators."""
    return secrets.token_hex(8)


def weights_digest(states: Mapping[str, Mapping[str, Tensor]]) -> str:
    """SHA-256 of {module's key: state dict}, whatever file, device and wrapper they came in."""
    flat = {
        f"{key}.{name}": value for key, state in states.items() for name, value in unwrapped(state).items()
    }
    return state_digest(flat)


def text_side(content: Mapping[str, Any], keys: Iterable[str]) -> Identity:
    """The identity of a text checkpoint, whose `text` is the digest of what it holds."""
    return identity_in(content)._replace(text=weights_digest({key: content[key] for key in keys}))


def prompts_identity(dataset: str, names: bool = True) -> dict[str, Any]:
    """What the anchors of a dataset's classes are made of: {"templates": SHA-256, "dataset", "names": {class: name}}.

    `names` are left out where only the templates are to be compared.
    """
    templates = hashlib.sha256(json.dumps(PROMPTS, sort_keys=True).encode()).hexdigest()
    found = {"templates": templates, "dataset": dataset}
    return found | {"names": dict(REAL_NAMES[dataset])} if names and dataset in REAL_NAMES else found


def rows_identity(samples: Sequence[Sample]) -> dict[str, Any]:
    """What some rows say and name: counts, and a SHA-256 each of the rows in their order, of images and of masks.

    Contents go in by `files.fingerprints.fingerprint`, which reads three blocks of a large file.
    """
    listed, images, masks = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
    classes, image_bytes = {}, 0
    for sample in samples:
        files = sample.mask_paths
        line = [sample.file_name, sample.class_name, str(sample.label), *(Path(file).name for file in files)]
        listed.update(json.dumps(line).encode())
        size, print_of_image = fingerprint(sample.image_path)
        image_bytes += size
        images.update(print_of_image)
        for file in files:
            masks.update(fingerprint(file)[1])
        classes[sample.class_name] = classes.get(sample.class_name, 0) + 1
    return {
        "rows": len(samples),
        "anomalous": sum(sample.label == 1 for sample in samples),
        "masks": sum(len(sample.mask_paths) for sample in samples),
        "classes": classes,
        "image_bytes": image_bytes,
        "listed_sha256": listed.hexdigest(),
        "images_sha256": images.hexdigest(),
        "masks_sha256": masks.hexdigest(),
    }


def compare_identity(
    path: Path | str, content: Mapping[str, Any], wanted: Identity, found: Identity | None = None
) -> list[str]:
    """Refuse a checkpoint that is not what is wanted; the only place that decides it.

    Args:
        content: of the file.
        wanted: what it has to agree with.
        found: the file's, where it is more than `identity_in` its content.

    Returns:
        what could not be compared because the file does not say it, in words.

    Raises:
        RuntimeError: names every difference with both values, and what to do.
    """
    found = found or identity_in(content)
    if wanted.backbone is not None:
        check_backbone(content, wanted.backbone, path)
    unchecked = ["its backbone"] if wanted.backbone is not None and not content.get("backbone") else []
    problems, remedies = [], []
    for part, (words, differences, remedy) in PARTS.items():
        expected, stored = getattr(wanted, part), getattr(found, part)
        if expected is None:
            continue
        if stored is None:
            unchecked.append(words)
            continue
        problem = differences(stored, expected)
        if problem:
            problems.append(problem)
            remedies.append(remedy)
    if problems:
        raise Refusal(
            f"{path} does not belong here: {'; '.join(problems)}. {' '.join(dict.fromkeys(remedies))}"
        )
    return unchecked


def differing_kinds(stored: str, expected: str) -> str | None:
    """What differs, as a sentence, or None."""
    return None if stored == expected else f"it is of a {stored} run, expected one of a {expected} run"


def differing_runs(stored: str, expected: str) -> str | None:
    """What differs, as a sentence, or None."""
    return None if stored == expected else f"it is of run {stored}, the files beside it are of run {expected}"


def differing_rows(stored: dict[str, Any], now: dict[str, Any]) -> str | None:
    """What differs, as a sentence, or None; both of `rows_identity`."""
    if stored == now:
        return None
    parts = [
        f"{key}: {stored.get(key)} there, {now[key]} here"
        for key in ("rows", "anomalous", "masks")
        if stored.get(key) != now[key]
    ]
    before = stored.get("classes") or {}
    parts += [
        f"class {name}: {before.get(name, 0)} rows there, {now['classes'].get(name, 0)} here"
        for name in sorted(before.keys() | now["classes"].keys())
        if before.get(name, 0) != now["classes"].get(name, 0)
    ][:SHOWN]
    if not parts and stored.get("listed_sha256") != now["listed_sha256"]:
        parts.append("as many rows, but other files, labels or another order")
    if not parts and stored.get("images_sha256") != now["images_sha256"]:
        sizes = f"{stored.get('image_bytes')} bytes there, {now['image_bytes']} here"
        parts.append(f"the same rows, but other contents of images ({sizes})")
    if not parts:
        parts.append("the same rows, but other contents of masks")
    return f"other rows ({'; '.join(parts)})"


def differing_prompts(stored: dict[str, Any], now: dict[str, Any]) -> str | None:
    """What differs, as a sentence, or None; both of `prompts_identity`, names compared where both have a class."""
    if stored.get("templates") != now["templates"]:
        return "other prompt templates"
    if stored.get("dataset") != now["dataset"]:
        return None
    before, names = stored.get("names") or {}, now.get("names") or {}
    parts = [
        f"class {name} was called {before[name]!r}, is {names[name]!r}"
        for name in before
        if name in names and before[name] != names[name]
    ]
    return f"other real names: {', '.join(parts[:SHOWN])}" if parts else None


def differing_text(stored: str, expected: str) -> str | None:
    """What differs, as a sentence, or None."""
    if stored == expected:
        return None
    shown = [text if text == NO_TEXT else text[:12] for text in (stored, expected)]
    return (
        f"other text side: {shown[0]} there, {shown[1]} expected (digests of the adapters, none: plain CLIP)"
    )


def differing_settings(stored: dict[str, Any], expected: dict[str, Any]) -> str | None:
    """What differs, as a sentence, or None, among the flags that both have and that move numbers."""
    parts = [
        f"--{flag} was {stored[flag]!r}, expected {value!r}"
        for flag, value in expected.items()
        if flag in COMPARED and flag in stored and stored[flag] != value
    ]
    return f"other settings: {', '.join(parts)}" if parts else None


def differing_bases(stored: dict[str, str], now: dict[str, str]) -> str | None:
    """What differs, as a sentence, or None."""
    keys = sorted(key for key in stored.keys() | now.keys() if stored.get(key) != now.get(key))
    return f"its {' and '.join(keys)} started from another --load_base file" if keys else None


PARTS = {  # {field of Identity: (in words, function (file's, wanted) -> sentence or None, remedy)}
    "kind": ("the kind of run", differing_kinds, "Take the file of the right run."),
    "settings": (
        "its settings",
        differing_settings,
        "Take the file of the right run, or the flags it was made with.",
    ),
    "run": (
        "which run it is of",
        differing_runs,
        "Move files of other runs out of the folder, or name one file with --checkpoint.",
    ),
    "rows": (
        "the images it was trained on",
        differing_rows,
        "Give the data it was trained on, or start a new run with another --save_path.",
    ),
    "prompts": (
        "its prompts",
        differing_prompts,
        "Give the --real_names and --dataset_config of its training, or train with these.",
    ),
    "text": (
        "the text side it was trained with",
        differing_text,
        "Put the run's own text checkpoint back, or train stage 2 again in another --save_path.",
    ),
    "base": ("what it started from", differing_bases, "Give the --load_base files of its begin."),
}


def warn_of_unchecked(unchecked: Iterable[str], path: Path | str, logger: Logger) -> None:
    """One warning for all that files do not say of themselves; none for nothing."""
    words = list(dict.fromkeys(unchecked))
    if words:
        logger.warning(
            f"{path}: taken as it is, a file of AA-CLIP or of an older version does not say what it was made of; not "
            f"checked: {', '.join(words)}"
        )
