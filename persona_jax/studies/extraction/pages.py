"""The report's pages of an extraction, from its evidence."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from persona_jax.directions.formats.rows import file_name
from persona_jax.engine.model import Model
from persona_jax.report.direction_page import (
  DirectionPage,
  MethodLine,
  write_index,
  write_page,
)
from persona_jax.studies.extraction.contrasts import Contrast
from persona_jax.studies.extraction.evidence import Evidence, method_cosines
from persona_jax.studies.extraction.settings import Settings


def write_pages(
  model: Model,
  settings: Settings,
  config_hash: str,
  found: Sequence[Contrast],
  evidence: Mapping[str, Sequence[Evidence]],
  directory: Path,
) -> Path:
  """Write a page for every concept and their index; return the index."""
  pages = []
  for contrast in found:
    mine = evidence[contrast.name]
    setup = {
      "model": f"{model.identity.name} ({model.identity.quantisation}, {model.dtype})",
      "model sha256": f"{model.identity.sha256[:12]}…",
      "read at": f"{settings.site}, "
      + ("last prompt token" if settings.source == "prompts" else "answers, mean over tokens"),
      "wordings": str(len(contrast.positive)),
      "questions": f"{len(contrast.train)} to train, {len(contrast.held_out)} held out",
      "seed": str(settings.seed),
      "config": f"{config_hash[:12]}…",
    }
    page = DirectionPage(
      contrast.name, setup, [_line(e) for e in mine], method_cosines(mine, mine[0].block)
    )
    pages.append((page, write_page(page, directory / "pages" / f"{file_name(contrast.name)}.html")))
  return write_index(pages, directory / "report.html")


def _line(evidence: Evidence) -> MethodLine:
  cosines = evidence.wordings_LKK[evidence.block]
  pairs = cosines[np.triu_indices(len(cosines), 1)]
  return MethodLine(
    evidence.method,
    evidence.separation,
    evidence.direction.reliability_L,
    evidence.block,
    evidence.why,
    evidence.direction.hash,
    float(pairs.mean()) if len(pairs) else float("nan"),
    evidence.extremes,
  )
