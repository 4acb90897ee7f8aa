"""Grids of runs on one machine or a cluster: `python -m studies.sweep FILE.yaml`."""
