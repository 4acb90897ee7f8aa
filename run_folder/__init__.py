"""A run and its folder: settings and flags, session (seed, lock, log, device), checkpoints, resume, `load_run`."""
