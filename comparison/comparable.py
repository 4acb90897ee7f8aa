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
    info: dict,
    other_classes: dict[str, tuple[list[str], list[str]]],
    other_info: dict,
) -> list[str]:
    """Why two evaluations of a dataset must not be compared, as sentences; [] if they may.

    Args:
        classes: {class: (files, digests)} of the first, `info` from its scores file; likewise of the other.
    """
    sentences = []
    for key, remedy in MUST_AGREE.items():
        if info[key] != other_info[key]:
            sentences.append(f"{key} is {info[key]} there and {other_info[key]} here; {remedy}")
    ours, theirs = (one["tested_with"].get("mask_reading") for one in (info, other_info))
    if ours and theirs and ours != theirs:  # older evaluations do not say
        sentences.append(f"--mask_reading is {ours} there and {theirs} here; test both with one")
    ours, theirs = ((one.get("few_shot") or {}).get("sha256") for one in (info, other_info))
    if ours != theirs:
        sentences.append(
            "the normal references are not the same (--normal_references): few-shot results are compared with few-shot "
            "results of the same references alone; test both alike"
        )
    ours, theirs = deviations(info), deviations(other_info)
    for flag in ours:
        if flag in theirs and ours[flag] != theirs[flag]:
            sentences.append(
                f"known deviation --{flag} is {ours[flag]} there and {theirs[flag]} here; train both alike"
            )
    if set(classes) != set(other_classes):
        sentences.append(f"other classes: {sorted(set(classes) ^ set(other_classes))} in one of them only")
    for name in sorted(set(classes) & set(other_classes)):
        ours, theirs = (dict(zip(*side[name], strict=True)) for side in (classes, other_classes))
        differing = sorted(file for file in ours.keys() | theirs.keys() if ours.get(file) != theirs.get(file))
        if differing:
            kinds = [
                f"{file} ({'other content' if file in ours and file in theirs else 'in one of them only'})"
                for file in differing[:SHOWN]
            ]
            more = f" and {len(differing) - SHOWN} more" if len(differing) > SHOWN else ""
            sentences.append(
                f"other test files in class {name}: {', '.join(kinds)}{more}; test both on the same data"
            )
    return sentences


def deviations(evaluation_info: dict) -> dict:
    """The known deviations of AA-CLIP an evaluation depends on: {flag: value}.

    Raw CLIP has none but the network's activation, local contrast not even that. A feedback run's milestones are its
    recipe's, not AA-CLIP's.
    Files of AA-CLIP carry no settings and have all of them.
    """
    if evaluation_info["checkpoint"] == LOCAL_CONTRAST:
        return {}
    at_test = {"quick_gelu (at test)": evaluation_info["tested_with"]["quick_gelu"]}
    if evaluation_info["checkpoint"] in UNTRAINED:
        return at_test
    stored = evaluation_info["settings"] or {}
    in_training = {flag: stored.get(flag, kept) for flag, (kept, _) in DEVIATIONS.items()}
    if evaluation_info["kind"] == FEEDBACK.name:
        del in_training["milestones"]
    return in_training | at_test


def differing_settings(evaluation_infos: dict[str, list[dict]]) -> dict[str, dict[str, list]]:
    """Settings that are not the same in all arms.

    Args:
        evaluation_infos: {arm: [what each run's scores file says of its evaluation]}.

    Returns:
        {flag: {arm: [distinct values]}}; training flags by their names, flags of testing with "(at test)".
    """
    settings_of_arm = {arm: [all_settings(info) for info in runs] for arm, runs in evaluation_infos.items()}
    flags = sorted({flag for runs in settings_of_arm.values() for row in runs for flag in row})
    differing = {}
    for flag in flags:
        values = {arm: distinct([row.get(flag) for row in runs]) for arm, runs in settings_of_arm.items()}
        if len(distinct([value for runs in values.values() for value in runs])) > 1:
            differing[flag] = values
    return differing


def all_settings(evaluation_info: dict) -> dict:
    """What an evaluation was trained and tested with, without what never changes a number; the seed pairs runs."""
    untrained, at_test = evaluation_info["checkpoint"] in UNTRAINED, evaluation_info["tested_with"]
    in_training = {} if untrained else evaluation_info["settings"] or {}
    settings = {flag: value for flag, value in in_training.items() if flag not in NOT_METHOD}
    settings |= {f"{flag} (at test)": at_test[flag] for flag in NETWORK_FLAGS if flag in at_test}
    return settings | {"kind of run": evaluation_info["checkpoint" if untrained else "kind"]}


def distinct(values: Iterable) -> list:
    """The values without repetitions, in order; lists count as values too."""
    seen = []
    for value in values:
        if value not in seen:
            seen.append(value)
    return seen
