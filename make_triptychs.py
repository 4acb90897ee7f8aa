"""The command `python make_triptychs.py`; see synthesis/make_triptychs.py."""

from files.command import run_main
from synthesis.make_triptychs import main

if __name__ == "__main__":
    run_main(main)
