"""Directions of concepts in activation space.

`direction` (vectors and their file), `load` and `formats` (files of other tools), `extract` (from
contrastive prompts), `dose` (their units).
"""
