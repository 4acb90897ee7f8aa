"""Faults injected into everything that is read and written: one file per promise, run by tests/reliability.py."""
