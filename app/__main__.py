"""A web page on this machine: drop pictures, say what they show, see heatmaps, scores and decisions.

python -m app --run ckpt/visa
python -m app --run ckpt/visa --run_b ckpt/visa_cross_attention     two runs side by side
python -m app --run ckpt/visa --raw_clip                            a run beside unadapted CLIP

Bound to 127.0.0.1: nobody else reaches it. From another machine: ssh -L 7860:127.0.0.1:7860 HOST.
"""

from collections.abc import Sequence

from app.command import GROUPS, serve
from files.command import run_main
from run_folder.flags import parse


def main(argv: Sequence[str] | None = None) -> None:
    serve(parse(__doc__, GROUPS, argv))


if __name__ == "__main__":
    run_main(main)
