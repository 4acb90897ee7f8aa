"""The command `python generate_anomalies.py`; see synthesis/generate_anomalies.py."""

from files.command import run_main
from synthesis.generate_anomalies import main

if __name__ == "__main__":
    run_main(main)
