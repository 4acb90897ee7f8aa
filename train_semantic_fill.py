"""The command `python train_semantic_fill.py`; see synthesis/train_semantic_fill.py."""

from files.command import run_main
from synthesis.train_semantic_fill import main

if __name__ == "__main__":
    run_main(main, own_debug=True)
