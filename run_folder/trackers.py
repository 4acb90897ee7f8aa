"""Handing a run's numbers on to a tracker, from what history.json and metrics.json get; no log line is parsed.

A tracker never decides how a run goes: where it fails, one warning says so and nothing more is handed on; and no random
number that training draws depends on it.
"""

import re
from collections.abc import Callable
from importlib.util import find_spec
from logging import Logger
from pathlib import Path
from typing import Any

from files.names import safe_name
from run_folder.checkpoints import restore_rng, rng_state
from run_folder.processes import current
from run_folder.settings import Settings
from run_folder.tracker_backends import BACKENDS, Backend, TrackedRun

PICTURES = 8  # rows of a grid of heatmaps


class Tracker:
    """What the commands hand on; without a backend nothing happens."""

    def __init__(
        self, name: str | None = None, settings: Settings | None = None, logger: Logger | None = None
    ):
        """
        Args:
            name: a key of BACKENDS, None for none.
            settings: of the command.

        Raises:
            ModuleNotFoundError: its package is not installed.
        """
        self._name, self._settings, self._logger = name, settings, logger
        self._backend: Backend | None = None
        if name is not None and find_spec(BACKENDS[name][1]) is None:
            package = BACKENDS[name][1]
            raise ModuleNotFoundError(
                f"--tracker {name} needs {package}: pip install {package}, or leave --tracker away"
            )

    def begin(self, run: str) -> None:
        """Open the run's entry, once.

        Args:
            run: its id, or the name of an evaluation without a run.
        """
        if self._name is None or self._backend is not None:
            return
        folder, record = Path(self._settings.run.save_path), self._settings.record()
        about = TrackedRun(
            folder, run, f"{folder.name}-{run[:6]}", self._settings.tracker.tracker_project, record
        )
        self._try(lambda: self._open(about))

    def _open(self, about: TrackedRun) -> None:
        self._backend = BACKENDS[self._name][0](about)

    def epoch(self, stage: str, entry: dict[str, Any], done: int) -> None:
        """An epoch's losses, rate, norms, seconds, and what `--watch` saw.

        Args:
            stage: "text" or "image".
            entry: as history.json has it.
            done: epochs of the stage so far, those of earlier loops included.
        """
        values = {
            f"{stage}/{key}": entry[key] for key in ("loss", "lr", "seconds", "gradient_norm") if key in entry
        }
        values |= {f"{stage}/loss/{term}": value for term, value in entry["terms"].items()}
        values |= {f"{stage}/gradient/{module}": value for module, value in entry["gradients"].items()}
        for what, seen in entry.get("watch", {}).items():
            values |= {
                f"{stage}/{what}/{part}": value for part, value in seen.items() if isinstance(value, float)
            }
        if "steps_left_out" in entry:
            values[f"{stage}/steps_left_out"] = entry["steps_left_out"]
        self._log(values, done)

    def metrics(self, dataset: str, checkpoint: str, mean: dict[str, float | None]) -> None:
        """The mean over a data set's classes; undefined metrics are left out.

        Args:
            checkpoint: its entry in metrics.json; the number in its name, of an epoch or a loop, is the step.
        """
        place = f"{place_of(checkpoint)}/{dataset}"
        values = {f"{place}/{key}": value for key, value in mean.items() if value is not None}
        self._log(values, step_of(checkpoint))

    def pictures(self, dataset: str, class_name: str, checkpoint: str, folder: Path) -> None:
        """A grid of a class's first heatmaps, of the PNGs in a folder."""
        if self._backend is None:
            return
        place = f"heatmaps{checkpoint.partition('.pth')[2]}" if ".pth" in checkpoint else checkpoint
        name = f"{safe_name(place)}/{safe_name(dataset)}/{safe_name(class_name)}"
        self._try(lambda: self._backend.picture(name, grid(folder), step_of(checkpoint)))

    def close(self) -> None:
        """End the run's entry."""
        if self._backend is not None:
            self._try(self._backend.close)
            self._backend = None

    def _log(self, values: dict[str, float], step: int) -> None:
        if self._backend is not None and values:
            named = {re.sub(r"[^\w\-./ ]", "_", key): value for key, value in values.items()}
            self._try(lambda: self._backend.log(named, step))

    def _try(self, action: Callable[[], Any]) -> None:
        before = rng_state()
        try:
            action()
        except Exception as error:
            self._name = self._backend = None
            self._logger.warning(
                f"the tracker failed ({type(error).__name__}: {error}): nothing more is handed on to it; history.json "
                "and metrics.json have everything"
            )
        finally:
            restore_rng(before)


SILENT = Tracker()


def tracker_of(settings: Settings, logger: Logger) -> Tracker:
    """The tracker that a command's flags name; of several processes the main one has it.

    Raises:
        ModuleNotFoundError: its package is not installed.
    """
    name = None if settings.tracker is None else settings.tracker.tracker
    return SILENT if name is None or not current().main else Tracker(name, settings, logger)


def step_of(checkpoint: str) -> int:
    """The number in a checkpoint's name, an epoch's or a loop's; 0 for one without."""
    found = re.search(r"_(\d+)(?:_final)?\.pth", checkpoint)
    return int(found[1]) if found else 0


def place_of(checkpoint: str) -> str:
    """What the metrics of an entry of metrics.json stand under: "test" or "last", with what is said behind the file's
    name, so that evaluations of several kinds never share a curve; the entry itself where no run was tested."""
    _, is_run, variant = checkpoint.partition(".pth")
    return ("test" if step_of(checkpoint) else "last") + variant if is_run else checkpoint


def grid(folder: Path) -> Any:
    """The first pictures of a folder below one another, uint8 [H, W, 3]."""
    import numpy as np
    from PIL import Image

    rows = []
    for path in sorted(folder.glob("*.png"))[:PICTURES]:
        with Image.open(path) as image:
            rows.append(np.asarray(image.convert("RGB")))
    return np.concatenate([row for row in rows if row.shape == rows[0].shape])
