"""The report's pages of an extraction, from its evidence."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from persona_jax.directions.formats.rows import file_name
from persona_jax.directions.selection import Fluency, fluent, largest_fluent
from persona_jax.engine.model import Model
from persona_jax.report.direction_page import DirectionPage, MethodLine, write_index, write_page
from persona_jax.studies.extraction.contrasts import Contrast
from persona_jax.studies.extraction.evidence import Evidence, concept_cosines, method_cosines
from persona_jax.studies.extraction.refusal import Refusal
from persona_jax.studies.extraction.settings import Settings

_BOUNDS = Fluency()


def write_pages(
  model: Model,
  settings: Settings,
  config_hash: str,
  found: Sequence[Contrast],
  evidence: Mapping[str, Sequence[Evidence]],
  directory: Path,
  *,
  trials: Mapping[str, pd.DataFrame] | None = None,
  refusal: Refusal | None = None,
) -> Path:
  """Write a page for every concept and their index; return the index.

  Args:
    model, settings, config_hash, found, evidence, directory: of the stages before.
    trials: of `coefficients.try_out`, by concept.
    refusal: of `refusal.find_refusal`.
  """
  pages = []
  for contrast in found:
    mine = evidence[contrast.name]
    page = DirectionPage(
      contrast.name,
      _setup(model, settings, config_hash, contrast, mine[0]),
      [_line(e) for e in mine],
      method_cosines(mine),
      _shown(trials.get(contrast.name) if trials else None),
      f"{_BOUNDS.most_nats:g} nat a token over the unedited answers' nll and at most "
      f"{_BOUNDS.most_degenerate:.0%} of them degenerate (loops, no text, under 3 words)",
      settings.site,
    )
    pages.append((page, write_page(page, directory / "pages" / f"{file_name(contrast.name)}.html")))
  cosines = concept_cosines(evidence, None if refusal is None else refusal.direction)
  return write_index(pages, directory / "report.html", cosines, _told(settings, refusal))


def _setup(
  model: Model, settings: Settings, config_hash: str, contrast: Contrast, first: Evidence
) -> dict[str, str]:
  """Return what the directions of a concept were made of, in words."""
  setup = {
    "model": f"{model.identity.name} ({model.identity.quantisation}, {model.dtype})",
    "model sha256": f"{model.identity.sha256[:12]}…",
    "read at": f"{settings.site}, "
    + ("last prompt token" if settings.source == "prompts" else "answers, mean over tokens"),
    "wordings": str(len(contrast.positive)),
    "questions": f"{len(contrast.train)} to train, {len(contrast.held_out)} held out",
    "blocks to choose from": f"{settings.depth[0]:.0%} to {settings.depth[1]:.0%} of the depth",
    "held-out pairs": f"{first.held_out} of {first.asked}",
    "seed": str(settings.seed),
    "config": f"{config_hash[:12]}…",
  }
  if contrast.parts:
    signs = {1: "+", -1: "−"}
    setup["put together of"] = " ".join(f"{signs[sign]}{name}" for name, sign in contrast.parts)
  return setup


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
    pairs,
    evidence.within,
    evidence.confirmed,
    evidence.other_wordings,
    evidence.extremes,
  )


def _shown(trials: pd.DataFrame | None) -> pd.DataFrame | None:
  """Return the trials with what is fluent, and which coefficient is the largest of its sign."""
  if trials is None:
    return None
  largest = largest_fluent(trials, _BOUNDS)
  return trials.assign(
    fluent=fluent(trials, _BOUNDS),
    largest=trials["coefficient"].isin(largest["coefficient"]) & (trials["coefficient"] != 0),
  ).sort_values("coefficient")


def _told(settings: Settings, refusal: Refusal | None) -> str:
  """Say what became of the refusal direction."""
  if refusal is None:
    return ""
  asked = (
    f"{settings.refusal_pairs} pairs of a harmful and a harmless question, "
    f"{settings.refusal_held_out} held out"
  )
  if refusal.direction is None:
    return f"No refusal direction ({asked}): {refusal.problem}"
  known = refusal.direction.provenance
  return (
    f"Refusal direction (Arditi et al. 2024; {asked}): token {known['position']} of the prompt, "
    f"block {known['chosen_block']}; cosines are with the one of the same token at the table's "
    "block. All candidates: refusal/candidates.parquet."
  )
