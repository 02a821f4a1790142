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


def ppi_sampled_mean(
  human_N: ArrayLike,
  judge_N: ArrayLike,
  *,
  weights_N: ArrayLike | None = None,
  clusters_N: ArrayLike | None = None,
  weight: float | None = None,
  confidence: float = 0.95,
) -> Estimate:
  """Return a prediction-powered mean where people labelled a sample of the judge's rows by design.

  Rows drawn by strata, of which the judge's own label may be one, are no simple sample: each stands
  for as many rows as its weight says (Horvitz & Thompson 1952). With f the judge's labels, h the
  human ones of the labelled rows and w their weights, the mean is λ mean(f) + Σ w (h - λ f) / Σ w.
  Both sums are linearised together over clusters that are independent, so labelled rows may share
  clusters with others, and λ is the one of least variance, within [0, 1].

  Args:
    human_N: human labels of all rows, NaN where nobody labelled.
    judge_N: the judge's labels of all rows.
    weights_N: rows that each labelled row stands for (read there alone); None: the same for all.
    clusters_N: prompts of the rows; None treats rows as independent.
    weight: λ; None tunes it.
    confidence: coverage of the two-sided normal interval.

  Raises:
    ValueError: arrays that do not fit, a judge's label that is missing, weights that are not
      positive, labelled rows of fewer than two clusters.
  """
  human, judged = (np.asarray(x, dtype=np.float64) for x in (human_N, judge_N))
  if human.ndim != 1 or human.shape != judged.shape:
    raise ValueError(f"human_N is {human.shape} and judge_N {judged.shape}; one row of each fits")
  if not np.isfinite(judged).all():
    raise ValueError("judge_N must be finite numbers; leave rows without the judge's label out")
  if not 0 < confidence < 1:
    raise ValueError(f"confidence is {confidence!r}; a number between 0 and 1 fits")
  labelled = np.isfinite(human)
  w = labelled.astype(np.float64)
  if weights_N is not None:
    w = np.where(labelled, np.asarray(weights_N, dtype=np.float64), 0.0)
  if not (w[labelled] > 0).all() or not np.isfinite(w).all():
    raise ValueError("weights_N must be positive numbers where there is a human label")
  label = np.arange(len(human)) if clusters_N is None else np.asarray(clusters_N)
  if len(label) != len(human):
    raise ValueError(f"{len(label)} cluster labels for {len(human)} rows")
  if len(np.unique(label[labelled])) < 2:
    raise ValueError(
      f"{int(labelled.sum())} labelled rows of fewer than 2 clusters give no interval"
    )
  _, index = np.unique(label, return_inverse=True)
  w /= w.sum()
  h = np.where(labelled, human, 0.0)
  mean_h, mean_f = float(w @ h), float(w @ judged)
  # What each cluster adds to the error: of h alone, and of f per unit of λ.
  own_K = np.bincount(index, weights=w * (h - mean_h))
  judge_K = np.bincount(index, weights=(judged - judged.mean()) / len(judged)) - np.bincount(
    index, weights=w * (judged - mean_f)
  )
  if weight is None:
    spread = float(judge_K @ judge_K)
    weight = min(max(-float(own_K @ judge_K) / spread, 0.0), 1.0) if spread > 0 else 0.0
  value = weight * float(judged.mean()) + mean_h - weight * mean_f
  error_K = own_K + weight * judge_K
  k = len(error_K)
  half = float(scipy.stats.norm.ppf((1 + confidence) / 2)) * math.sqrt(
    float(error_K @ error_K) * k / (k - 1)
  )
  reason = f"judge weighted {weight:.3g}, {int(labelled.sum())} human labels"
  if (human[labelled] == judged[labelled]).all():
    reason += "; none differs from the judge's, so the interval holds no error of the judge"
  if half == 0:
    return Estimate(value, math.nan, math.nan, len(human), f"{reason}; the labels have no spread")
  return Estimate(value, value - half, value + half, len(human), reason)


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
