"""How far a scorer can be trusted: agreement with people's labels, with intervals; two compared.

Accuracy and rates of a class have Wilson's interval; Cohen's kappa (Cohen 1960) and differences of
kappas have a bootstrap over questions, since answers to one question are no independent evidence.
Rows without a prediction are in no figure and counted beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from persona_jax.scorers import base
from persona_jax.stats.intervals import Estimate, rate

_CLASSES = (False, True)


def validate(
  labels: Sequence[object],
  predictions: Sequence[object],
  clusters: Sequence[object],
  *,
  draws: int = 2000,
  seed: int = 0,
  confidence: float = 0.95,
) -> pd.DataFrame:
  """Compare predictions with labels, both boolean with missing values allowed.

  Args:
    labels: by people, N.
    predictions: by the scorer, N.
    clusters: what is resampled, N, such as the question of each answer.
    draws: of the bootstrap.
    seed: of the bootstrap.
    confidence: of the intervals.

  Returns:
    A row a measure: measure ("accuracy", "kappa", and for either class "recall True", "precision
    True", …), value, low, high, n (rows that it is of), missing (rows without a label or a
    prediction), reason.

  Raises:
    ValueError: different lengths, or a value that is neither boolean nor missing.
  """
  label_N, made_N, cluster_N, missing = _both(labels, predictions, clusters)
  found: list[tuple[str, Estimate]] = [
    ("accuracy", rate(int((label_N == made_N).sum()), len(label_N), confidence)),
    ("kappa", _kappa(label_N, made_N, cluster_N, draws, seed, confidence)),
  ]
  for side in _CLASSES:
    right = int(((label_N == side) & (made_N == side)).sum())
    found.append((f"recall {side}", rate(right, int((label_N == side).sum()), confidence)))
    found.append((f"precision {side}", rate(right, int((made_N == side).sum()), confidence)))
  return pd.DataFrame(
    [
      {
        "measure": name,
        "value": e.value,
        "low": e.low,
        "high": e.high,
        "n": e.n,
        "missing": missing,
        "reason": e.reason,
      }
      for name, e in found
    ]
  )


def kappa_difference(
  labels: Sequence[object],
  first: Sequence[object],
  second: Sequence[object],
  clusters: Sequence[object],
  *,
  draws: int = 2000,
  seed: int = 0,
  confidence: float = 0.95,
) -> Estimate:
  """Return by how much the kappa of one scorer exceeds that of another, on the same rows.

  Both are resampled together, so that what makes a row hard for both falls out. Rows for which
  either has no prediction are left out; `n` says how many are left.

  Args:
    labels, clusters, draws, seed, confidence: as in `validate`.
    first, second: predictions of the two scorers, N each.

  Raises:
    ValueError: as `validate`.
  """
  if len(first) != len(second):
    raise ValueError(f"{len(first)} predictions of the one scorer, {len(second)} of the other")
  both = [
    not base.is_missing(a) and not base.is_missing(b) for a, b in zip(first, second, strict=True)
  ]
  label_N, one_N, cluster_N, _ = _both(labels, _where(first, both), clusters)
  _, other_N, _, _ = _both(labels, _where(second, both), clusters)
  value = _kappas(_table(label_N, one_N)[None])[0] - _kappas(_table(label_N, other_N)[None])[0]
  weight_BC, number_N = _weights(cluster_N, draws, seed)
  difference_B = _drawn(label_N, one_N, number_N, weight_BC) - _drawn(
    label_N, other_N, number_N, weight_BC
  )
  return _interval(float(value), difference_B, len(label_N), confidence)


def _both(
  labels: Sequence[object], predictions: Sequence[object], clusters: Sequence[object]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
  """Return labels, predictions and clusters of the rows that have both, and how many have not."""
  if not len(labels) == len(predictions) == len(clusters):
    counts = f"{len(labels)} labels, {len(predictions)} predictions, {len(clusters)} clusters"
    raise ValueError(f"{counts}; give one of each a row.")
  base.agreement(pd.Series(list(labels)), pd.Series(list(predictions)))  # checks the values
  kept = [
    (bool(a), bool(b), str(c))
    for a, b, c in zip(labels, predictions, clusters, strict=True)
    if not base.is_missing(a) and not base.is_missing(b)
  ]
  label_N, made_N = (np.array([row[k] for row in kept], bool) for k in (0, 1))
  return label_N, made_N, np.array([row[2] for row in kept]), len(labels) - len(kept)


def _where(values: Sequence[object], there: Sequence[bool]) -> list[Any]:
  return [value if keep else None for value, keep in zip(values, there, strict=True)]


def _kappa(
  label_N: np.ndarray,
  made_N: np.ndarray,
  cluster_N: np.ndarray,
  draws: int,
  seed: int,
  confidence: float,
) -> Estimate:
  if not len(label_N):
    return Estimate(np.nan, np.nan, np.nan, 0, "no row has both a label and a prediction")
  value = float(_kappas(_table(label_N, made_N)[None])[0])
  weight_BC, number_N = _weights(cluster_N, draws, seed)
  return _interval(value, _drawn(label_N, made_N, number_N, weight_BC), len(label_N), confidence)


def _interval(value: float, draw_B: np.ndarray, n: int, confidence: float) -> Estimate:
  if np.isnan(value):
    reason = "labels and predictions are all of one class, so kappa is undefined"
    return Estimate(value, np.nan, np.nan, n, reason)
  there_B = draw_B[~np.isnan(draw_B)]
  if len(there_B) < len(draw_B) / 2:
    return Estimate(value, np.nan, np.nan, n, "kappa is undefined in most draws")
  low, high = np.quantile(there_B, [(1 - confidence) / 2, (1 + confidence) / 2])
  return Estimate(value, float(low), float(high), n)


def _weights(cluster_N: np.ndarray, draws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Return how often each cluster is drawn [B, C], and the cluster's number of each row."""
  names, number_N = np.unique(cluster_N, return_inverse=True)
  count = len(names)
  rng = np.random.default_rng([seed, count])
  return rng.multinomial(count, np.full(count, 1 / max(count, 1)), size=draws), number_N


def _table(label_N: np.ndarray, made_N: np.ndarray) -> np.ndarray:
  """Return counts [2, 2] by label and prediction."""
  return np.bincount(2 * label_N + made_N, minlength=4).reshape(2, 2)


def _drawn(
  label_N: np.ndarray, made_N: np.ndarray, number_N: np.ndarray, weight_BC: np.ndarray
) -> np.ndarray:
  """Return kappa [B] of every draw."""
  count_CK = np.zeros((weight_BC.shape[1], 4))
  np.add.at(count_CK, (number_N, 2 * label_N + made_N), 1)
  return _kappas((weight_BC @ count_CK).reshape(-1, 2, 2))


def _kappas(table_B22: np.ndarray) -> np.ndarray:
  """Return Cohen's kappa of each table; NaN where chance agreement is complete, or nothing is."""
  total_B = table_B22.sum(axis=(1, 2)).astype(float)
  with np.errstate(divide="ignore", invalid="ignore"):
    observed_B = np.trace(table_B22, axis1=1, axis2=2) / total_B
    chance_B = (table_B22.sum(axis=1) * table_B22.sum(axis=2)).sum(axis=1) / total_B**2
    return np.where(chance_B < 1, (observed_B - chance_B) / (1 - chance_B), np.nan)
