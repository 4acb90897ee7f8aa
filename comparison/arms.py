"""Arms of a comparison: which runs belong together, what each run is, and which runs are paired."""

import glob
from pathlib import Path
from typing import NamedTuple

from evaluation.run import UNTRAINED
from evaluation.scores import read_about
from files.cells import plain
from files.text import read_json
from run_folder.checkpoints import settings_in
from run_folder.kinds import find_run, kind_of_file


class Run(NamedTuple):
    """One model of an arm."""

    folder: Path
    checkpoint: str  # its entry in metrics.json
    file: Path | None  # None: only its evaluations are here (untrained, or a folder kept without checkpoints)
    kind: str
    seed: int | None  # None: untrained or a file without settings, which go with every seed
    settings: dict | None

    @property
    def key(self) -> str:
        """The run in dictionaries."""
        return f"{self.folder}/{self.checkpoint}"


class Arm(NamedTuple):
    """Runs of one method, one per seed."""

    name: str
    runs: list


def read_arm(text: str) -> Arm:
    """An arm from the command line.

    Args:
        text: `[name=]PATH[,PATH...]`; a PATH is a run folder, a checkpoint file in one, or a glob pattern of either.
            Without a name the arm is called as its first path (a pattern without its `*`, `?` and loose separators).

    Raises:
        FileNotFoundError: a path names nothing.
        ValueError: two runs of the arm have the same seed.
    """
    name, paths = "", text
    if "=" in text and not Path(text).exists():
        name, _, paths = text.partition("=")
    patterns = [text] if Path(text).exists() else paths.split(",")
    run_paths = []
    for pattern in patterns:
        matches = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern))
        if not matches:
            raise FileNotFoundError(
                f"no run {pattern}: give a run folder, a checkpoint file or a pattern of them"
            )
        run_paths += matches
    runs = [read_run(Path(path)) for path in run_paths]
    seeds = [run.seed for run in runs]
    repeated_seeds = {str(seed) for seed in seeds if seeds.count(seed) > 1}
    if repeated_seeds:
        listed = ", ".join(f"{run.folder} (seed {run.seed})" for run in runs)
        raise ValueError(
            f"arm {text}: seed {', '.join(sorted(repeated_seeds))} occurs twice, expected one run a seed: {listed}"
        )
    first_name = Path(patterns[0]).stem if patterns[0].endswith(".pth") else Path(patterns[0]).name
    name = name or first_name.replace("*", "").replace("?", "").strip("_-. ") or patterns[0]
    return Arm(plain(name), runs)  # it heads tables and stands in files


def read_run(path: Path) -> Run:
    """What lies at a path: a run folder (its last checkpoint), a checkpoint file, or a folder of evaluations only.

    Raises:
        FileNotFoundError, ValueError: nothing, or more than one thing, that could be compared.
    """
    if path.is_file():
        kind, file = kind_of_file(path), path
    else:
        try:
            kind, (file,) = find_run(path)
        except FileNotFoundError:
            evaluated = evaluated_checkpoints(path)
            if len(evaluated) > 1:
                raise ValueError(
                    f"{path} holds evaluations of {', '.join(sorted(evaluated))} and no checkpoint: an arm is one of "
                    "them; evaluate each into a folder of its own (--save_path)"
                ) from None
            if not evaluated:
                raise
            return evaluated_run(path, evaluated.pop())
    settings = settings_in(file, keys=kind.image_keys)
    return Run(file.parent, file.name, file, kind.name, (settings or {}).get("seed"), settings)


def evaluated_checkpoints(folder: Path) -> set[str]:
    """Names of the checkpoints that a folder holds evaluations of."""
    names = {read_about(path)["checkpoint"] for path in folder.glob("scores/*/*.npz")}
    if (folder / "metrics.json").is_file():
        metrics = read_json(folder / "metrics.json")
        names |= {name for entries in metrics.values() for name in entries if name in UNTRAINED}
    return names


def evaluated_run(folder: Path, checkpoint: str) -> Run:
    """A run of which only evaluations are left, or one without training, which has no checkpoint."""
    files = sorted(folder.glob("scores/*/*.npz"))
    if files:
        evaluation_info = read_about(files[0])
    else:
        metrics = read_json(folder / "metrics.json")
        evaluation_info = next(by_file[checkpoint] for by_file in metrics.values() if checkpoint in by_file)
    untrained, settings = checkpoint in UNTRAINED, evaluation_info["settings"]
    seed = None if untrained else (settings or {}).get("seed")
    return Run(folder, checkpoint, None, checkpoint if untrained else evaluation_info["kind"], seed, settings)


def pair(baseline: Arm, arm: Arm) -> tuple[list[tuple[int | None, Run, Run]], list[int | None]]:
    """Pair the runs of an arm with the baseline's by seed; a single run without a seed goes with every run.

    Returns:
        ([(seed, baseline run, run)] by seed, [seeds of either without a partner])

    Raises:
        ValueError: there is no pair.
    """
    ours, theirs = ({run.seed: run for run in side.runs} for side in (arm, baseline))
    if None in ours and len(ours) == 1:
        ours = dict.fromkeys(theirs, ours[None])
    elif None in theirs and len(theirs) == 1:
        theirs = dict.fromkeys(ours, theirs[None])
    both = [seed for seed in ours if seed in theirs]
    if not both:
        raise ValueError(
            f"arm {arm.name} has the seeds {list(ours)} and the baseline {list(theirs)}: runs are paired by seed, "
            "train both with the same --seed"
        )
    both.sort(key=lambda seed: -1 if seed is None else seed)
    alone = [seed for seed in [*ours, *theirs] if seed not in both]
    return [(seed, theirs[seed], ours[seed]) for seed in both], alone
