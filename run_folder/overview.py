"""What lies in run folders, read from their text files: kind, data, epochs, metrics, size; no weights are loaded.

Runs of older versions have no config.yaml: their settings come from a checkpoint.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from files.text import read_json, read_mapping
from run_folder.checkpoints import numbered_checkpoints, settings_in
from run_folder.config_file import CONFIG_FILE
from run_folder.kinds import (
    BASELINE,
    CROSS_ATTENTION,
    EPOCH_FILE,
    FEEDBACK,
    FINAL_MODEL,
    KINDS,
    finished_loops,
    image_checkpoints,
    text_checkpoint,
)
from run_folder.manifest import MANIFEST

METRICS = ("pixel_auroc", "pixel_ap", "image_auroc", "image_ap")  # those a list shows
HISTORY, METRICS_FILE = "history.json", "metrics.json"
NONE = "–"
UNITS = ("B", "kB", "MB", "GB", "TB")


class Overview(NamedTuple):
    """A run folder as its files describe it.

    `kind`: of run_folder.kinds, "semantic fill", or "evaluations" where nothing was trained. `epochs`: in words.
    `metrics`: {data set: {checkpoint: {metric: mean over the classes, 0 to 1}}}; behind the checkpoint ", unfinished"
    where classes are missing. `size`: bytes of all files.
    """

    folder: Path
    kind: str
    settings: dict[str, Any]
    manifest: dict[str, Any]
    epochs: str
    metrics: dict[str, dict[str, dict[str, float | None]]]
    size: int

    @property
    def data(self) -> str:
        """Training set and how much of it."""
        if "dataset" not in self.settings:
            return str(self.settings.get("data", NONE))
        if self.settings.get("training_mode") == "few_shot" and self.settings.get("shot"):
            return f"{self.settings['dataset']} {self.settings['shot']}-shot"
        return f"{self.settings['dataset']} full-shot"


def run_folders(root: Path | str) -> Iterator[Path]:
    """The run folders at or below a folder, by name; a run's own subfolders are not searched, links not followed.

    Raises:
        FileNotFoundError: no such folder.
    """
    if not Path(root).is_dir():
        raise FileNotFoundError(f"no folder {str(root)!r}: name one that holds runs, such as ckpt")
    for place, folders, files in os.walk(root):
        if is_run(set(files)):
            folders.clear()
            yield Path(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))


def is_run(names: set[str]) -> bool:
    """Whether a folder with files of these names is a run's."""
    own = {MANIFEST, METRICS_FILE, FINAL_MODEL, EPOCH_FILE}
    prefixes = tuple(kind.image_prefix for kind in KINDS)
    texts = {kind.text_file for kind in KINDS}
    return bool(names & (own | texts)) or any(
        name.startswith(prefixes) and name.endswith(".pth") for name in names
    )


def overview(folder: Path | str) -> Overview:
    """What a run folder holds.

    Raises:
        FileNotFoundError: it is no run's.
        ValueError: one of its text files is not readable.
    """
    folder = Path(folder)
    if not folder.is_dir() or not is_run(set(os.listdir(folder))):
        raise FileNotFoundError(
            f"{str(folder)!r} is no run's folder: python -m run_folder list DIR shows those below a folder"
        )
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    settings = settings_of_run(folder)
    try:
        manifest = read_json(folder / MANIFEST) if (folder / MANIFEST).is_file() else {}
        kind = manifest.get("kind") or kind_of(folder)
        tested = read_json(folder / METRICS_FILE) if (folder / METRICS_FILE).is_file() else {}
        metrics = {
            data: {
                file + (", unfinished" if entry.get("unfinished") else ""): dict(entry["mean"])
                for file, entry in entries.items()
            }
            for data, entries in tested.items()
        }
        epochs = epochs_of(folder, kind, settings)
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder}: {MANIFEST}, {METRICS_FILE} or {HISTORY} is not as this program writes it "
            f"({type(error).__name__}: {error}): move it away"
        ) from error
    return Overview(folder, kind, settings, manifest, epochs, metrics, size)


def kind_of(folder: Path) -> str:
    """The kind of run by a folder's files, several joined by +."""
    found = [kind.name for kind in KINDS if image_checkpoints(folder, kind, every=False)]
    found = found or [
        kind.name for kind in KINDS if kind.text_file and text_checkpoint(kind, folder / "x").is_file()
    ]
    if not found and any(folder.glob("loop_*.pth")):
        found = [FEEDBACK.name]
    return " + ".join(found) or ("begun" if (folder / EPOCH_FILE).is_file() else "evaluations")


def settings_of_run(folder: Path) -> dict[str, Any]:
    """A run's settings from its config.yaml, else from a checkpoint, else {}."""
    if (folder / CONFIG_FILE).is_file():
        return read_mapping(folder / CONFIG_FILE, "flags to values")
    for kind in KINDS:
        for path in image_checkpoints(folder, kind, every=False):
            return settings_in(path) or {}
    return {}


def epochs_of(folder: Path, kind: str, settings: dict[str, Any]) -> str:
    """Epochs that were trained, text + image, by loops; what is known of a run that has no history yet."""
    begun = ", inside an epoch" if (folder / EPOCH_FILE).is_file() else ""
    if (folder / HISTORY).is_file():
        loops = read_json(folder / HISTORY)["loops"]
        done = ", ".join(f"{len(loop['text'])} + {len(loop['image'])}" for loop in loops)
        if kind == FEEDBACK.name:
            done = f"{len(loops)} of {settings.get('num_feedback_loops', '?')} loops: {done}"
        return done + begun
    if kind == FEEDBACK.name:
        return f"{len(finished_loops(folder))} of {settings.get('num_feedback_loops', '?')} loops" + begun
    for one in (CROSS_ATTENTION, BASELINE):
        numbered = numbered_checkpoints(folder, f"{one.image_prefix}_")
        if numbered:
            return f"image {numbered[-1][0]} of {settings.get('image_epoch', '?')}" + begun
        if text_checkpoint(one, folder / "x").is_file():
            return "text" + begun
    return begun.removeprefix(", ") or NONE


def in_words(size: int) -> str:
    """Bytes as people read them, in powers of 1000."""
    value, unit = float(size), 0
    while value >= 1000 and unit < len(UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.0f} {UNITS[unit]}" if unit == 0 else f"{value:.1f} {UNITS[unit]}"


def told(value: Any) -> str:
    """A value of a manifest in words: what a dictionary holds one after the other, inner ones in brackets."""
    if not isinstance(value, dict):
        return str(value)
    parts = (
        f"{key} {f'({told(inner)})' if isinstance(inner, dict) else inner}" for key, inner in value.items()
    )
    return ", ".join(parts)


def differing(name: str, first: Any, second: Any) -> Iterator[list[str]]:
    """[name, the first's, the second's] of what differs in two values of manifests, dictionaries key by key."""
    if isinstance(first, dict) and isinstance(second, dict):
        for key in dict.fromkeys([*first, *second]):
            yield from differing(f"{name} {key}", first.get(key, NONE), second.get(key, NONE))
    elif first != second:
        yield [name, told(first), told(second)]


def percent(value: float | None) -> str:
    """A metric between 0 and 1 in percent; a dash where undefined."""
    return NONE if value is None else f"{100 * value:.2f}"


def last_evaluation(entries: dict[str, dict[str, float | None]]) -> tuple[str, dict[str, float | None]]:
    """(checkpoint, means) of a data set's last evaluation of a checkpoint as it is; where there is none, of the last
    one of another kind (raw CLIP, normal references, controls)."""
    plain = [file for file in entries if file.endswith(".pth")]
    file = (plain or list(entries))[-1]
    return file, entries[file]


def last_metrics(run: Overview) -> str:
    """Every data set's last evaluation on one line: pixel AUROC/AP, image AUROC/AP in percent, and what was evaluated
    where there are several, or where it is no checkpoint as it is."""
    parts = []
    for data, entries in run.metrics.items():
        file, mean = last_evaluation(entries)
        pixel_auroc, pixel_ap, image_auroc, image_ap = (percent(mean.get(key)) for key in METRICS)
        told = f" ({file})" if len(entries) > 1 or not file.endswith(".pth") else ""
        parts.append(f"{data} {pixel_auroc}/{pixel_ap} · {image_auroc}/{image_ap}{told}")
    return "; ".join(parts) or NONE


def table(rows: list[list[str]]) -> str:
    """Rows as aligned text, the first one the head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
