"""Going on with a run: is it the same one, and where did it stop."""

from collections.abc import Iterator, Sequence
from logging import Logger
from pathlib import Path
from typing import Any

from dataset.jsonl import Sample
from dataset.mask_values import mask_reading_of
from files.command import Refusal
from files.tensors import DamagedFile
from model.adapter import AdaptedCLIP
from model.clip import CLIP
from model.weights_file import WeightsSource
from run_folder.checkpoints import (
    check_backbone,
    load_checkpoint,
    load_module,
    newest_intact,
    read_newest,
    restore_rng,
    versions,
)
from run_folder.identity import (
    Identity,
    compare_identity,
    identity_in,
    new_run_id,
    prompts_identity,
    rows_identity,
    warn_of_unchecked,
)
from run_folder.kinds import EPOCH_FILE, FEEDBACK, RunKind, finished_loops, loop_file
from run_folder.processes import current
from run_folder.session import Session
from run_folder.settings import Settings
from run_folder.state import Record, TrainState, record_of


def begin_run(
    session: Session,
    kind: RunKind,
    clip: CLIP,
    samples: Sequence[Sample],
    base: dict[str, str] | None = None,
    extendable: frozenset[str] | None = None,
) -> Record:
    """The record of a run, once every file that its folder holds of it was found to be of this run.

    It comes before the first step, so that no stage is trained, and no file written, beside one that does not fit.

    Args:
        samples: of the training set.
        base: {module's key: SHA-256 of the file it starts from}.
        extendable: names of the flags that may differ from the files', instead of those of `resume_stage`.

    Raises:
        RuntimeError: a file is of other settings, another backbone, other images, prompts or base weights.
        ValueError: a stage of 0 epochs in a folder that holds its file.
        DamagedFile: no intact file is left of a stage.
    """
    settings = session.settings
    wanted = Identity(
        kind=kind.name,
        rows=rows_identity(samples),
        prompts=prompts_identity(settings.data.dataset),
        base=base or {},
        backbone=clip.source,
    )
    unchecked, text_of = [], {}
    for stage, path in files_of_stages(kind, Path(settings.run.save_path)):
        refuse_no_epochs(kind, stage, path, settings)
        try:
            content = read_newest(path)[0]
        except DamagedFile:
            if kind is FEEDBACK:  # what it holds is made again
                continue
            raise
        check_same_run(content.get("settings"), settings, path, may_be_extended(stage, settings, extendable))
        unchecked += [f"{words} ({path.name})" for words in compare_identity(path, content, wanted)]
        found = identity_in(content)
        wanted = wanted._replace(run=wanted.run or found.run)
        if found.text is not None:
            text_of[path] = found.text
    path = Path(settings.run.save_path) / EPOCH_FILE
    begun = begun_epoch(path)
    if begun is not None:  # of a run stopped in its first epoch the only file
        stage = "text" if "text" in begun["stage_file"] else "image"
        check_same_run(begun.get("settings"), settings, path, may_be_extended(stage, settings, extendable))
        unchecked += [f"{words} ({path.name})" for words in compare_identity(path, begun, wanted)]
        wanted = wanted._replace(run=wanted.run or identity_in(begun).run)
    warn_of_unchecked(unchecked, settings.run.save_path, session.logger)
    new = current().tell(new_run_id())
    identity = wanted._replace(run=wanted.run or new)
    return record_of(settings, clip)._replace(identity=identity, text_of=text_of)


def refuse_no_epochs(kind: RunKind, stage: str, path: Path, settings: Settings) -> None:
    """Raises ValueError for a stage of 0 epochs that has a file, outside of feedback, where some loop may have one."""
    if kind is not FEEDBACK and getattr(settings.training, f"{stage}_epoch") == 0:
        raise ValueError(
            f"--{stage}_epoch 0 in {path.parent}, which holds a {path.name}: choose another --save_path"
        )


def begun_epoch(path: Path) -> dict[str, Any] | None:
    """A run's state inside an epoch, None without one that is intact: a damaged one costs that epoch and no more."""
    try:
        return load_checkpoint(path) if path.is_file() else None
    except DamagedFile:
        return None


def files_of_stages(kind: RunKind, folder: Path) -> Iterator[tuple[str, Path]]:
    """(stage, its checkpoint) of those that a run's folder holds, in the order of training.

    Of a feedback run its last finished loop's intact file, and those of the loops behind, which are made (again).
    """
    if kind is FEEDBACK:
        finished = [path for _, path in finished_loops(folder)]
        loops = range(1, len(finished) + 2)
        while finished and not is_intact(finished[-1]):
            finished.pop()
        own = [
            (stage, loop_file(folder, loop, f"{stage}_adapter"))
            for loop in loops
            if loop > len(finished)
            for stage in ("text", "image")
        ]
        files = [*(("image", path) for path in finished[-1:]), *own]
    else:
        files = [("text", folder / kind.text_file), ("image", folder / f"{kind.image_prefix}.pth")]
    return ((stage, path) for stage, path in files if path.is_file())


def is_intact(path: Path) -> bool:
    """Whether a checkpoint can be read."""
    try:
        load_checkpoint(path)
    except DamagedFile:
        return False
    return True


def may_be_extended(
    stage: str, settings: Settings, extendable: frozenset[str] | set[str] | None
) -> frozenset[str] | set[str]:
    """Names of the flags in which a stage's file may differ: `extendable`, or its own and later stages' lengths."""
    if extendable is not None:
        return extendable
    if stage == "text":
        return {"text_epoch", "image_epoch"}
    return set() if settings.corrections.milestones[0] < 1 else {"image_epoch"}


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
    extendable = may_be_extended(state.name, session.settings, extendable)
    check_same_run(content.get("settings"), session.settings, path, extendable)
    check_backbone(content, source, path)
    warn_of_other_products(content, path, session.logger)


def warn_of_other_products(content: dict[str, Any], path: Path, logger: Logger) -> None:
    """Say that `--matmul auto`, which chooses anew at every start, chose otherwise than for what a file holds."""
    stored = content.get("versions")
    if not stored:
        return
    before, now = (known.get("matmul", "torch's own") for known in (stored, versions()))
    if before != now:
        logger.warning(
            f"{path.name}: float32 products were {before}, are {now}: the run goes on, but not bit for bit"
        )


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
    current = with_mask_reading(settings.record(), settings.data.dataset)
    before = with_mask_reading(settings.defaults(added_later=True) | stored, settings.data.dataset)
    compared = set(settings.flags(moves_numbers=True)) - set(extendable)
    differing = [
        f"--{key} was {value!r}, is {current[key]!r}"
        for key, value in before.items()
        if key in compared and value != current[key]
    ]
    if differing:
        raise Refusal(
            f"{path} belongs to a run with other settings: {'; '.join(differing)}. "
            "Continue with its flags, or start a new run with another --save_path"
        )


def with_mask_reading(record: dict[str, Any], dataset: str) -> dict[str, Any]:
    """A record that names the reading of masks also where it was left to the dataset."""
    if "mask_reading" not in record:
        return record
    return record | {"mask_reading": mask_reading_of(dataset, record["mask_reading"])}


def finished_loops_of(
    session: Session, model: AdaptedCLIP, extendable: frozenset[str], record: Record
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """The finished loops of a feedback run; the last one's weights and random state are restored.

    A damaged loop ends them, with a warning: it and later ones are made again from what their stages' files hold.

    Args:
        extendable: names of the flags that may differ from the files'.
        record: of the run.

    Returns:
        (the loops as training.history.write_history takes them, the content of the last one's file or None)

    Raises:
        ValueError: more loops are finished than the run is to have.
        FileNotFoundError: a loop's file is missing between others.
        RuntimeError: a file is of a run with other flags, of another backbone, of other images or prompts.
    """
    settings, loops, content, unchecked = session.settings, [], None, []
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
        unchecked += compare_identity(path, found, record.identity)
        content, last = found, path
        loops.append({"loop": loop} | content["history"])
    if content is not None:
        for key, module in modules.items():
            load_module(module, content[key], last)
        restore_rng(content["rng"])
        warn_of_unchecked(unchecked, save_path, session.logger)
        session.logger.info(f"{last.name}: {len(loops)} loops done, continuing from there")
    return loops, content
