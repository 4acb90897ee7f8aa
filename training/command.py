"""What the training commands do once their flags are read."""

from collections.abc import Callable

from files.command import only_one_process
from run_folder.session import Session, training_session
from run_folder.settings import Settings
from training.shapes import check_shapes


def run_training(settings: Settings, train: Callable[[Session], None]) -> None:
    """Train in a session of the run's folder; with `--check_shapes` look at one batch instead, and write nothing.

    Args:
        train: a command's sequence of stages.
    """
    if settings.check is not None and settings.check.check_shapes:
        only_one_process("--check_shapes")
        check_shapes(settings)
        return
    with training_session(settings) as session:
        train(session)
