"""Directions of concepts in activation space.

`direction` is the vectors and their file; `load`, `formats`, `shipped`, `convert` and `inspect` are
files of other tools and of wheels. Made by `extract` (from contrastive prompts, with `contrasts`,
`class_means`, `activations`, `methods`, `tokens`), `train` (by gradient) and `refusal`; judged by
`separation` and chosen by `selection`; measured by `dose` (units), `space`, `trajectories` and
`whiten`.
"""
