"""Edits of activations.

`operations` (as users write them), `edit` (what they make), `window` (on which tokens), `compile`
(into the table that models thread through), `table` (that pytree), `apply` (its action at a site).
"""
