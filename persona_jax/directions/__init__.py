"""Directions of concepts in activation space.

`direction` (vectors and their file), `extract` (from contrastive prompts), `dose` (their units).
"""
