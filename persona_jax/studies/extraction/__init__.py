"""Directions of a bank of traits by every method, chosen with evidence: the stages of one study.

`Settings`, then `contrasts` (what is contrasted), `extract` (directions and trained vectors),
`examine` (held-out evidence, chosen blocks), `scale_of` and `try_out` (coefficients), and
`find_refusal`; `pages` writes them up.
"""

from persona_jax.studies.extraction.coefficients import scale_of, try_out
from persona_jax.studies.extraction.contrasts import Contrast, contrasts
from persona_jax.studies.extraction.evidence import Evidence, examine
from persona_jax.studies.extraction.refusal import Refusal, find_refusal
from persona_jax.studies.extraction.settings import Settings
from persona_jax.studies.extraction.stages import extract, start

__all__ = [
  "Contrast",
  "Evidence",
  "Refusal",
  "Settings",
  "contrasts",
  "examine",
  "extract",
  "find_refusal",
  "scale_of",
  "start",
  "try_out",
]
