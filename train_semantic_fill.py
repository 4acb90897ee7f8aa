"""The command `python train_semantic_fill.py`; see synthesis/train_semantic_fill.py."""

from synthesis.train_semantic_fill import main

if __name__ == "__main__":
    main()
