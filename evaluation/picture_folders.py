"""Pictures beside numbers: a file beside the scores says what they show, and stale ones are deleted."""

import json
from pathlib import Path
from typing import Any

from files.atomic import write_text
from files.names import safe_name

# Of an evaluation's provenance; the last is of few-shot ones alone.
SHOWN = ("checkpoints", "weights_sha256", "backbone", "rows", "tested_with", "few_shot")
FOLDERS = ("visualization", "attention")  # of a run's folder, each with one folder per data set


def picture_folder(save_path: Path | str, kind: str, dataset: str) -> Path:
    """Where pictures of a kind (one of FOLDERS) of a data set lie."""
    return Path(save_path) / kind / safe_name(dataset)


def clear_stale(
    save_path: Path | str, kind: str, dataset: str, checkpoint: str, info: dict[str, Any], *, draws: bool
) -> int:
    """Delete pictures of a kind that show something else than the evaluation that is written now.

    Pictures of another checkpoint stay until others are drawn: its numbers stay in metrics.json too.

    Args:
        kind: one of FOLDERS.
        checkpoint: the evaluation's entry in metrics.json.
        info: of evaluation.provenance.provenance.
        draws: whether this evaluation draws them itself; scores/<dataset>/<kind>.json then says what they show.

    Returns:
        how many were deleted.
    """
    folder = picture_folder(save_path, kind, dataset)
    about = Path(save_path) / "scores" / safe_name(dataset) / f"{kind}.json"
    what = {"checkpoint": checkpoint} | what_is_shown(info)
    found = _read(about)
    pictures = sorted(folder.rglob("*.png")) if folder.is_dir() else []
    stale = found != what and (draws or found.get("checkpoint") in (None, checkpoint))
    if stale:
        for picture in pictures:
            picture.unlink()
        about.unlink(missing_ok=True)
    if draws:
        write_text(about, json.dumps(what, indent=1) + "\n")
    return len(pictures) if stale else 0


def what_is_shown(info: dict[str, Any]) -> dict[str, Any]:
    """What of an evaluation's provenance its pictures depend on."""
    return {key: info[key] for key in SHOWN if key in info}


def _read(about):
    """What a file says of pictures; {} where there is none."""
    try:
        return json.loads(about.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
