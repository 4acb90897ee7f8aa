"""Going on with a run: is it the same one, and where did it stop."""

from pathlib import Path
from typing import Any

from files.tensors import DamagedFile
from model.adapter import AdaptedCLIP
from model.weights_file import WeightsSource
from run_folder.checkpoints import (
    check_backbone,
    load_checkpoint,
    load_module,
    newest_intact,
    restore_rng,
)
from run_folder.kinds import finished_loops, loop_file
from run_folder.session import Session
from run_folder.settings import Settings
from run_folder.state import TrainState


def resume_stage(
    path: Path,
    state: TrainState,
    session: Session,
    extendable: frozenset[str] | set[str] | None = None,
    source: WeightsSource | None = None,
) -> None:
    """Continue a stage from its checkpoint, if there is one: weights, optimiser, schedule, history, random state.

    Where it is damaged, the newest intact one before it is continued, with a warning.
    Files of AA-CLIP have no RNG, scheduler or settings: their weights and optimiser are continued, and the log says so.
    A stage may be extended (`--text_epoch`, `--image_epoch`) as long as nothing built on its old end: stage 2 trains
    on stage 1's anchors, and milestones as fractions depend on the number of epochs.

    Args:
        path: the stage's file.
        state: the stage's; its epoch is 0 without a file.
        extendable: names of the flags that may differ from the file's, instead of those.
        source: of the run's backbone, which must be the file's; None to leave it unchecked.

    Raises:
        RuntimeError: no intact file, other adapter settings, another backbone, or a run with other flags.
    """
    if not path.is_file():
        return
    content = newest_intact(path, [*state.modules, "epoch", f"{state.name}_optimizer"], session.logger)
    check_of_this_run(content, path, state, session, extendable, source)
    state.restore(content, path)
    if "rng" not in content:
        session.logger.warning(
            f"{path.name} carries no RNG state (a file of AA-CLIP): the run goes on, but not bit for bit"
        )
    session.logger.info(f"{path.name}: {state.epoch} epochs done, continuing from there")


def check_of_this_run(
    content: dict[str, Any],
    path: Path,
    state: TrainState,
    session: Session,
    extendable: frozenset[str] | set[str] | None,
    source: WeightsSource | None,
) -> None:
    """Refuse a file of another run for going on with a stage; arguments and errors as `resume_stage`."""
    if extendable is None and state.name == "text":
        extendable = {"text_epoch", "image_epoch"}
    elif extendable is None:
        extendable = set() if session.settings.corrections.milestones[0] < 1 else {"image_epoch"}
    check_same_run(content.get("settings"), session.settings, path, extendable)
    check_backbone(content, source, path)


def check_same_run(
    stored: dict[str, Any] | None,
    settings: Settings,
    path: Path,
    extendable: set[str] | frozenset[str] = frozenset(),
) -> None:
    """Refuse to continue a run with flags that change its numbers; `extendable` names flags that may differ.

    Args:
        stored: the settings in its file, None in a file of AA-CLIP.

    Raises:
        RuntimeError: names every flag that differs with both values.
    """
    if not stored:
        return
    current = settings.record()
    before = settings.defaults(added_later=True) | stored
    compared = set(settings.flags(moves_numbers=True)) - set(extendable)
    differing = [
        f"--{key} was {value!r}, is {current[key]!r}"
        for key, value in before.items()
        if key in compared and value != current[key]
    ]
    if differing:
        raise RuntimeError(
            f"{path} belongs to a run with other settings: {'; '.join(differing)}. "
            "Continue with its flags, or start a new run with another --save_path"
        )


def finished_loops_of(
    session: Session, model: AdaptedCLIP, extendable: frozenset[str]
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """The finished loops of a feedback run; the last one's weights and random state are restored.

    A damaged loop ends them, with a warning: it and later ones are made again from what their stages' files hold.

    Args:
        extendable: names of the flags that may differ from the files'.

    Returns:
        (the loops as training.history.write_history takes them, the content of the last one's file or None)

    Raises:
        ValueError: more loops are finished than the run is to have.
        FileNotFoundError: a loop's file is missing between others.
        RuntimeError: a file is of a run with other flags or of another backbone.
    """
    settings, loops, content = session.settings, [], None
    modules = model.text_modules | model.image_modules
    save_path, wanted = settings.run.save_path, settings.feedback.num_feedback_loops
    finished = finished_loops(save_path)
    if finished and finished[-1][0] > wanted:
        raise ValueError(
            f"--num_feedback_loops {wanted}: {save_path} already has loop {finished[-1][0]}; give at least "
            f"that many loops, evaluate a shorter run with test.py --loop {wanted}, or start with another --save_path"
        )
    for expected, (loop, path) in enumerate(finished, start=1):
        if loop != expected:
            raise FileNotFoundError(
                f"{path} is there, but not {loop_file(save_path, expected, 'final').name}: put it back, or delete the "
                "later loops to train them again"
            )
        try:
            found = load_checkpoint(path, keys=["loop", "settings", "rng", "history", *modules])
        except DamagedFile as error:
            session.logger.warning(f"{error}. Going on from loop {loop - 1}: later loops are made again")
            break
        check_same_run(found["settings"], settings, path, extendable)
        check_backbone(found, model.clipmodel.source, path)
        content, last = found, path
        loops.append({"loop": loop} | content["history"])
    if content is not None:
        for key, module in modules.items():
            load_module(module, content[key], last)
        restore_rng(content["rng"])
        session.logger.info(f"{last.name}: {len(loops)} loops done, continuing from there")
    return loops, content
