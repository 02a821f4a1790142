"""Flax ports of model families.

`arch` (sizes), `layers` (shared parts), `families` (which adapters there are), `llama`.
"""
