"""The state inside an epoch: one file per run folder, there only while an epoch is not finished."""

from pathlib import Path
from typing import Any

from files.atomic import remove
from files.tensors import DamagedFile
from model.weights_file import WeightsSource
from run_folder.checkpoints import load_checkpoint, save_checkpoint
from run_folder.identity import compare_identity
from run_folder.kinds import EPOCH_FILE
from run_folder.resume import check_of_this_run
from run_folder.session import Session
from run_folder.state import Record, TrainState


class EpochFile:
    """Keeps what a stage has done of an epoch, as a checkpoint of the stage with two keys more.

    The next checkpoint makes it useless: it is deleted then, and what a kill between the two leaves is never used.
    """

    def __init__(self, stage_file: Path, record: Record):
        """`stage_file`: the stage's own checkpoint, whose name tells the stages of a folder apart."""
        self.path, self.stage_file, self.record = stage_file.with_name(EPOCH_FILE), stage_file, record

    def save(self, state: TrainState, so_far: dict[str, Any]) -> None:
        """Write the stage's state between two steps; `so_far` is what the epoch has summed up, "steps" among it."""
        content = state.content(self.record) | {"stage_file": self.stage_file.name, "so_far": so_far}
        save_checkpoint(self.path, content)

    def resume(
        self,
        state: TrainState,
        session: Session,
        extendable: frozenset[str] | set[str] | None,
        source: WeightsSource | None,
    ) -> dict[str, Any] | None:
        """Put a stage that stands at an epoch's begin where the file left it inside that epoch.

        Arguments as `run_folder.resume.resume_stage`, which comes first.

        Returns:
            {"rng": random states, "so_far": as it was saved}; None without a file of this stage and epoch.

        Raises:
            RuntimeError: the file is of a run with other flags, another backbone, other images, prompts or text side.
        """
        if not self.path.is_file():
            return None
        try:
            content = load_checkpoint(self.path, keys=["stage_file", "so_far", "epoch", "rng"])
        except DamagedFile as error:
            session.logger.warning(f"{error}. Going on from the last whole epoch")
            return None
        if content["stage_file"] != self.stage_file.name:
            return None  # that stage goes on from it, if this one has ended
        if content["epoch"] != state.epoch:
            session.logger.info(
                f"{self.path.name} is of epoch {content['epoch']}, {state.epoch} are done: not used"
            )
            if content["epoch"] < state.epoch:
                self.remove()
            return None
        check_of_this_run(content, self.path, state, session, extendable, source)
        if self.record.identity is not None:
            compare_identity(self.path, content, self.record.identity)
        state.restore(content, self.path)
        session.logger.info(
            f"{self.path.name}: epoch {state.epoch} goes on after {content['so_far']['steps']} steps"
        )
        return {"rng": content["rng"], "so_far": content["so_far"]}

    def remove(self) -> None:
        """Delete the file, because the epoch's checkpoint is written."""
        remove(self.path)
