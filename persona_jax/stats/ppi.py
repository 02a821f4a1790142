"""Prediction-powered means: many judge labels, corrected by few human ones.

The judge's mean over all rows is shifted by the mean of human − judge on the labelled rows
(Angelopoulos et al. 2023, Science 382: 669–674). The weight λ of the judge is tuned, so that a
useless judge costs nothing (PPI++: Angelopoulos, Duchi & Zrnic 2023, arXiv:2311.01453).
"""

from __future__ import annotations

import math

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray

from persona_jax.stats.intervals import Estimate

_Floats = NDArray[np.float64]


def ppi_mean(
  human_n: ArrayLike,
  judge_n: ArrayLike,
  judge_N: ArrayLike,
  *,
  clusters_n: ArrayLike | None = None,
  clusters_N: ArrayLike | None = None,
  weight: float | None = None,
  confidence: float = 0.95,
) -> Estimate:
  """Return a mean (or a rate, of booleans) with a prediction-powered interval.

  Args:
    human_n: human labels of the labelled rows.
    judge_n: the judge's labels of the same rows.
    judge_N: the judge's labels of the other rows, which no human labelled.
    clusters_n, clusters_N: prompts of the rows; None treats rows as independent. The two sets of
      rows are taken as independent of each other, so label whole prompts.
    weight: λ. None tunes it, 1 is plain prediction-powered inference, 0 uses the human labels only.
    confidence: coverage of the two-sided normal interval.

  Raises:
    ValueError: missing values, arrays that do not fit, fewer than two labelled or other clusters.
  """
  arrays = []
  for name, values in (("human_n", human_n), ("judge_n", judge_n), ("judge_N", judge_N)):
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not np.isfinite(array).all():
      raise ValueError(f"{name} must be one row of finite numbers; leave missing labels out")
    arrays.append(array)
  human, judged, other = arrays
  if len(human) != len(judged):
    raise ValueError(f"{len(human)} human labels and {len(judged)} of the judge; one each fits")
  if not 0 < confidence < 1:
    raise ValueError(f"confidence is {confidence!r}; a number between 0 and 1 fits")
  if len(human) < 2 or len(other) < 2:
    raise ValueError(f"{len(human)} labelled and {len(other)} other rows; at least 2 of each fit")
  if weight is None:
    variance = float(np.var(np.concatenate([judged, other]), ddof=1))
    covariance = float(np.cov(human, judged)[0, 1])
    weight = covariance / ((1 + len(human) / len(other)) * variance) if variance > 0 else 0.0
    weight = min(max(weight, 0.0), 1.0)
  value = weight * other.mean() + (human - weight * judged).mean()
  variance_of_value = weight**2 * _variance_of_mean(other, clusters_N) + _variance_of_mean(
    human - weight * judged, clusters_n
  )
  half = float(scipy.stats.norm.ppf((1 + confidence) / 2)) * math.sqrt(variance_of_value)
  n = len(human) + len(other)
  reason = f"judge weighted {weight:.3g}, {len(human)} human labels"
  if half == 0:
    return Estimate(float(value), math.nan, math.nan, n, f"{reason}; the labels have no spread")
  return Estimate(float(value), float(value - half), float(value + half), n, reason)


def _variance_of_mean(values: _Floats, clusters: ArrayLike | None) -> float:
  """Return the variance of a mean over clusters that are independent."""
  label = np.arange(len(values)) if clusters is None else np.asarray(clusters)
  if len(label) != len(values):
    raise ValueError(f"{len(label)} cluster labels for {len(values)} rows")
  _, index = np.unique(label, return_inverse=True)
  deviation = np.bincount(index, weights=values - values.mean())
  if len(deviation) < 2:
    raise ValueError("one cluster gives no interval; at least 2 fit")
  k = len(deviation)
  return float((deviation**2).sum() / len(values) ** 2 * k / (k - 1))
