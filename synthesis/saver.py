"""When a run of semantic fill is saved: its checkpoints, and between two of them what a later call goes on from."""

import time
from pathlib import Path

import torch

from run_folder.guarded_step import MOST_LEFT_OUT, LeftOut
from run_folder.signals import Stopped, StopSignals
from synthesis.system import FillSystem
from synthesis.training_step import Schedule
from synthesis.weights import CHECKPOINT, IN_BETWEEN, remove_in_between, save_system

STEPS_LEFT_OUT = "steps_left_out"  # key of config.json, only where some were


class RunSaver:
    """Saves a run under its folder; `saver(step)` writes the checkpoint after so many steps.

    A save between two checkpoints is a folder of the same files under another name, which sampling does not see. There
    is one at most, and none beside a later checkpoint.
    """

    def __init__(
        self,
        run: Path | str,
        system: FillSystem,
        config: dict,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        *,
        signals: StopSignals | None = None,
        left_out: LeftOut | None = None,
    ):
        """Args as `synthesis.weights.save_system`; `signals`, `left_out`: None without."""
        self.run, self.system, self.config, self.optimizer = Path(run), system, config, optimizer
        self.schedule, self.signals, self.left_out = schedule, signals, left_out
        self._saved_at = time.monotonic()

    def __call__(self, step: int) -> None:
        self._save(step, CHECKPOINT)
        remove_in_between(self.run)

    def is_due(self, step: int) -> bool:
        """Whether it is time to save after a step that no checkpoint follows."""
        by_steps = self.schedule.save_every_steps and step % self.schedule.save_every_steps == 0
        minutes = (time.monotonic() - self._saved_at) / 60
        by_time = self.schedule.save_every_minutes and minutes >= self.schedule.save_every_minutes
        return bool(by_steps or by_time)

    def in_between(self, step: int) -> None:
        """Save after a step that no checkpoint follows."""
        kept = self._save(step, IN_BETWEEN)
        remove_in_between(self.run, kept)

    @property
    def is_asked(self) -> bool:
        """Whether a signal asked to stop."""
        return self.signals is not None and self.signals.asked is not None

    def stop(self, step: int) -> None:
        """Raises Stopped, because a signal asked for it and the step is saved."""
        raise Stopped(self.signals.asked, f"step {step} is saved")

    def _save(self, step, name):
        left = MOST_LEFT_OUT - self.left_out.more if self.left_out is not None else 0
        config = self.config | ({STEPS_LEFT_OUT: left} if left else {})
        folder = save_system(self.run, step, self.system, config, self.optimizer, name)
        self._saved_at = time.monotonic()
        return folder
