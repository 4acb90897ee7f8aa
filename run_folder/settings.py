"""Every setting a command can have: groups of fields, each one flag, one key of a checkpoint and one argument.

To add a flag, add a field with `option` to the group it belongs to, in `run_folder/groups.py`,
`run_folder/training_groups.py` or `model/settings.py`: parser, checkpoint, the check whether a resumed run is the same
one, and what testing takes from a checkpoint all follow from it.
"""

from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, replace
from typing import Any

from model.settings import (
    AnchorAttentionSettings,
    AnchorDecoderSettings,
    CrossAttentionSettings,
    ModelSettings,
    NetworkCorrections,
    SelfReferenceSettings,
)
from run_folder.groups import (
    CacheSettings,
    ContextSettings,
    DataSettings,
    MixSettings,
    RunSettings,
    TrackerSettings,
)
from run_folder.training_groups import (
    DEVIATIONS,
    BaseWeights,
    CheckSettings,
    TrainingCorrections,
    TrainingSettings,
)

BASELINE_GROUPS = {
    "model": ModelSettings,
    "data": DataSettings,
    "training": TrainingSettings,
    "network": NetworkCorrections,
    "corrections": TrainingCorrections,
    "cache": CacheSettings,
    "run": RunSettings,
    "tracker": TrackerSettings,
}
CROSS_ATTENTION_GROUPS = {
    "model": ModelSettings,
    "cross_attention": CrossAttentionSettings,
    "contexts": ContextSettings,
    "self_reference": SelfReferenceSettings,
    "anchor_attention": AnchorAttentionSettings,
    "anchor_decoder": AnchorDecoderSettings,
    "data": DataSettings,
    "training": TrainingSettings,
    "base": BaseWeights,
    "check": CheckSettings,
    "network": NetworkCorrections,
    "corrections": TrainingCorrections,
    "cache": CacheSettings,
    "run": RunSettings,
    "tracker": TrackerSettings,
}


@dataclass(frozen=True)
class Settings:
    """The settings of one command by group; a group that the command does not have is None.

    `explicit` holds the names of the flags the user gave, on the command line or in a configuration file; `argv`
    the words of the command line.
    """

    model: ModelSettings | None = None
    network: NetworkCorrections | None = None
    cross_attention: CrossAttentionSettings | None = None
    self_reference: SelfReferenceSettings | None = None
    anchor_attention: AnchorAttentionSettings | None = None
    anchor_decoder: AnchorDecoderSettings | None = None
    contexts: ContextSettings | None = None
    mix: MixSettings | None = None
    data: DataSettings | None = None
    training: TrainingSettings | None = None
    feedback: Any = None  # training.feedback_recipes.FeedbackSettings
    base: BaseWeights | None = None
    check: CheckSettings | None = None
    corrections: TrainingCorrections | None = None
    cache: CacheSettings | None = None
    run: RunSettings | None = None
    tracker: TrackerSettings | None = None
    own: Any = None  # what only one command has
    explicit: frozenset = frozenset()
    argv: tuple[str, ...] = ()

    def groups(self) -> dict[str, Any]:
        """{name: dataclass} of the groups that are there."""
        names = [field.name for field in fields(self) if field.name not in ("explicit", "argv")]
        found = {name: getattr(self, name) for name in names}
        return {name: group for name, group in found.items() if group is not None}

    def options(self) -> Iterator[Field]:
        """The fields of all groups."""
        return (field for group in self.groups().values() for field in fields(group))

    def record(self) -> dict[str, Any]:
        """{flag: value}, as a checkpoint's "settings" has them."""
        return {
            field.name: getattr(group, field.name)
            for group in self.groups().values()
            for field in fields(group)
        }

    def change(self, **values: Any) -> "Settings":
        """The same settings with other values, by the names of their flags.

        Raises:
            TypeError: no group has such a flag.
        """
        changed, groups = set(), {}
        for name, group in self.groups().items():
            own = {field.name: values[field.name] for field in fields(group) if field.name in values}
            changed |= own.keys()
            groups[name] = replace(group, **own) if own else group
        unknown = sorted(values.keys() - changed)
        if unknown:
            raise TypeError(f"no setting is called {', '.join(unknown)}")
        return replace(self, **groups)

    def flags(self, **wanted: Any) -> list[str]:
        """Names of the flags whose field's metadata has these values, e.g. `flags(at_test=MUST_AGREE)`."""
        return [
            f.name for f in self.options() if all(f.metadata[key] == value for key, value in wanted.items())
        ]

    def defaults(self, **wanted: Any) -> dict[str, Any]:
        """{flag: default} of the flags whose field's metadata has these values."""
        names = set(self.flags(**wanted))
        return {one.name: default_of(one) for one in self.options() if one.name in names}


def default_of(one: Field) -> Any:
    """A field's default."""
    return one.default if one.default is not MISSING else one.default_factory()


def corrections_in(record: dict[str, Any]) -> dict[str, Any]:
    """{flag: value} of the settings in a checkpoint's record that correct a known deviation of AA-CLIP."""
    return {
        flag: record[flag]
        for flag, (kept, _) in DEVIATIONS.items()
        if flag in record and record[flag] != kept
    }
