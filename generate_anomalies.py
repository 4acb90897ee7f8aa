"""The command `python generate_anomalies.py`; see synthesis/generate_anomalies.py."""

from synthesis.generate_anomalies import main

if __name__ == "__main__":
    main()
