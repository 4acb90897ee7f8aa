"""Every flag of every command, read off the parsers that the settings classes make: docs/reference/flags.md.

    python -m scripts.flag_reference            # writes the page
    python -m scripts.flag_reference --check    # ends with 1 where the page is not what it would write

A command is run as a user runs it, with --help, and stopped where it would print: so the page has what the command has,
and a command that does not answer --help is noticed.
"""

import argparse
import contextlib
import runpy
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

from files.atomic import write_text
from files.command import run_main

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reference" / "flags.md"
COMMANDS = (
    "train.py",
    "train_cross_attention.py",
    "train_cross_attention_feedback.py",
    "train_cross_attention_feedback_v2.py",
    "test.py",
    "predict.py",
    "calibrate.py",
    "compare.py",
    "test_stage2_gradients.py",
    "make_triptychs.py",
    "train_semantic_fill.py",
    "generate_anomalies.py",
    "-m synthesis.sample",
    "-m app",
    "-m dataset.prepare",
    "-m dataset.check",
    "-m demo_world.render_sets",
    "-m evaluation.reference_weight",
    "-m run_folder",
    "-m scripts.demo",
    "-m scripts.export",
    "-m scripts.flag_reference",
    "-m studies.arms",
    "-m studies.real_images",
    "-m studies.real_study",
    "-m studies.sweep",
)
HEAD = """# Every flag

Written by `python -m scripts.flag_reference` from the settings classes; a test says when it is not what the commands
have. Some defaults depend on the backbone (`model/run_defaults.json`) or on `--corrected`, `--recipe` and `--config`
([configuration](../configuration.md)). With every command, `--debug` as well shows the traceback behind an error.
"""


class Asked(Exception):
    """A parser was about to print its help."""

    def __init__(self, parser: argparse.ArgumentParser):
        self.parser = parser


def parser_of(command: str) -> argparse.ArgumentParser:
    """The parser of a command, by what stands behind `python`: "train.py" or "-m dataset.prepare".

    Raises:
        ValueError: the command ended without asking for its help.
    """

    def found(parser: argparse.ArgumentParser, file: object = None) -> None:
        raise Asked(parser)

    name = command.removeprefix("-m ")
    with (
        mock.patch.object(argparse.ArgumentParser, "print_help", found),
        mock.patch.object(sys, "argv", [name, "--help"]),
        contextlib.suppress(SystemExit),
    ):
        try:
            if command.startswith("-m "):
                runpy.run_module(name, run_name="__main__", alter_sys=False)
            else:
                runpy.run_path(str(ROOT / name), run_name="__main__")
        except Asked as asked:
            return asked.parser
    raise ValueError(f"python {command} --help: expected a parser that prints its help")


def flags_of(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str, str]]:
    """(section, flag with its values, default and help) of every flag and argument, in the order of --help."""
    for group in parser._action_groups:
        for action in group._group_actions:
            if isinstance(action, argparse._HelpAction):
                continue
            yield group.title or "", shown(action), f"{default_of(action)} | {meaning_of(action, parser)}"


def shown(action: argparse.Action) -> str:
    """How a flag is typed: its names, and its values where they are a choice."""
    names = " ".join(action.option_strings) or action.metavar or action.dest
    choices = f" {{{','.join(map(str, action.choices))}}}" if action.choices is not None else ""
    return f"`{names}{choices}`"


def default_of(action: argparse.Action) -> str:
    """A flag's default as it would be typed; "required", or nothing where there is none."""
    if action.required and action.option_strings:
        return "required"
    if action.default in (None, argparse.SUPPRESS) or action.default is False or not action.option_strings:
        return ""
    value = action.default
    text = " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    text = text.replace(f"{ROOT}/", "")  # defaults in the project's own folder
    return f"`{text}`" if text else ""


def meaning_of(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    """A flag's help on one line of a table."""
    text = (action.help or "").replace("%%", "%").replace("%(default)s", str(action.default))
    return " ".join(text.replace("%(prog)s", parser.prog).split()).replace("|", "\\|").replace("<", "&lt;")


def parsers_within(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """("", the parser itself), then (name, parser) of what it can be told to do."""
    yield "", parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


def section(command: str, parser: argparse.ArgumentParser, seen: dict[str, str]) -> list[str]:
    """The lines of one command. `seen`: {row: first command that has it}; what it has too is named there only."""
    purpose = (parser.description or "").strip().split("\n\n")[0]
    lines = [f"\n## python {command}\n", " ".join(purpose.replace("<", "&lt;").split()) + "\n"]
    title, known = None, {}
    for name, inner in parsers_within(parser):
        lines += [f"\n### {command.removeprefix('-m ')} {name}\n"] if name else []
        for group, flag, rest in flags_of(inner):
            row = f"| {flag} | {rest} |"
            if (first := seen.setdefault(row, command)) != command:
                known.setdefault(first, []).append(flag.split("`")[1].split(" {")[0])
                continue
            if (name, group) != title:
                lines += [f"\n*{group}*\n", "| flag | default | what |", "|--|--|--|"]
                title = name, group
            lines.append(row)
    for first, flags in known.items():
        lines.append(f"\nAs in `{first}`: {', '.join(f'`{flag}`' for flag in flags)}.")
    return lines


def page() -> str:
    """The whole page."""
    seen, lines = {}, [HEAD.rstrip()]
    for command in COMMANDS:
        lines += section(command, parser_of(command), seen)
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1 where the page is another")
    check = parser.parse_args(argv).check
    if not check:
        write_text(PAGE, page())
        return 0
    return int(not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page())


if __name__ == "__main__":
    run_main(main)
