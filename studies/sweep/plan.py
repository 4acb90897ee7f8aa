"""From a sweep's YAML file to its runs: one per arm and point of the grid, each a list of commands.

out: runs/rates                      # everything of the sweep lies below
script: train.py                     # or arms, each with script, config, settings
config: configs/fork/x.yaml          # optional: settings to begin with
settings: {dataset: DemoA}           # of every run, over the file's
grid: {image_lr: [1e-3, 2e-3], seed: [111, 112]}
test: {datasets: [DemoB], settings: {data_root: data}}
baseline: image_lr_1e-3              # what the report compares with; default the first
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from evaluation.run import DEFAULTS as TEST_DEFAULTS
from evaluation.run import GROUPS as TEST_GROUPS
from files.atomic import write_text
from files.command import Refusal
from files.names import safe_name
from files.nearest import do_you_mean
from files.text import read_mapping, shown
from run_folder.flags import parse
from run_folder.settings import BASELINE_GROUPS, CROSS_ATTENTION_GROUPS
from studies.arm_runs import CROSS, FEEDBACK, ROOT
from training.feedback_recipes import GROUPS as FEEDBACK_GROUPS

CHECKED = {  # scripts whose settings are read before anything is started
    "train.py": BASELINE_GROUPS,
    CROSS: CROSS_ATTENTION_GROUPS,
    FEEDBACK: FEEDBACK_GROUPS,
    "train_cross_attention_feedback_v2.py": FEEDBACK_GROUPS,
}
OWN_FLAGS = ("save_path",)  # chosen by the sweep
SEED = "seed"
# Of a run's settings what its tests take too; their own settings win.
SHARED = ("model_name", "clip_weights", "data_root", "dataset_config", "real_names", "device", SEED)


@dataclass(frozen=True)
class Arm:
    """One method of a sweep."""

    script: str | None = None
    config: str | None = None
    settings: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Tests:
    """What every run is tested on; `settings` are test.py's."""

    datasets: list = field(default_factory=list)
    settings: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Sweep:
    """A sweep's file; what the keys mean stands in docs/cluster.md."""

    out: str
    script: str | None = None
    config: str | None = None
    settings: dict = field(default_factory=dict)
    arms: dict = field(default_factory=dict)
    grid: dict = field(default_factory=dict)
    test: dict = field(default_factory=dict)
    baseline: str | None = None
    compare: list = field(default_factory=list)
    environment: dict = field(default_factory=dict)
    slurm: dict = field(default_factory=dict)
    processes: int = 1


class SweepRun(NamedTuple):
    """One run: `commands` are lists of words behind "python"; the first one trains."""

    name: str
    arm: str  # its column in the report: method and point of the grid without the seed
    folder: Path
    commands: list[list[str]]


def read_sweep(path: Path | str) -> Sweep:
    """A sweep's file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown key, a value of another kind than expected, or no script.
    """
    sweep = _made(Sweep, read_mapping(path, "keys of a sweep"), str(path))
    for name, arm in sweep.arms.items():
        _made(Arm, arm, f"{path}: arm {name}")
    _made(Tests, sweep.test, f"{path}: test")
    for key, values in sweep.grid.items():
        if not isinstance(values, list) or not values:
            raise ValueError(
                f"{path}: grid: {key} is {shown(values)}: expected a list of values, [1e-3, 2e-3]"
            )
    if sweep.processes < 1:
        raise ValueError(f"{path}: processes is {sweep.processes}: expected 1 or more")
    for name, arm in arms_of(sweep).items():
        if arm.script is None:
            raise ValueError(
                f"{path}: arm {name} has no script: give one to it or to all, for instance train.py"
            )
        if not (ROOT / arm.script).is_file():
            raise FileNotFoundError(f"{path}: arm {name}: no script {arm.script} in {ROOT}")
    return sweep


def _made(kind: type, values: Any, where: str) -> Any:
    """A dataclass of a mapping's values, whose keys and kinds of values are checked."""
    if not isinstance(values, dict):
        raise ValueError(f"{where} is {shown(values)}: expected keys with values")
    known = {one.name: one for one in fields(kind)}
    for key, value in values.items():
        if key not in known:
            raise ValueError(f"{where}: unknown key {shown(key)}{do_you_mean(str(key), known)}")
        if not isinstance(value, known[key].type):
            raise ValueError(f"{where}: {key} is {shown(value)}: expected {known[key].type}")
    if kind is Sweep and "out" not in values:
        raise ValueError(f"{where}: out is missing: the folder of everything the sweep writes")
    return kind(**values)


def arms_of(sweep: Sweep) -> dict[str, Arm]:
    """{name: arm} with what the sweep says of all of them; one arm "run" where it names none."""
    found = {}
    for name, values in (sweep.arms or {"run": {}}).items():
        arm = Arm(**values)
        settings = sweep.settings | arm.settings
        found[str(name)] = Arm(arm.script or sweep.script, arm.config or sweep.config, settings)
    return found


def runs_of(sweep: Sweep, path: Path | str) -> list[SweepRun]:
    """The runs of a sweep, whose configuration files are written and checked.

    Args:
        path: of the sweep's file, for messages.

    Raises:
        ValueError: a flag that its script does not have or a value it cannot have; two runs of one name; a baseline
            that is no arm.
        RuntimeError: a run was begun with other settings.
        SystemExit: flags that contradict one another.
    """
    out, runs = Path(sweep.out).resolve(), []
    for arm_name, arm in arms_of(sweep).items():
        for point in points(sweep.grid):
            rest = {key: value for key, value in point.items() if key != SEED}
            words = [arm_name] if sweep.arms or not rest else []
            column = safe_name("_".join([*words, *(f"{key}_{value}" for key, value in rest.items())]))
            name = f"{column}_seed{point[SEED]}" if SEED in point else column
            folder = out / "runs" / name
            values = settings_of_run(arm, point, path) | {"save_path": str(folder)}
            config = written(sweep.out, name, name, values)
            if arm.script in CHECKED:
                parse("", CHECKED[arm.script], ["--config", str(config)])
            commands = [[str(ROOT / arm.script), "--config", str(config)]]
            runs.append(SweepRun(name, column, folder, [*commands, *tests_of(sweep, name, folder, values)]))
    names = [run.name for run in runs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{path}: two runs would be called {', '.join(twice)}: name the arms otherwise")
    if sweep.baseline is not None and sweep.baseline not in {run.arm for run in runs}:
        columns = list(dict.fromkeys(run.arm for run in runs))
        raise ValueError(f"{path}: baseline is {sweep.baseline!r}: expected one of {', '.join(columns)}")
    return runs


def points(grid: dict[str, list]) -> Iterator[dict[str, Any]]:
    """The grid's points, {flag: value}, the last flag fastest."""
    return (dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values()))


def settings_of_run(arm: Arm, point: dict[str, Any], path: Path | str) -> dict[str, Any]:
    """{flag: value} of a run: its configuration file's, then the settings', then the grid's."""
    begin = {} if arm.config is None else read_mapping(ROOT / arm.config, "flags to values")
    for flag in OWN_FLAGS:
        if flag in arm.settings or flag in point:
            raise ValueError(f"{path}: {flag} is chosen by the sweep, below its out: take it out")
    return begin | arm.settings | point


def tests_of(sweep: Sweep, name: str, folder: Path, trained: dict[str, Any]) -> Iterator[list[str]]:
    """The commands that test a run on every data set."""
    tests = Tests(**sweep.test)
    for dataset in tests.datasets:
        values = {key: trained[key] for key in SHARED if key in trained}
        values |= tests.settings | {"dataset": dataset, "save_path": str(folder)}
        file = safe_name(f"{name}_test_{dataset}")
        config = written(sweep.out, name, file, values)
        parse("", TEST_GROUPS, ["--config", str(config)], TEST_DEFAULTS)
        yield [str(ROOT / "test.py"), "--config", str(config)]


def state_file(out: Path | str, name: str) -> Path:
    """Where a sweep keeps how far a run is, from its begin on."""
    return Path(out).resolve() / "state" / f"{name}.json"


def written(out: str, name: str, file: str, values: dict[str, Any]) -> Path:
    """A configuration file of a run with these values.

    Raises:
        RuntimeError: the run was begun with others; its numbers would be taken for theirs.
    """
    path, state = Path(out).resolve() / "configs" / f"{file}.yaml", state_file(out, name)
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000)
    if state.is_file() and path.is_file() and path.read_text(encoding="utf-8") != text:
        raise Refusal(
            f"run {name} was begun with other settings than {path.name} would have now: restore the sweep's file, "
            f"give it another out, or delete {state} and the run's folder to begin it anew"
        )
    write_text(path, text)
    return path
