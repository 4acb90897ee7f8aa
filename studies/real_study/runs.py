"""One run of the study: trained and tested in a process of its own, kept as one JSON."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from files.atomic import write_text
from files.command import Refusal
from run_folder.checkpoints import versions
from run_folder.kinds import find_run
from scripts.commands import Command
from studies.arm_runs import FEEDBACK, ROOT
from studies.real_study.protocol import ARMS, Protocol, is_trained, trained_arm, training_flags


class Study(NamedTuple):
    """Where a study lies and what all its commands are told.

    `common`: flags of training and testing alike. `training`: flags of training alone. `agreed`: what binding.bind
    keeps. `environment`: beside this process's own.
    """

    protocol: Protocol
    arms: tuple[str, ...]
    out: Path
    common: tuple[str, ...]
    training: tuple[str, ...]
    agreed: dict[str, Any]
    environment: dict[str, str]

    def folder(self, train: str, arm: str, seed: int) -> Path:
        """The run folder of an arm: of what is tested again that of its training."""
        own = trained_arm(arm)
        return self.out / "runs" / train / (f"{own}_seed{seed}" if is_trained(arm) else own)

    def file(self, train: str, arm: str, seed: int) -> Path:
        """The JSON of a run; what is not trained has no seed."""
        return self.out / "results" / train / (f"{arm}_seed{seed}.json" if is_trained(arm) else f"{arm}.json")


def training_command(study: Study, train: str, arm: str, seed: int) -> Command:
    """What trains an arm."""
    flags = training_flags(arm, study.protocol.schedule)
    places = ["--dataset", train, "--save_path", str(study.folder(train, arm, seed)), "--seed", str(seed)]
    return ARMS[arm].script, [*flags, *study.training, *study.common, *places]


def test_command(
    study: Study, train: str, arm: str, seed: int, test_set: str, epoch: int | None = None
) -> Command:
    """What tests an arm on one set, with its last epoch or an earlier one."""
    chosen = [] if epoch is None else ["--epoch", str(epoch)]
    places = ["--dataset", test_set, "--save_path", str(study.folder(train, arm, seed)), "--seed", str(seed)]
    return "test.py", [*study.common, *places, *ARMS[arm].testing, *chosen]


def method_of(study: Study, arm: str) -> list[str]:
    """What makes an arm what it is, without places: its script, passes, flags, and how it is tested."""
    own = trained_arm(arm)
    training = [ARMS[own].script, *training_flags(own, study.protocol.schedule)] if is_trained(arm) else []
    return [*training, "test.py", *ARMS[arm].testing]


def epochs_tested(study: Study, arm: str) -> list[int | None]:
    """The last epoch (None), and the secondary one of arms that number their epochs."""
    numbered = is_trained(arm) and ARMS[trained_arm(arm)].script != FEEDBACK
    return [None, study.protocol.secondary] if numbered and study.protocol.secondary else [None]


def run_commands(commands: Sequence[Command], environment: dict[str, str]) -> None:
    """Run commands one after the other in one process.

    Raises:
        Refusal: one failed; it said why on standard error.
    """
    words = [sys.executable, "-m", "scripts.commands", json.dumps(commands)]
    ended = subprocess.run(words, cwd=ROOT, stdout=subprocess.DEVNULL, env=os.environ | environment)
    if ended.returncode:
        said = "; ".join(" ".join(["python", script, *flags]) for script, flags in commands)
        raise Refusal(f"stopped with exit status {ended.returncode}, see the lines above: {said}")


def evaluation(folder: Path, arm: str, test_set: str, epoch: int | None = None) -> dict | None:
    """The finished evaluation of an arm in its run's metrics.json, or None.

    Arms that are tested again share the file with the arm that was trained; the control or the weight of rarity they
    were tested with tells them apart.
    """
    file = folder / "metrics.json"
    entries = json.loads(file.read_text(encoding="utf-8")).get(test_set, {}) if file.is_file() else {}
    if is_trained(arm):
        begin = find_run(folder, epoch=epoch)[1][0].name
    else:
        begin = ARMS[arm].testing[0].removeprefix("--")
    wanted = tested_with(arm, "anchor_attention_control")
    weight = float(tested_with(arm, "rarity_weight") or 0)
    for name, entry in entries.items():
        if not name.startswith(begin) or "unfinished" in entry:
            continue
        if entry["tested_with"].get("rarity_weight", 0) != weight:
            continue
        if wanted is not None and entry["tested_with"].get("anchor_attention_control") != wanted:
            continue
        if wanted is None and ", anchors " in name:
            continue
        return entry
    return None


def tested_with(arm: str, flag: str) -> str | None:
    """What an arm gives test.py for a flag; None where it does not."""
    words = ARMS[arm].testing
    return words[words.index(f"--{flag}") + 1] if f"--{flag}" in words else None


def make_run(study: Study, train: str, arm: str, seed: int) -> dict[str, Any]:
    """Train what is not trained, test where no finished evaluation is there; the JSON's content."""
    folder = study.folder(train, arm, seed)
    trained_already = (folder / "history.json").is_file()
    training = [training_command(study, train, trained_arm(arm), seed)] if is_trained(arm) else []
    begin = time.perf_counter()
    if training and not trained_already:
        run_commands(training, study.environment)
    seconds = {"training": round(time.perf_counter() - begin, 1)}
    places = [
        (test_set, epoch)
        for test_set in study.protocol.directions[train]
        for epoch in epochs_tested(study, arm)
    ]
    tests = [test_command(study, train, arm, seed, *place) for place in places]
    missing = [
        test for test, place in zip(tests, places, strict=True) if evaluation(folder, arm, *place) is None
    ]
    begin = time.perf_counter()
    if missing:
        run_commands(missing, study.environment)
    seconds["testing"] = round(time.perf_counter() - begin, 1)
    metrics: dict[str, dict] = {}
    for test_set, epoch in places:
        entry = evaluation(folder, arm, test_set, epoch)
        kept = {key: entry[key] for key in ("mean", "classes")}
        metrics.setdefault(test_set, {})["last" if epoch is None else f"epoch_{epoch}"] = kept
    commands = [" ".join(["python", script, *words]) for script, words in [*training, *tests]]
    history = folder / "history.json"
    return {
        "arm": arm,
        "seed": seed if is_trained(arm) else None,
        "train": train,
        "commands": [text.replace(str(study.out), "OUT") for text in commands],
        "seconds": seconds,
        "method": method_of(study, arm),
        "agreed": study.agreed,
        "metrics": metrics,
        "history": json.loads(history.read_text(encoding="utf-8")) if history.is_file() else None,
        "versions": versions(),
    }


def run_missing(study: Study, groups: Sequence[tuple[str, int, list[str]]]) -> None:
    """Make and keep the runs whose JSON is not there, in the order of the groups."""
    for train, seed, arms in groups:
        for arm in arms:
            file = study.file(train, arm, seed)
            if file.is_file():
                continue
            print(f"{train}: {arm}, seed {seed}", flush=True)
            write_text(file, json.dumps(make_run(study, train, arm, seed), indent=1) + "\n")


def read_runs(study: Study, seeds: Sequence[int]) -> dict[tuple[str, str, int], dict[str, Any]]:
    """{(training set, arm, seed): JSON} of the runs that are there; what is not trained goes with every seed.

    Raises:
        ValueError: one was made with other hardware, precision, weights, data or analysis than the study's, or as
            another arm than the one of its name now.
    """
    found = {}
    for train in study.protocol.directions:
        for arm in study.arms:
            for seed in seeds:
                file = study.file(train, arm, seed)
                if not file.is_file():
                    continue
                run = json.loads(file.read_text(encoding="utf-8"))
                for key, value in study.agreed.items():
                    if run["agreed"].get(key) != value:
                        raise ValueError(
                            f"{file}: made with {key} {run['agreed'].get(key)}, the study has {value}; delete the "
                            "file and its run folder, and make it again"
                        )
                if run["method"] != method_of(study, arm):
                    raise ValueError(
                        f"{file}: {arm} was {' '.join(run['method'])} then and is {' '.join(method_of(study, arm))} "
                        "now; take the arm back to what it was, or give another --out"
                    )
                found[train, arm, seed] = run
    return found
