"""Which runs may be set side by side: same images, image size, known deviations and definitions of the metrics."""

from collections.abc import Iterable

from evaluation.run import GROUPS, LOCAL_CONTRAST, UNTRAINED
from model.settings import MAY_CHANGE
from run_folder.flags import settings_of
from run_folder.kinds import FEEDBACK
from run_folder.settings import DEVIATIONS
from training.feedback_recipes import GROUPS as EVERY_GROUP

MUST_AGREE = {  # fields of a scores file and what to do where they differ
    "img_size": "test both with one --img_size",
    "domain": "give both the same --dataset_config",
    "metrics_version": "evaluate both with this version of the project",
}
SHOWN = 3  # differing files named in a refusal
NETWORK_FLAGS = settings_of(GROUPS, {}).flags(at_test=MAY_CHANGE)
NOT_METHOD = set(settings_of(EVERY_GROUP, {}).flags(moves_numbers=False)) - {
    "clip_weights",
    "dataset_config",
    "real_names",
    "corrected",
} | {"seed"}


def reasons(
    classes: dict[str, tuple[list[str], list[str]]],
    about: dict,
    other_classes: dict[str, tuple[list[str], list[str]]],
    other_about: dict,
) -> list[str]:
    """Why two evaluations of a dataset must not be compared, as sentences; [] if they may.

    Args:
        classes: {class: (files, digests)} of the first, `about` from its scores file; likewise of the other.
    """
    found = []
    for key, remedy in MUST_AGREE.items():
        if about[key] != other_about[key]:
            found.append(f"{key} is {about[key]} there and {other_about[key]} here; {remedy}")
    ours, theirs = deviations(about), deviations(other_about)
    for flag in ours:
        if flag in theirs and ours[flag] != theirs[flag]:
            found.append(
                f"known deviation --{flag} is {ours[flag]} there and {theirs[flag]} here; train both alike"
            )
    if set(classes) != set(other_classes):
        found.append(f"other classes: {sorted(set(classes) ^ set(other_classes))} in one of them only")
    for name in sorted(set(classes) & set(other_classes)):
        ours, theirs = (dict(zip(*side[name], strict=True)) for side in (classes, other_classes))
        differing = sorted(file for file in ours.keys() | theirs.keys() if ours.get(file) != theirs.get(file))
        if differing:
            kinds = [
                f"{file} ({'other content' if file in ours and file in theirs else 'in one of them only'})"
                for file in differing[:SHOWN]
            ]
            more = f" and {len(differing) - SHOWN} more" if len(differing) > SHOWN else ""
            found.append(
                f"other test files in class {name}: {', '.join(kinds)}{more}; test both on the same data"
            )
    return found


def deviations(about: dict) -> dict:
    """The known deviations of AA-CLIP an evaluation depends on: {flag: value}.

    Raw CLIP has none but the network's activation, local contrast not even that. A feedback run's milestones are its
    recipe's, not AA-CLIP's.
    Files of AA-CLIP carry no settings and have all of them.
    """
    if about["checkpoint"] == LOCAL_CONTRAST:
        return {}
    tested = {"quick_gelu (at test)": about["tested_with"]["quick_gelu"]}
    if about["checkpoint"] in UNTRAINED:
        return tested
    stored = about["settings"] or {}
    trained = {flag: stored.get(flag, kept) for flag, (kept, _) in DEVIATIONS.items()}
    if about["kind"] == FEEDBACK.name:
        del trained["milestones"]
    return trained | tested


def differing_settings(abouts: dict[str, list[dict]]) -> dict[str, dict[str, list]]:
    """Settings that are not the same in all arms.

    Args:
        abouts: {arm: [about of each run]}.

    Returns:
        {flag: {arm: [distinct values]}}; training flags by their names, flags of testing with "(at test)".
    """
    rows = {arm: [all_settings(about) for about in own] for arm, own in abouts.items()}
    flags = sorted({flag for own in rows.values() for row in own for flag in row})
    found = {}
    for flag in flags:
        values = {arm: distinct([row.get(flag) for row in own]) for arm, own in rows.items()}
        if len(distinct([value for own in values.values() for value in own])) > 1:
            found[flag] = values
    return found


def all_settings(about: dict) -> dict:
    """What an evaluation was trained and tested with, without what never changes a number; the seed pairs runs."""
    untrained = about["checkpoint"] in UNTRAINED
    trained = {} if untrained else about["settings"] or {}
    found = {flag: value for flag, value in trained.items() if flag not in NOT_METHOD}
    found |= {
        f"{flag} (at test)": about["tested_with"][flag]
        for flag in NETWORK_FLAGS
        if flag in about["tested_with"]
    }
    return found | {"kind of run": about["checkpoint"] if untrained else about["kind"]}


def distinct(values: Iterable) -> list:
    """The values without repetitions, in order; lists count as values too."""
    found = []
    for value in values:
        if value not in found:
            found.append(value)
    return found
