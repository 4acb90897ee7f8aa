"""Train with feedback by recipe v2: train_cross_attention_feedback.py with another default, `--recipe v2`."""

from collections.abc import Sequence
from functools import partial

from evaluation.loops import evaluate_loop, test_sets_of
from files.command import run_main
from run_folder.flags import parse
from run_folder.kinds import FEEDBACK
from training.command import run_training
from training.feedback import train
from training.feedback_recipes import GROUPS, SHARED_DEFAULTS, fill_in

DEFAULTS = {"save_path": FEEDBACK.save_path, "recipe": "v2", **SHARED_DEFAULTS}


def main(argv: Sequence[str] | None = None) -> None:
    settings = fill_in(parse(__doc__, GROUPS, argv, DEFAULTS))
    run_training(settings, partial(train, test_sets_of=test_sets_of, evaluate_loop=evaluate_loop))


if __name__ == "__main__":
    run_main(main, several=True)
