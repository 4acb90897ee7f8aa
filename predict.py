"""Score photographs with a run or unadapted CLIP: heatmaps, masks, scores.csv, scores.json, one page to look at.

python predict.py --run ckpt/visa --input photos --text "steel bolt" --out predictions
"""

from collections.abc import Sequence

from evaluation.photographs.command import GROUPS, predict
from files.command import run_main
from run_folder.flags import parse


def main(argv: Sequence[str] | None = None) -> int:
    return predict(parse(__doc__, GROUPS, argv))


if __name__ == "__main__":
    run_main(main)
