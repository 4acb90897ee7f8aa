"""Configuration files: flags with their values in YAML or JSON, read for `--config` and written into every run.

A file maps the names of flags, without their dashes, to values. What it says counts as given on the command line, where
the same flag wins.
"""

import typing
from collections.abc import Iterable
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

import yaml

from files.atomic import write_text
from files.nearest import do_you_mean
from files.text import read_mapping, shown
from run_folder.training_groups import MIXED_PRECISION

CONFIG_FILE = "config.yaml"  # of a run: every flag with the value that counted
WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text (in quotes where YAML reads something else)",
}


def read_config(path: Path | str, options: Iterable[Field]) -> dict[str, Any]:
    """{flag: value} of a configuration file.

    Args:
        options: the fields of the command's settings.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is neither YAML nor JSON, has a key that is no flag of the command (the message names the nearest
            one), or a value that its flag cannot have.
    """
    known, found = {one.name: one for one in options}, {}
    content = read_mapping(path, "flags, without their dashes, to values")
    if "precision" in known:
        content = with_precision(content, path)
    for key, value in content.items():
        if key not in known:
            hint = do_you_mean(str(key), known)
            raise ValueError(f"{path}: {shown(key)} is no flag of this command{hint}; --help lists the flags")
        found[key] = value_for(known[key], value, f"{path}: {key}")
    return found


def with_precision(content: dict[str, Any], path: Path | str) -> dict[str, Any]:
    """A file's flags with `precision` in the place of its other name, `mixed_precision`.

    Raises:
        ValueError: there is no such precision, or the file has two.
    """
    if "mixed_precision" not in content:
        return content
    mixed = content["mixed_precision"]
    mixed = "no" if mixed is False else mixed  # which YAML 1.1 reads the bare word as
    if not isinstance(mixed, str) or mixed not in MIXED_PRECISION:
        raise ValueError(
            f"{path}: mixed_precision is {shown(mixed)}: expected one of {', '.join(MIXED_PRECISION)}"
        )
    precision = MIXED_PRECISION[mixed]
    if content.get("precision", precision) != precision:
        raise ValueError(
            f"{path}: precision {shown(content['precision'])} and mixed_precision {mixed} are one setting: keep one"
        )
    others = {key: value for key, value in content.items() if key != "mixed_precision"}
    return others | {"precision": precision}


def value_for(one: Field, value: Any, where: str) -> Any:
    """A file's value as the field's flag would have it.

    Args:
        where: file and key, for the message.

    Raises:
        ValueError: names key, value and what is expected.
    """
    kinds = [kind for kind in typing.get_args(one.type) or (one.type,) if kind is not type(None)]
    options = one.metadata["argparse"]
    if value is None and len(typing.get_args(one.type)) > len(kinds):
        return None
    if list in kinds:
        return list_for(options, value, where)
    return scalar_for(options.get("type", kinds[0]), options.get("choices"), value, where)


def list_for(options: dict[str, Any], value: Any, where: str) -> list:
    """The value of a flag of several words; arguments and errors as `value_for`."""
    count = options.get("nargs")
    wrong_length = isinstance(value, list) and (
        (count == "+" and not value) or (isinstance(count, int) and len(value) != count)
    )
    if not isinstance(value, list) or wrong_length:
        wanted = f"{count} values" if isinstance(count, int) else "values"
        raise ValueError(f"{where} is {shown(value)}: expected a list of {wanted}, for instance [0.5, 0.8]")
    return [scalar_for(options.get("type", str), options.get("choices"), one, where) for one in value]


def scalar_for(kind: Any, choices: Iterable[Any] | None, value: Any, where: str) -> Any:
    """One value; arguments and errors as `value_for`.

    YAML 1.1 reads 1e-5, without a point, as text: for a flag that is a number it counts as the number it spells.
    """
    expected = WORDS.get(kind, "a value as --help says")
    try:
        if isinstance(value, bool) != (kind is bool) or not isinstance(value, bool | int | float | str):
            raise ValueError
        if kind is int and not isinstance(value, int):
            raise ValueError
        if kind is str and not isinstance(value, str):
            raise ValueError
        taken = value if kind in (bool, int, str) else kind(value if kind is float else str(value))
    except ValueError as error:
        reason = f" ({error})" if str(error) and kind not in WORDS else ""
        raise ValueError(f"{where} is {shown(value)}: expected {expected}{reason}") from error
    if choices is not None and taken not in choices:
        raise ValueError(f"{where} is {shown(value)}: expected one of {', '.join(map(str, choices))}")
    return taken


def write_config(folder: Path | str, groups: Iterable[Any], command: str) -> None:
    """Write a run's config.yaml: `--config` with it is the same run.

    Args:
        groups: dataclasses of settings, in the order of the file.
        command: the script, for the first line.
    """
    parts = [
        f"# Every flag of this run, with the value that counted: python {command} --config {CONFIG_FILE}"
    ]
    for group in groups:
        values = {one.name: getattr(group, one.name) for one in fields(group)}
        heading = " ".join((type(group).__doc__ or "").split())
        dumped = yaml.safe_dump(
            values, sort_keys=False, default_flow_style=False, allow_unicode=True, width=1000
        )
        parts.append(f"\n# {heading}\n{dumped}".rstrip())
    write_text(Path(folder) / CONFIG_FILE, "\n".join(parts) + "\n")
