"""Pictures beside numbers: a folder of them says what they show, and stale ones are deleted."""

import json
from pathlib import Path
from typing import Any

from files.atomic import write_text
from files.names import safe_name

ABOUT = "about.json"
SHOWN = ("checkpoints", "weights_sha256", "backbone", "rows", "tested_with")  # of an evaluation's provenance
FOLDERS = ("visualization", "attention")  # of a run's folder, each with one folder per data set


def picture_folder(save_path: Path | str, kind: str, dataset: str) -> Path:
    """Where pictures of a kind (one of FOLDERS) of a data set lie."""
    return Path(save_path) / kind / safe_name(dataset)


def clear_stale(folder: Path, checkpoint: str, info: dict[str, Any], draws: bool) -> int:
    """Delete a folder's pictures where they show something else than the evaluation that is written now.

    Pictures of another checkpoint stay until others are drawn: its numbers stay in metrics.json too.

    Args:
        checkpoint: the evaluation's entry in metrics.json.
        info: of evaluation.provenance.provenance.
        draws: whether this evaluation draws such pictures itself; the folder then says what they show.

    Returns:
        how many were deleted.
    """
    what = {"checkpoint": checkpoint} | {key: info[key] for key in SHOWN}
    found = _about(folder)
    pictures = sorted(folder.rglob("*.png")) if folder.is_dir() else []
    stale = found != what and (draws or found.get("checkpoint") in (None, checkpoint))
    if stale:
        for picture in pictures:
            picture.unlink()
        (folder / ABOUT).unlink(missing_ok=True)
    if draws:
        write_text(folder / ABOUT, json.dumps(what, indent=1) + "\n")
    return len(pictures) if stale else 0


def _about(folder):
    """What a folder says it shows; {} where it does not say it."""
    try:
        return json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
