"""Which evaluation in a run's metrics.json a test command wrote: several commands write into one folder."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation.provenance import AT_TEST, flags_at_test
from evaluation.run import DEFAULTS, GROUPS, untrained_in
from run_folder.flags import parse
from run_folder.settings import Settings


def entry_of(folder: Path, test_set: str, test: Sequence[str]) -> dict[str, Any]:
    """The one evaluation whose `tested_with` is wholly what a test command asks for.

    Args:
        folder: of the run.
        test: the command, "test.py" and its flags.

    Raises:
        ValueError: none fits, or two do.
    """
    file = folder / "metrics.json"
    entries = json.loads(file.read_text(encoding="utf-8")).get(test_set, {})
    settings = parse("", GROUPS, list(test[1:]), DEFAULTS)
    differing = {name: differing_flags(entry, settings) for name, entry in entries.items()}
    found = [name for name, flags in differing.items() if not flags]
    if len(found) == 1:
        return entries[found[0]]
    command = " ".join(test)
    if found:
        raise ValueError(
            f"{file}: {' and '.join(found)} are both evaluations of {test_set} by\n{command}\n"
            "expected one; delete the folder's metrics.json and test again"
        )
    listed = "; ".join(f"{name} differs in {', '.join(flags)}" for name, flags in differing.items())
    raise ValueError(
        f"{file} holds no evaluation of {test_set} by\n{command}\n{listed or 'it holds none at all'}"
    )


def differing_flags(entry: dict[str, Any], settings: Settings) -> list[str]:
    """The flags in which an evaluation is not what a command's settings ask for; [] where it is that one.

    What a command does not type comes from the checkpoint that was tested; a flag that an older evaluation does not
    know had its default.
    """
    stored, wanted = entry.get("settings") or {}, flags_at_test(settings)
    reference, is_run = untrained_in(settings.own), bool(entry.get("checkpoints"))
    if is_run:
        from_file = wanted.keys() - settings.explicit - set(AT_TEST)
        wanted |= {flag: stored[flag] for flag in from_file if flag in stored}
    tested_with = settings.defaults() | entry["tested_with"]
    differing = [flag for flag, value in wanted.items() if tested_with[flag] != value]
    if is_run != (reference is None) or reference is not None and not stored.get(reference):
        differing.append("what was tested, a run or a reference without training")
    if ("few_shot" in entry) != (settings.own.normal_references is not None):
        differing.append("normal_references")
    return differing
