"""The arms of the selection and the confirmation, as data: how each is trained and tested, and what it has to beat.

Every trained arm takes the baseline's optimisation steps. An arm that `retests` another trains nothing: it is another
evaluation of that arm's run.
"""

from dataclasses import dataclass

from studies.arm_runs import CROSS, FEEDBACK, PACE
from studies.evidence import IDEA, OFF, STEPS

RARITY_WEIGHT = "{rarity_weight}"  # in `testing`: what studies.rarity_weight finds on the training classes


@dataclass(frozen=True)
class Arm:
    """One arm.

    `script`, `flags`: how it is trained; None for nothing to train. `testing`: further flags of test.py. `retests`: the
    arm whose run is tested. `against`: the arms it is compared with beside the baseline. `control`: it is looked at,
    not judged. `entropy_below`: wanted of the image's attention in the last epoch, as a share of a uniform one's.
    """

    script: str | None
    flags: tuple[str, ...] = ()
    testing: tuple[str, ...] = ()
    retests: str | None = None
    against: tuple[str, ...] = ()
    control: bool = False
    entropy_below: float | None = None


TRAINED = (*STEPS, *PACE, "--watch")
LATE = (*TRAINED, *OFF, "--anchor_attention", "late")
LATE_CONTROLS = ("anchor_late_uniform", "anchor_late_other_image", "anchor_late_swapped")
TRAINABLE = (
    *(*TRAINED, "--cross_attn_qk_norm", "--cross_attn_gate", "zero", "--cross_attn_lr", "4e-2"),
    *("--image_cross_attn_after", "5", "--split_text_context"),
)
DECODER = (*TRAINED, *OFF, "--anchor_decoder", "2")
MIX = (*IDEA["feedback_v1"][1], *OFF, *PACE, "--watch", "--feedback_mix")  # steps shared out over three loops
BAR = ("rarity_alone", "baseline_rarity")  # A6: what every other arm has to beat

ARMS = {
    "baseline": Arm("train.py", TRAINED, control=True),
    # A6
    "rarity_alone": Arm(None, testing=("--rarity_alone",), against=("rarity_alone_shuffled",)),
    "rarity_alone_shuffled": Arm(
        None, testing=("--rarity_alone", "--rarity_control", "shuffled"), control=True
    ),
    "baseline_rarity": Arm(
        None,
        testing=("--rarity_weight", RARITY_WEIGHT),
        retests="baseline",
        against=("baseline_rarity_shuffled", "rarity_alone"),
    ),
    "baseline_rarity_shuffled": Arm(
        None,
        testing=("--rarity_weight", RARITY_WEIGHT, "--rarity_control", "shuffled"),
        retests="baseline",
        control=True,
    ),
    # A1
    "anchor_late": Arm(CROSS, LATE, against=(*LATE_CONTROLS, *BAR)),
    "anchor_late_other_image": Arm(CROSS, (*LATE, "--anchor_attention_control", "other_image"), control=True),
    "anchor_late_uniform": Arm(
        None, testing=("--anchor_attention_control", "uniform"), retests="anchor_late", control=True
    ),
    "anchor_late_swapped": Arm(
        None, testing=("--anchor_attention_control", "swapped"), retests="anchor_late", control=True
    ),
    # A4
    "attention_trainable": Arm(
        CROSS,
        TRAINABLE,
        against=("attention_trainable_constant", "attention_trainable_other_class", *BAR),
        entropy_below=0.9,
    ),
    "attention_trainable_constant": Arm(CROSS, (*TRAINABLE, "--context_control", "constant"), control=True),
    "attention_trainable_other_class": Arm(
        CROSS, (*TRAINABLE, "--context_control", "other_class"), control=True
    ),
    # A5
    "feedback_mix": Arm(FEEDBACK, (*MIX, "0.75"), against=("feedback_mix_0", "feedback_mix_1", *BAR)),
    "feedback_mix_0": Arm(FEEDBACK, (*MIX, "0"), control=True),
    "feedback_mix_1": Arm(FEEDBACK, (*MIX, "1"), control=True),
    # A2
    "anchor_decoder": Arm(CROSS, DECODER, against=("anchor_decoder_constant", *BAR)),
    "anchor_decoder_constant": Arm(CROSS, (*DECODER, "--anchor_decoder_control", "constant"), control=True),
}


def complete(names: list[str]) -> list[str]:
    """Arms with everything they retest and are held against, the baseline first, in the registry's order.

    Raises:
        ValueError: there is no such arm.
    """
    if unknown := sorted(set(names) - set(ARMS)):
        raise ValueError(f"no arm is called {', '.join(unknown)}; expected some of {', '.join(ARMS)}")
    wanted, todo = {"baseline"}, list(names)
    while todo:
        name = todo.pop()
        arm = ARMS[name]
        wanted.add(name)
        todo += [one for one in (*arm.against, arm.retests) if one is not None and one not in wanted]
    return [name for name in ARMS if name in wanted]
