"""What steering along directions does to harmful prompts, and whether alignment explains it.

Two outcomes of a first token, both exact: the log-odds of a refusal, which never saturate, and the
probability of a bypass. Alignment with refusal moves them in opposite directions.
"""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from persona_jax import stats
from persona_jax.directions.direction import Direction
from persona_jax.engine.model import Model
from persona_jax.geometry.census import OUTCOMES, Census, census, predictors
from persona_jax.geometry.cosines import means
from persona_jax.geometry.gradients import Gradients
from persona_jax.geometry.metrics import Metric
from persona_jax.stats.census import census as regress
from persona_jax.stats.census import predict
from persona_jax.studies.persona_non_grata.calibrating import Calibrated
from persona_jax.studies.persona_non_grata.settings import Settings

_SAME = 0.95  # cosine, of either sign, above which two directions count as one
_EQUAL = 0.9999  # and above which they are the same vector
_LEAST_POLES = 3  # that a line is fitted to
_REGRESSED = (
  "outcome", "predictor", "slope", "low", "high", "p_positive", "p_negative", "intercept", "r2",
  "band_low", "band_high", "p_specific", "directions", "reason",
)  # fmt: skip
_PREDICTED = (
  "persona", "outcome", "alignment", "effect", "predicted", "slope", "intercept", "points", "reason"
)  # fmt: skip


def distinct(directions: Sequence[Direction], block: int, same: float = _SAME) -> list[Direction]:
  """Leave out the second of two directions that are one or each other's negatives at a block."""
  kept: list[Direction] = []
  for d in directions:
    if all(abs(_cosine(d, other, block)) <= same for other in kept):
      kept.append(d)
  return kept


def _cosine(a: Direction, b: Direction, block: int) -> float:
  return float(a.unit_LD[block].astype(np.float64) @ b.unit_LD[block])


def census_of_personas(
  model: Model,
  settings: Settings,
  own: Sequence[Direction],
  prompts: Sequence[str],
  calibrated: Calibrated,
  ids: Sequence[int],
) -> tuple[Census, ...]:
  """Measure what personas' directions do, and what their opposites do: a census of either sign.

  Of personas whose directions are one vector, of either sign, the first is measured.
  """
  kept = distinct(own, calibrated.block, _EQUAL)
  if not kept:
    return ()
  return tuple(
    census(
      model,
      prompts,
      {"persona": kept},
      calibrated.block,
      sign * calibrated.kappa,
      ids,
      unit="resid",
      scale=calibrated.scale,
      tokens=settings.window,
      copies=True,
    )
    for sign in (1, -1)
  )


def points(
  settings: Settings,
  taken: Sequence[Census],
  r: Direction,
  metrics: Sequence[Metric],
  slopes: Gradients,
  clusters: Sequence[str],
) -> pd.DataFrame:
  """Return what every direction of some censuses does, beside what may predict it.

  Returns:
    A row an outcome, census and direction: direction, kind, outcome, delta (mean change over
    prompts), low, high (95 % interval over clusters of prompts), block, coef (below 0: a dose of
    the opposite direction), and the predictors of `regressions`, of the direction that was added:
    cos_<metric>, coupling.
  """
  parts = []
  for outcome in OUTCOMES:
    for c in taken:
      # The opposite direction has the opposite cosine and derivative.
      sign = 1.0 if c.coef > 0 else -1.0
      known = predictors(c.directions, r, c.block, metrics=metrics, gradients=slopes)
      parts.append(
        pd.DataFrame(
          {
            "direction": c.names,
            "kind": c.kinds,
            "outcome": outcome,
            **_mean_changes(settings, c.change(outcome), clusters),
            "block": c.block,
            "coef": c.coef,
            **{name: sign * x_R for name, x_R in known.items()},
          }
        )
      )
  return pd.concat(parts, ignore_index=True)


def _mean_changes(
  settings: Settings, change_RN: NDArray[np.float64], clusters: Sequence[str]
) -> dict[str, list[float]]:
  """Return the mean over prompts of each direction with its interval, as controls have it."""
  every = [
    stats.mean(change_N, clusters, draws=settings.draws, seed=settings.seed)
    for change_N in change_RN
  ]
  return {
    "delta": [one.value for one in every],
    "low": [one.low for one in every],
    "high": [one.high for one in every],
  }


def regressions(
  settings: Settings,
  taken: Census,
  r: Direction,
  null: Sequence[Direction],
  metrics: Sequence[Metric],
  slopes: Gradients,
  clusters: Sequence[str],
) -> pd.DataFrame:
  """Regress either outcome on every predictor, with the band of random directions in r's place.

  Returns:
    A row an outcome and predictor, log-odds first; see `legends.LEGENDS`.
  """
  known = predictors(taken.directions, r, taken.block, metrics=metrics, gradients=slopes)
  v_RD = means(taken.directions, r)[:, taken.block].astype(np.float64)
  null_KD = means(null, r)[:, taken.block].astype(np.float64)
  rows: list[dict[str, Any]] = []
  for outcome in OUTCOMES:
    for name, x_R in known.items():
      row: dict[str, Any] = {"outcome": outcome, "predictor": name, "directions": len(x_R)}
      rows.append(row)
      if np.isnan(x_R).any():  # refusal has no vector here, as before anything was read
        row["reason"] = f"refusal has no vector at block {taken.block}"
        continue
      control = None
      metric = next((m for m in metrics if name == f"cos_{m.name}"), None)
      if metric is not None:
        a, b = (metric.map(x, taken.block) for x in (v_RD, null_KD))
        a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
        control = b @ a.T
      found = regress(
        taken.change(outcome),
        x_R,
        list(taken.names),
        clusters_N=clusters,
        control_x_KR=control,
        draws=settings.draws,
        seed=settings.seed,
      )
      row |= {
        "slope": found.slope.value,
        "low": found.slope.low,
        "high": found.slope.high,
        "p_positive": found.p_positive,
        "p_negative": found.p_negative,
        "intercept": found.intercept,
        "r2": found.r2,
        "band_low": found.band[0],
        "band_high": found.band[1],
        "p_specific": found.p_specific,
        "reason": found.reason,
      }
  return pd.DataFrame(rows, columns=list(_REGRESSED))


def predicted(
  people: Sequence[Census],
  own: Sequence[Direction],
  composites: Collection[str],
  r: Direction,
) -> pd.DataFrame:
  """Predict the effects of composites from a line through the poles' alignment and effect.

  Both signs of a pole's direction are points, each as it was measured: an effect that both signs
  have, such as damage, moves the line up or down and not to 0.

  Args:
    people: of `census_of_personas`.
    own: directions of the personas.
    composites: personas of more than one pole.
    r: the refusal direction.

  Returns:
    A row an outcome and composite: persona, outcome, alignment (cosine with r), effect (measured),
    predicted, slope and intercept of the line, points (how many it is through), reason (why there
    is no prediction).
  """
  rows: list[dict[str, Any]] = []
  for outcome in OUTCOMES if people else ():
    block = people[0].block
    at: dict[tuple[str, int], tuple[float, float]] = {}
    for c in people:
      sign = 1 if c.coef > 0 else -1
      effects = c.change(outcome).mean(axis=1)
      for d, effect in zip(c.directions, effects, strict=True):
        at[d.concept, sign] = sign * _cosine(d, r, block), float(effect)
    poles = [point for (name, _), point in at.items() if name not in composites]
    x, y = np.asarray(poles).reshape(-1, 2).T
    reason = ""
    if len(poles) < 2 * _LEAST_POLES:
      reason = f"a line needs {_LEAST_POLES} poles; {len(poles) // 2} are measured"
    zero, one = predict(x, y, [0.0, 1.0]) if not reason else (np.nan, np.nan)
    for d in own:
      if d.concept not in composites:
        continue
      cos, measured = max(
        ((_cosine(d, other, block), other.concept) for other in people[0].directions),
        key=lambda pair: abs(pair[0]),
      )
      alignment, effect = at[measured, 1 if cos > 0 else -1]
      rows.append(
        {
          "persona": d.concept,
          "outcome": outcome,
          "alignment": alignment,
          "effect": effect,
          "predicted": zero + (one - zero) * alignment,
          "slope": one - zero,
          "intercept": zero,
          "points": len(poles),
          "reason": reason,
        }
      )
  return pd.DataFrame(rows, columns=list(_PREDICTED))
