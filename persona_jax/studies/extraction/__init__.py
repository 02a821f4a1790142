"""Directions of a bank of traits by every method, chosen with evidence: the stages of one study.

`Settings`, then `contrasts` (what is contrasted), `extract` (directions and trained vectors) and
`examine` (held-out evidence, chosen blocks); `report.direction_page` writes the pages.
"""

from persona_jax.studies.extraction.contrasts import Contrast, contrasts
from persona_jax.studies.extraction.evidence import Evidence, examine
from persona_jax.studies.extraction.settings import Settings
from persona_jax.studies.extraction.stages import extract, start

__all__ = ["Contrast", "Evidence", "Settings", "contrasts", "examine", "extract", "start"]
