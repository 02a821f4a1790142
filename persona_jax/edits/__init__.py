"""Edits of activations.

`edit` (as users write them), `window` (on which tokens), `compile` (into the table that models
thread through), `table` (that pytree), `apply` (its action at a site).
"""
