"""A decision threshold from normal pictures alone, at a false positive rate that is stated and kept.

python calibrate.py --run ckpt/visa --input normal_photos --text "steel bolt" --false_positive_rate 0.05
"""

from collections.abc import Sequence

from evaluation.photographs.calibrate import GROUPS, calibrate
from files.command import run_main
from run_folder.flags import parse


def main(argv: Sequence[str] | None = None) -> int:
    return calibrate(parse(__doc__, GROUPS, argv))


if __name__ == "__main__":
    run_main(main)
