"""What the study runs, declared before anything is run: sets, steps, arms, and which arms go first when time is short.

Every trained arm takes AA-CLIP's passes over the whole training set (5 of stage 1 and 20 of stage 2, feedback's in all
its loops), batch sizes and learning rates. Of the arms tried on the tiny CLIP (`studies.arm_registry`) only what makes
the method is taken over, no schedule and no learning rate.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from studies.arm_registry import ARMS as TRIED
from studies.arm_registry import Arm
from studies.arm_runs import CROSS, FEEDBACK, PACE

INDUSTRIAL = ("MVTec", "BTAD", "MPDD")
MEDICAL = ("Brain", "Liver", "Retina", "Colon_clinicDB", "Colon_colonDB", "Colon_Kvasir", "Colon_cvc300")
# Of the baseline with rarity: the middle of studies.rarity_weight's grid, and what DemoA's halves chose on the tiny
# CLIP; tuned on none of the sets in question.
RARITY = "0.5"
# The rate of AA-CLIP's stage 2: at the 1e-5 of stage 1 attentions stay what they were drawn as.
ATTENTION_LR = "5e-4"


class Schedule(NamedTuple):
    """Passes over the training set: of both stages, and how recipe v1 and v2 share the same ones out over loops."""

    text: int
    image: int
    v1_text: tuple[int, ...]
    v1_image: tuple[int, ...]
    v2_loops: int

    def of_training(self) -> list[str]:
        """Flags of a run without loops."""
        return ["--text_epoch", str(self.text), "--image_epoch", str(self.image)]

    def of_v1(self) -> list[str]:
        """Flags of recipe v1, each loop with passes of its own."""
        words = ["--num_feedback_loops", str(len(self.v1_text))]
        for loop, (text, image) in enumerate(zip(self.v1_text, self.v1_image, strict=True), start=1):
            words += [f"--loop{loop}_text_epoch", str(text), f"--loop{loop}_image_epoch", str(image)]
        return words

    def of_v2(self) -> list[str]:
        """Flags of recipe v2: equal loops that no plateau ends early."""
        words = ["--recipe", "v2", "--num_feedback_loops", str(self.v2_loops)]
        words += ["--text_epoch", str(self.text // self.v2_loops)]
        words += ["--image_epoch", str(self.image // self.v2_loops)]
        return [*words, "--epoch_decay_per_loop", "1", "--plateau_patience", "0"]


class Protocol(NamedTuple):
    """One study: which backbone, which sets, how long.

    `secondary`: the epoch that is evaluated beside the last, None for none. `timed_steps`: of each stage in a plan.
    `directions`: {training set: test sets, the one that decides first}. `arms`: names, in the order of the tables.
    """

    model_name: str
    schedule: Schedule
    secondary: int | None
    timed_steps: int
    directions: dict[str, tuple[str, ...]]
    arms: tuple[str, ...]


BASE = {
    "baseline": Arm("train.py", control=True),
    "local_contrast": Arm(None, testing=("--local_contrast",), control=True),
    "rarity_alone": TRIED["rarity_alone"],
    "baseline_rarity": Arm(None, testing=("--rarity_weight", RARITY), retests="baseline"),
    "cross_attention": Arm(CROSS),
    "cross_attention_image": Arm(CROSS, ("--text_context", "image")),
    "control_constant": Arm(CROSS, ("--context_control", "constant"), control=True),
    "feedback_v1": Arm(FEEDBACK, ("--recipe", "v1")),
    "feedback_v2": Arm(FEEDBACK, ("--recipe", "v2")),
}
FROM_THE_REGISTRY = (
    "anchor_late",
    "anchor_late_other_image",
    "anchor_late_uniform",
    "anchor_late_swapped",
    "attention_trainable",
    "attention_trainable_constant",
    "feedback_mix",
    "feedback_mix_0",
    "feedback_mix_1",
)
ARMS = BASE | {name: TRIED[name] for name in FROM_THE_REGISTRY}
# What goes first when the hours do not suffice: a method and its controls together. The other arms always stay.
DROPPED_FIRST = (
    ("feedback_v2",),
    ("attention_trainable", "attention_trainable_constant"),
    ("feedback_mix", "feedback_mix_0", "feedback_mix_1"),
    ("feedback_v1",),
    ("cross_attention_image",),
    ("control_constant",),
    ("anchor_late", "anchor_late_other_image", "anchor_late_uniform", "anchor_late_swapped"),
)
REAL = Protocol(
    "ViT-L-14-336",
    Schedule(5, 20, (2, 2, 1), (10, 6, 4), 5),
    15,
    20,
    {"VisA": (*INDUSTRIAL, *MEDICAL), "MVTec": ("VisA",)},
    tuple(ARMS),
)
DRY = Protocol(
    "ViT-Tiny-8-demo",
    Schedule(1, 1, (1, 0), (0, 1), 1),
    None,
    2,
    {"DemoA_few": ("DemoB_few",)},
    (
        *("baseline", "rarity_alone", "baseline_rarity", "cross_attention", "feedback_v1"),
        *("anchor_late", "anchor_late_uniform"),
    ),
)
# Two passes (or loops) of a stage over so many rows that one has the steps which are timed; the second pass counts.
TIMED_TEXT = Schedule(2, 0, (1, 1), (0, 0), 1)
TIMED_IMAGE = Schedule(1, 2, (1, 0), (1, 1), 1)


def method_flags(flags: Sequence[str]) -> list[str]:
    """An arm's flags without passes and learning rates, which were chosen for the tiny CLIP, and without the pace of
    its studies: all arms have one precision and one library of products here, those of the command line."""
    kept, words = [], list(flags)
    while words:
        word = words.pop(0)
        values = []
        while words and not words[0].startswith("--"):
            values.append(words.pop(0))
        of_schedule = word.endswith(("_epoch", "_lr", "_per_loop")) or word == "--num_feedback_loops"
        if not (of_schedule or word in PACE):
            kept += [word, *values]
        elif word == "--cross_attn_lr":
            kept += [word, ATTENTION_LR]
    return kept


def training_flags(arm: str, schedule: Schedule) -> list[str]:
    """What trains an arm, without places and seed."""
    own = ARMS[arm]
    flags = method_flags(own.flags)
    if own.script != FEEDBACK:
        passes = schedule.of_training()
    elif "v2" in flags:
        passes, flags = schedule.of_v2(), []
    else:
        passes = schedule.of_v1()
    return ["--training_mode", "full_shot", *passes, *flags]


def trained_arm(arm: str) -> str:
    """The arm whose run is tested: of what is only tested again another one."""
    return ARMS[arm].retests or arm


def is_trained(arm: str) -> bool:
    """Whether an arm has runs, one a seed; the others are evaluated once."""
    return ARMS[trained_arm(arm)].script is not None


def groups_of(
    trains: Iterable[str], arms: Sequence[str], seeds: Sequence[int]
) -> list[tuple[str, int, list[str]]]:
    """[(training set, seed, arms that share a run)], seed by seed, so that what is finished is always paired."""
    groups = []
    for seed in seeds:
        for train in trains:
            for own in dict.fromkeys(map(trained_arm, arms)):
                if is_trained(own) or seed == seeds[0]:
                    groups.append((train, seed, [arm for arm in arms if trained_arm(arm) == own]))
    return groups
