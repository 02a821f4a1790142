"""Runs: `run` holds the run directory, its table, and the loop that fills it."""
