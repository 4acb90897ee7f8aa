"""manifest.json: what a run was made of and every start of it: command, versions, git state, machine, threads.

Hashes of weights, rows, prompts and base files are those that every checkpoint has under "identity" and "backbone",
readable here from the first step on. Settings are in config.yaml.
"""

import hashlib
import json
import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from logging import Logger
from pathlib import Path
from typing import Any

import torch

from files.atomic import write_text
from run_folder.checkpoints import versions
from run_folder.config_file import write_config
from run_folder.groups import cores
from run_folder.kinds import BASELINE, CROSS_ATTENTION, FEEDBACK
from run_folder.session import Session
from run_folder.state import Record

MANIFEST = "manifest.json"
ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = {
    BASELINE.name: "train.py",
    CROSS_ATTENTION.name: "train_cross_attention.py",
    FEEDBACK.name: "train_cross_attention_feedback.py",
}
PACKAGES = (
    "torchvision",
    "scipy",
    "scikit-learn",
    "pillow",
    "opencv-python-headless",
    "opencv-python",
    "safetensors",
)
MOVES_NUMBERS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ATEN_CPU_CAPABILITY", "CUBLAS_WORKSPACE_CONFIG")
GIT_SECONDS = 10  # a checkout on a slow disk must not hold up a run
SHOWN = 50  # changed files that are named


def write_start(session: Session, record: Record) -> None:
    """Write a run's config.yaml, and its manifest.json with one start more, and open its entry of a tracker.

    Args:
        record: of run_folder.resume.begin_run, whose checks are done.
    """
    settings, identity = session.settings, record.identity
    folder = Path(settings.run.save_path)
    write_config(folder, settings.groups().values(), SCRIPTS[identity.kind])
    stored = identity.record()
    made_of = {"run": stored["run"], "kind": stored["kind"], "backbone": record.backbone}
    made_of |= {key: stored[key] for key in ("rows", "prompts", "base")}
    add_start(folder, made_of, start(settings.argv, session.device), session.logger)
    session.tracker.begin(stored["run"])


def add_start(folder: Path, made_of: dict[str, Any], now: dict[str, Any], logger: Logger) -> None:
    """Write manifest.json: what the run was made of when it began, and its starts with `now` as the last.

    Args:
        made_of: with the run's id under "run".
    """
    path = folder / MANIFEST
    before = read_manifest(path, logger)
    same = before is not None and before.get("run") == made_of["run"]
    content = before if same else made_of | {"starts": []}
    content["starts"].append(now)
    write_text(path, json.dumps(content, indent=1) + "\n")


def read_manifest(path: Path, logger: Logger) -> dict[str, Any] | None:
    """A run's manifest; None, with a warning, where it is no manifest, and without one where there is none."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content["starts"], list):
            return content
        reason = "its starts are no list"
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
    logger.warning(f"{path.name} is no manifest ({reason}): a new one takes its place")
    return None


def start(argv: tuple[str, ...], device: torch.device) -> dict[str, Any]:
    """What is to be known of the process that starts now.

    Args:
        argv: the words its settings were read from.
    """
    return {
        "at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "program": Path(sys.argv[0]).name,
        "flags": list(argv),
        "versions": {"python": platform.python_version(), **versions(), **packages()},
        "git": git_state(),
        "machine": machine(device),
        "threads": torch.get_num_threads(),
        "environment": {name: os.environ[name] for name in MOVES_NUMBERS if name in os.environ},
    }


def packages() -> dict[str, str]:
    """Versions of further packages that read images or compute metrics, of those that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine(device: torch.device) -> dict[str, Any]:
    """The machine without its name: system, processor, cores, memory, and the GPU where one is used."""
    pages = {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= getattr(os, "sysconf_names", {}).keys()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if pages else None
    found = {
        "system": platform.platform(),
        "processor": platform.machine(),
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "cores": cores(),
        "memory_bytes": memory,
        "device": str(device),
    }
    if device.type == "cuda":
        found |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
        found["cudnn"] = torch.backends.cudnn.version()
    return found


def git_state(root: Path = ROOT) -> dict[str, Any]:
    """{"commit", "changed": files that differ from it, "diff_sha256": of `git diff HEAD`}; {"unknown": why} without."""
    try:
        commit = git(root, "rev-parse", "HEAD").strip()
        if not git(
            root, "ls-files", "--", "*.py"
        ):  # installed into an environment that lies in some repository
            return {"unknown": "the repository around this installation does not hold it"}
        changed = [
            line[3:] for line in git(root, "status", "--porcelain", "--", "*.py", "*.json").splitlines()
        ]
        difference = git(root, "diff", "HEAD")
    except (OSError, subprocess.SubprocessError) as error:
        return {
            "unknown": f"{type(error).__name__}: {' '.join(str(getattr(error, 'stderr', '') or error).split())}"
        }
    named = {"changed": changed[:SHOWN]} | ({"changed_files": len(changed)} if len(changed) > SHOWN else {})
    digest = {"diff_sha256": hashlib.sha256(difference.encode()).hexdigest()} if difference else {}
    return {"commit": commit} | named | digest


def git(root: Path, *words: str) -> str:
    """What a git command prints. Raises OSError without git, SubprocessError where it fails or takes too long."""
    command = ["git", "-C", str(root), *words]
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", check=True, timeout=GIT_SECONDS
    )
    return done.stdout
