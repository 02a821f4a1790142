"""What speaks for a direction: held-out separation, agreement, and the chosen block."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from persona_jax.directions.direction import Direction
from persona_jax.directions.selection import choose, projections, separation_of
from persona_jax.engine.model import Model
from persona_jax.studies.extraction.contrasts import Contrast
from persona_jax.studies.extraction.settings import Settings
from persona_jax.studies.extraction.stages import pairs

_EXTREMES = 5  # prompts shown from either end


@dataclasses.dataclass(frozen=True, eq=False)
class Evidence:
  """What speaks for a direction of one method.

  Attributes:
    method: its name.
    direction: it.
    separation: AUC and Cohen's d on held-out pairs, by block, with intervals.
    block: the chosen block.
    why: why that one.
    wordings_LKK: cosines between the wordings' vectors, by block; NaN where there is one.
    extremes: held-out prompts that project furthest, at the chosen block: projection, side, text.
  """

  method: str
  direction: Direction
  separation: pd.DataFrame
  block: int
  why: str
  wordings_LKK: np.ndarray
  extremes: pd.DataFrame

  @property
  def at_block(self) -> pd.Series:
    """The row of `separation` of the chosen block."""
    return self.separation.set_index("block").loc[self.block]


def examine(
  model: Model,
  settings: Settings,
  found: Sequence[Contrast],
  directions: Mapping[str, Mapping[str, Direction]],
  directory: Path,
) -> dict[str, list[Evidence]]:
  """Judge every direction by held-out questions, {concept: the evidence of each method}.

  Every direction is judged at the same pairs: those whose kind it was made of.
  """
  out: dict[str, list[Evidence]] = {}
  for contrast in found:
    positive, negative, _ = pairs(model, settings, contrast, "held_out", directory)
    tokens = "last" if settings.source == "prompts" else "answer_mean"
    for method, by_name in directions.items():
      direction = by_name[contrast.name]
      judged = dataclasses.replace(direction, provenance={**direction.provenance, "tokens": tokens})
      x_NK, y_NK, there = projections(model, judged, positive, negative)
      table = separation_of(x_NK, y_NK, seed=settings.seed).assign(block=there)
      block, _, why = choose(table)
      if len(there) == 1:
        why = "the only block at which the vector was trained"
      texts = [chat[-1]["content"] for chat in (*positive, *negative)]
      wordings = [chat[0]["content"] for chat in (*positive, *negative)]
      at = there.index(block)
      z_M = np.concatenate([x_NK[:, at], y_NK[:, at]])
      order = np.argsort(-z_M)
      shown = [*order[:_EXTREMES], *order[-_EXTREMES:]] if len(order) > 2 * _EXTREMES else order
      extremes = pd.DataFrame(
        {
          "projection": z_M[shown],
          "side": ["positive" if n < len(positive) else "negative" for n in shown],
          "text": [f"{wordings[n]} | {texts[n]}" for n in shown],
        }
      )
      evidence = Evidence(method, direction, table, block, why, _wordings(direction), extremes)
      out.setdefault(contrast.name, []).append(evidence)
  return out


def _wordings(direction: Direction) -> np.ndarray:
  v_SLD = direction.vectors_SLD.astype(np.float64)
  with np.errstate(invalid="ignore", divide="ignore"):
    unit_SLD = v_SLD / np.linalg.norm(v_SLD, axis=-1, keepdims=True)
  cosines: np.ndarray = np.einsum("sld,tld->lst", unit_SLD, unit_SLD)
  return cosines


def method_cosines(evidence: Sequence[Evidence], block: int) -> pd.DataFrame:
  """Return cosines between the methods' vectors at a block; NaN where one has none there."""
  units = [e.direction.unit_LD[block].astype(np.float64) for e in evidence]
  names = [e.method for e in evidence]
  table = np.asarray([[a @ b if a.any() and b.any() else np.nan for b in units] for a in units])
  return pd.DataFrame(table, names, names)
