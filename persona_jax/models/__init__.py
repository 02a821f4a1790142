"""Flax ports: `arch` (sizes), `layers` (shared parts), `families` (which adapters there are), `llama`."""
