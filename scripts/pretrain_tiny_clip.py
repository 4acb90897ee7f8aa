"""The name from before of `python -m tiny_clip.pretrain`."""

from files.command import run_main
from tiny_clip.pretrain import main

if __name__ == "__main__":
    run_main(main)
