"""What the study's directions are made of, so that their cosines can be drawn again.

A pole is the mean of its pairs, a composite by the rule "sum" the sum of its poles' unit vectors,
and refusal the difference of two samples of prompts.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np

from persona_jax.data.prompts import PromptItem
from persona_jax.directions.direction import Direction
from persona_jax.directions.tokens import capture_at
from persona_jax.engine.model import Model
from persona_jax.geometry.gram import PairDifferences, PairSum, Resampled, TwoSamples
from persona_jax.personas.persona import Persona
from persona_jax.studies.persona_non_grata.extraction import Extracted, pair_differences
from persona_jax.studies.persona_non_grata.material import Material
from persona_jax.studies.persona_non_grata.refusal import Refusal, first_token_log_odds
from persona_jax.studies.persona_non_grata.settings import Settings

_AGREES = 0.99  # least cosine of a direction with what its parts make at once


def persona_pairs(
  model: Model,
  settings: Settings,
  material: Material,
  extracted: Extracted,
  own: Mapping[str, Direction],
  directory: Path,
) -> tuple[dict[str, PairDifferences | PairSum], tuple[str, ...]]:
  """Return the pairs that personas' directions are made of, and of whom there are none and why.

  Args:
    own: {persona: its direction}.
    directory: of the study, where its answers are.
  """
  sources = {persona.name: _signed_sources(persona, extracted) for persona in material.personas}
  names = sorted({name for parts in sources.values() for name, _ in parts})
  read = pair_differences(model, settings, material, directory, names)
  found, notes = {}, []
  for persona, parts in sources.items():
    made: PairDifferences | PairSum
    if len(parts) > 1:
      pairs = [read[name] for name, _ in parts]
      made = PairSum(pairs, [sign for _, sign in parts], [_replicates(own) for own in pairs])
    else:
      ((name, sign),) = parts
      made = dataclasses.replace(read[name], z_NLD=sign * read[name].z_NLD)
    if _agrees(made, own[persona]):
      found[persona] = made
    else:  # replicates of very unlike numbers of pairs, or very unlike vectors
      notes.append(
        f"no interval of {persona}'s cosine: its replicates' mean is not what all their pairs make"
      )
  return found, tuple(notes)


def refusal_samples(
  model: Model, material: Material, refusal: Refusal
) -> tuple[TwoSamples | None, tuple[str, ...]]:
  """Return the activations that refusal's direction is the difference of, or why there are none."""
  about = refusal.about
  kept = []
  for kind, refuses in (("harmful", True), ("harmless", False)):
    items: Sequence[PromptItem] = getattr(material, kind)
    if about["filtered"]:
      odds_N = first_token_log_odds(model, [i.text for i in items], refusal.ids)
      items = [i for i, x in zip(items, odds_N, strict=True) if (x > 0) == refuses]
    if len(items) != about[kind][0]:
      return None, (
        f"refusal's direction is taken as known: it was made of {about[kind][0]} {kind} prompts, "
        f"and {len(items)} are found",
      )
    kept.append(items)
  blocks = range(model.arch.num_blocks)
  sides = []
  for items in kept:
    reads = model.capture(
      [i.text for i in items], capture_at("resid_post", f"prompt:{about['position']}")
    )
    sides.append(np.stack([reads["resid_post", b] for b in blocks], axis=1))
  labels = [[i.cluster or i.prompt_id for i in items] for items in kept]
  try:
    samples = TwoSamples(sides[0], sides[1], labels[0], labels[1])
  except ValueError as error:
    return None, (f"refusal's direction is taken as known: {error}",)
  if not _agrees(samples, refusal.family):
    return None, ("refusal's direction is taken as known: its prompts make another one",)
  return samples, ()


def _signed_sources(persona: Persona, extracted: Extracted) -> list[tuple[str, int]]:
  """Return the contrasts that a persona's direction is made of, each with its sign."""
  sources = extracted.made_of[persona.name]
  own = [persona.label] if len(sources) == 1 else [str(pole) for pole in persona.poles]
  return [(name, 1 if name == label else -1) for name, label in zip(sources, own, strict=True)]


def _replicates(pairs: PairDifferences) -> list[int]:
  """Return the replicate of each pair, whose questions `pair_differences` calls by both."""
  labels = cast(Sequence[tuple[int, int]], pairs.questions)
  return [replicate for replicate, _ in labels]


def _agrees(made: Resampled, direction: Direction) -> bool:
  """Return whether a direction is what its parts make, at every block where it has a vector."""
  for block, v_D in enumerate(direction.mean_LD.astype(np.float64)):
    mean_D = made.mean(block)
    size = float(np.linalg.norm(mean_D) * np.linalg.norm(v_D))
    if size > 0 and float(mean_D @ v_D) < _AGREES * size:
      return False
  return True
