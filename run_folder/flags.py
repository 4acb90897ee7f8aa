"""From settings to a command line and back: the only place that builds a parser for them.

Tried before: jsonargparse 4.53 and tyro 1.0, which make flags of dataclasses; see docs/architecture.md for what stands
against them here (upstream's `store_true` and `nargs` forms, flags the user gave told from defaults).
"""

import argparse
import json
import math
import re
import sys
import types
import typing
from collections.abc import Sequence
from dataclasses import Field, fields, replace
from pathlib import Path
from typing import Any, NoReturn

from files.command import HELP, REFUSED, program
from files.nearest import do_you_mean
from model.names import architecture_name
from run_folder.config_file import read_config
from run_folder.settings import DEVIATIONS, Settings, default_of
from run_folder.training_groups import MIXED_PRECISION

MODEL_DEFAULTS = Path(__file__).parent.parent / "model" / "run_defaults.json"
GELU_MODELS = ("ViT-Tiny-8-demo",)  # trained with GELU: there is nothing for --quick_gelu to correct
NOT_GIVEN = object()


def parse(
    description: str,
    groups: dict[str, type],
    argv: Sequence[str] | None = None,
    defaults: dict[str, Any] | None = None,
) -> Settings:
    """Settings from a command line.

    What the user gives neither there nor in a `--config` file comes from `--corrected`, else from the backbone's own
    defaults (`model/run_defaults.json`: a 12-block CLIP cannot use a 24-block one's), else from `defaults`, else the
    fields. Where a flag that stands for others (`--corrected`, `--recipe`) is typed and the file has another value of
    it, the file's values of those others are void.

    Args:
        description: the command's, for --help.
        groups: {attribute of Settings: its dataclass}, in the order of --help.
        argv: the words behind the script's name; the process's own when None.
        defaults: {flag: default of this command}, where it is not the field's.

    Raises:
        SystemExit: 2, with the reason on standard error.
        FileNotFoundError, ValueError: of `run_folder.config_file.read_config`.
    """
    parser = build_parser(description, groups, defaults)
    from_file = take_config(parser, groups, argv)
    typed = flags_given(parser, argv)
    given = typed | from_file.keys()
    known, _ = parser.parse_known_args(argv)
    model_name = architecture_name(getattr(known, "model_name", None) or "")
    own_defaults = json.loads(MODEL_DEFAULTS.read_text(encoding="utf-8")).get(model_name, {})
    names = {action.dest for action in parser._actions} - from_file.keys()
    parser.set_defaults(**{key: value for key, value in own_defaults.items() if key in names})
    values = vars(parser.parse_args(argv))
    given = take_mixed_precision(parser, values, given, typed)
    if values.get("model_name"):
        values["model_name"] = model_name  # the one spelling that checkpoints and tables have
    if values.get("corrected"):
        values |= {flag: corrected for flag, (_, corrected) in DEVIATIONS.items() if flag not in given}
    if values.get("quick_gelu") and values["model_name"] in GELU_MODELS:
        if "quick_gelu" in given:
            parser.error(
                f"--quick_gelu: {values['model_name']} was trained with GELU, QuickGELU would only distort it"
            )
        values["quick_gelu"] = False
    settings = replace(settings_of(groups, values, given), argv=tuple(sys.argv[1:] if argv is None else argv))
    contradiction = contradiction_in(settings)
    if contradiction:
        parser.error(contradiction)
    return settings


def build_parser(
    description: str, groups: dict[str, type], defaults: dict[str, Any] | None = None
) -> argparse.ArgumentParser:
    """A parser with one flag per field of the groups."""
    parser = Parser(program(), description=description, epilog=HELP, formatter_class=HelpFormatter)
    sections = {}
    for group in groups.values():
        title = group.__doc__
        section = sections.setdefault(title, parser.add_argument_group(title))
        for one in fields(group):
            add_flag(section, one, (defaults or {}).get(one.name, default_of(one)))
            if one.name == "precision":
                section.add_argument(
                    "--mixed_precision",
                    choices=list(MIXED_PRECISION),
                    help="another name of --precision; no: fp32",
                )
    return parser


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence, with the flag that a mistyped one may have meant."""

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (--[^\s=]+)", message)
        hint = do_you_mean(unknown[1], self._option_string_actions) if unknown else ""
        self.exit(REFUSED, f"error: {message}{hint}; {self.prog} --help lists the flags\n")


def take_config(
    parser: argparse.ArgumentParser, groups: dict[str, type], argv: Sequence[str] | None = None
) -> dict[str, Any]:
    """Give a parser the flag `--config`, and what the file it names says as defaults.

    Returns:
        {flag: value} of the file, without what a typed flag that stands for others makes void; {} without a file.
    """
    parser.add_argument(
        "--config", metavar="FILE", help="YAML or JSON of flags and values; the same flag typed wins"
    )
    if {"-h", "--help"} & set(sys.argv[1:] if argv is None else argv):
        return {}  # the help that comes says what is required
    required = [action for action in parser._actions if action.required]
    for action in required:  # the file may have it
        action.required = False
    known, _ = parser.parse_known_args(argv)
    options = [one for group in groups.values() for one in fields(group)]
    found = {} if known.config is None else read_config(known.config, options)
    typed = flags_given(parser, argv)
    for one in options:
        if one.name in typed and one.name in found and getattr(known, one.name) != found[one.name]:
            found = {key: value for key, value in found.items() if key not in one.metadata["stands_for"]}
    parser.set_defaults(**found)
    for action in required:
        action.required = action.dest not in found
    return found


def take_mixed_precision(
    parser: argparse.ArgumentParser, values: dict[str, Any], given: frozenset, typed: frozenset
) -> frozenset:
    """Read `--mixed_precision` as --precision, in the values and in the flags given, which are returned.

    Args:
        given, typed: flags of command line and file, of the command line alone: what it says wins over the file.
    """
    if "mixed_precision" not in given:
        values.pop("mixed_precision", None)
        return given
    mixed = values.pop("mixed_precision")
    if "precision" in typed and values["precision"] != MIXED_PRECISION[mixed]:
        parser.error(
            f"--precision {values['precision']} and --mixed_precision {mixed} are one setting: give one of them"
        )
    values["precision"] = MIXED_PRECISION[mixed]
    return given - {"mixed_precision"} | {"precision"}


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults behind every help text that has one to show, and the description as its author broke it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def add_flag(section: argparse._ArgumentGroup, one: Field, default: Any) -> None:
    """Add the flag of one field: `store_true` for a bool, else with the type of its annotation."""
    options = dict(one.metadata["argparse"])
    if options.get("action") == "boolean_optional":
        options["action"] = argparse.BooleanOptionalAction
    elif "action" not in options and one.type is bool:
        options["action"] = "store_true"
    elif "action" not in options:
        options.setdefault("type", value_type(one.type))
    section.add_argument(f"--{one.name}", default=default, help=one.metadata["help"], **options)


def value_type(annotation: Any) -> type:
    """The type a flag's text is read as: `int` of `int | None`."""
    if isinstance(annotation, types.UnionType):
        annotation = next(one for one in typing.get_args(annotation) if one is not type(None))
    return annotation


def flags_given(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> frozenset:
    """Names of the flags that stand on the command line, without --config, which is none of a run's settings."""
    seen = argparse.Namespace()
    for action in parser._actions:
        if action.dest not in ("help", "config"):
            setattr(seen, action.dest, NOT_GIVEN)
    namespace, _ = parser.parse_known_args(argv, seen)
    return frozenset(
        name for name, value in vars(namespace).items() if value is not NOT_GIVEN and name != "config"
    )


def settings_of(
    groups: dict[str, type], values: dict[str, Any], explicit: frozenset = frozenset()
) -> Settings:
    """Settings with these groups; a field that `values` lacks has its default."""
    made = {
        name: group(**{one.name: values[one.name] for one in fields(group) if one.name in values})
        for name, group in groups.items()
    }
    return replace(Settings(**made), explicit=explicit)


def contradiction_in(settings: Settings) -> str | None:
    """What the flags say that cannot go together, or None."""
    contexts, reference = settings.contexts, settings.self_reference
    if contexts is not None and contexts.context_control != "none":
        if contexts.text_context != "none":
            return f"--context_control {contexts.context_control}: needs --text_context none"
        if contexts.context_control == "other_class" and contexts.context_scope == "batch":
            return "--context_control other_class: in --context_scope batch all classes share one context already"
    if contexts is not None and settings.feedback is None and settings.training is not None:
        if settings.training.text_epoch == 0:
            return (
                "--text_epoch 0: the anchors of cross-attention come from its own text side, which needs 1 epoch or "
                "more; train.py takes plain CLIP's anchors then"
            )
    if settings.mix is not None and contexts.text_context != "none" and settings.mix.feedback_mix != 1:
        return f"--feedback_mix {settings.mix.feedback_mix}: needs --text_context none"
    decoder = settings.anchor_decoder
    if decoder is not None and not decoder.anchor_decoder and decoder.anchor_decoder_control != "none":
        return f"--anchor_decoder_control {decoder.anchor_decoder_control}: does nothing without --anchor_decoder"
    attention = settings.cross_attention
    rate = None if attention is None else attention.cross_attn_lr
    if rate is not None and not (rate > 0 and math.isfinite(rate)):
        return (
            f"--cross_attn_lr {rate}: expected a learning rate above 0; leave it away for that of each stage"
        )
    if attention is not None and not attention.cross_attn_qk_norm:
        given, usual = attention.cross_attn_temperature, type(attention).cross_attn_temperature
        if "cross_attn_temperature" in settings.explicit and given != usual:  # a run's config.yaml has all
            return f"--cross_attn_temperature {given}: does nothing without --cross_attn_qk_norm"
    if reference is not None and not reference.self_reference:
        for one in fields(reference):
            value = getattr(reference, one.name)
            if one.name in settings.explicit and value != one.default:
                return f"--{one.name} {value}: does nothing without --self_reference"
    late = settings.anchor_attention
    if late is not None and "anchor_attention_control" in settings.explicit and settings.training is not None:
        control = late.anchor_attention_control
        if control != "none" and late.anchor_attention == "none":
            return f"--anchor_attention_control {control}: does nothing without --anchor_attention late"
    return None
