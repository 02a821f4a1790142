"""Directions of a bank of traits by every method, chosen with evidence: the stages of one study.

`Settings`, then `load_contrasts` (what is contrasted), `extract` (directions and trained vectors),
`examine` (held-out evidence, chosen blocks), `try_out` (coefficients) and `find_refusal`; `pages`
writes them up. `describe` says what all would run.
"""

from persona_jax.studies.extraction.coefficients import try_out
from persona_jax.studies.extraction.contrasts import Contrast, load_contrasts
from persona_jax.studies.extraction.dry import describe
from persona_jax.studies.extraction.evidence import Evidence, examine
from persona_jax.studies.extraction.refusal import Refusal, find_refusal
from persona_jax.studies.extraction.settings import Settings
from persona_jax.studies.extraction.stages import extract, start

__all__ = [
  "Contrast",
  "Evidence",
  "Refusal",
  "Settings",
  "describe",
  "examine",
  "extract",
  "find_refusal",
  "load_contrasts",
  "start",
  "try_out",
]
