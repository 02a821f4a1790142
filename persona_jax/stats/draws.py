"""One table of bootstrap weights for prompt clusters crossed with replicates.

Two things are random: which prompts were taken, and which wordings (replicates) of the personas.
The pigeonhole bootstrap draws both independently and multiplies their weights (Owen 2007, Ann.
Appl. Stat. 1: 386–411). Every statistic uses the same table, so arms and models share their draws
and what is common to them cancels. Of S replicates, S−1 are drawn and rescaled (Rao & Wu 1988,
JASA 83: 231–241), which undoes the factor (S−1)/S by which drawing S of S is too narrow.

Contrasts of means get calibrated draws (`persona_jax.stats.calibration`), so that intervals hold
their level with three replicates.

Dimension letters: B draws, C clusters, S = K replicates, M arms, P personas, Q contrasts.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import numpy as np
import pandas as pd
import scipy.stats
from numpy.typing import ArrayLike, NDArray

from persona_jax.stats.calibration import calibrated, two_way_error, two_way_variances
from persona_jax.stats.intervals import Estimate, rate
from persona_jax.stats.outcomes import Outcomes

_Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, eq=False)
class Draws:
  """Bootstrap weights that every statistic of a study shares.

  Attributes:
    clusters_C: labels of the prompt clusters, sorted.
    cluster_BC: weight of each cluster in each draw; a row sums to C.
    replicate_BS: weight of each replicate in each draw; a row sums to S. Ones if S is 1.
  """

  clusters_C: NDArray[Any]
  cluster_BC: _Floats
  replicate_BS: _Floats

  @classmethod
  def of(cls, clusters: ArrayLike, n_replicates: int, *, draws: int = 4000, seed: int = 0) -> Draws:
    """Return a table of draws.

    Args:
      clusters: cluster labels; repeats are fine (`outcomes.cluster_N` fits).
      n_replicates: number of replicates; 1 means that only clusters are drawn.
      draws: number of draws, at least 100.
      seed: seed of the draws.

    Raises:
      ValueError: no clusters, no replicates, or too few draws.
    """
    clusters_C = np.unique(np.asarray(clusters))
    if clusters_C.size == 0:
      raise ValueError("there are no clusters to draw")
    if n_replicates < 1:
      raise ValueError(f"n_replicates is {n_replicates}; at least 1 fits")
    if draws < 100:
      raise ValueError(f"draws is {draws}; at least 100 are needed for an interval")
    rng = np.random.default_rng(seed)
    n = clusters_C.size
    cluster_BC = rng.multinomial(n, np.full(n, 1 / n), size=draws).astype(np.float64)
    if n_replicates == 1:
      return cls(clusters_C, cluster_BC, np.ones((draws, 1)))
    drawn = n_replicates - 1
    count_BS = rng.multinomial(drawn, np.full(n_replicates, 1 / n_replicates), size=draws)
    replicate_BS = count_BS.astype(np.float64) * (n_replicates / drawn)
    return cls(clusters_C, cluster_BC, replicate_BS)

  @property
  def n_draws(self) -> int:
    return len(self.cluster_BC)

  def means(self, outcomes: Outcomes) -> _Floats:
    """Return the weighted means [B, M, P] of all draws; their spread is uncorrected.

    Raises:
      ValueError: outcomes with other clusters or another number of replicates than the draws.
    """
    return weighted_means(outcomes, self, self.cluster_BC, self.replicate_BS)

  def leave_one_out(self, outcomes: Outcomes) -> _Floats:
    """Return the means [C, M, P] without one cluster at a time."""
    n = self.clusters_C.size
    return weighted_means(outcomes, self, 1.0 - np.eye(n), np.ones((n, self.replicate_BS.shape[1])))

  def contrasts(self, outcomes: Outcomes, coef_QMP: ArrayLike) -> Contrasts:
    """Return linear contrasts of the cell means with calibrated draws.

    Args:
      outcomes: the data.
      coef_QMP: weight of each cell's mean in each contrast; a mean of weight 0 may be missing.

    Raises:
      ValueError: coefficients of another shape, or outcomes that do not fit the draws.
    """
    cells = _Cells.of(outcomes, self, coef_QMP)
    raw_BQ = self.means(outcomes).reshape(self.n_draws, -1)[:, cells.used_X] @ cells.coef_QX.T
    point_Q, error_Q, df_Q = cells.moments()
    draw_BQ = calibrated(raw_BQ, point_Q, error_Q, df_Q)
    return Contrasts(point_Q, draw_BQ, raw_BQ, error_Q, df_Q, cells.n_Q)

  def errors(self, outcomes: Outcomes, coef_QMP: ArrayLike) -> tuple[_Floats, _Floats, _Floats]:
    """Return point_Q, error_Q and df_Q of contrasts without drawing; see `contrasts`."""
    return _Cells.of(outcomes, self, coef_QMP).moments()

  def variances(self, outcomes: Outcomes, coef_QMP: ArrayLike) -> tuple[_Floats, _Floats, _Floats]:
    """Return the parts of the contrasts' variance; see `two_way_variances`."""
    cells = _Cells.of(outcomes, self, coef_QMP)
    return two_way_variances(np.tensordot(cells.coef_QX, cells.influence_XSC, axes=1))

  def rates(self, outcomes: Outcomes, confidence: float = 0.95) -> pd.DataFrame:
    """Return a table with the mean of every arm and persona, its interval and what is missing.

    Where all values are 0, or all are 1, no draw has any spread; the interval is Wilson's, with
    the clusters as trials, because the rows of one cluster are not independent.
    """
    n_arms, n_personas = len(outcomes.arms), len(outcomes.personas)
    coef_QMP = np.eye(n_arms * n_personas).reshape(-1, n_arms, n_personas)
    rows = []
    for q, y_SN in enumerate(outcomes.y_MPKN.reshape(len(coef_QMP), -1)):
      there_N = y_SN[~np.isnan(y_SN)]
      arm, persona = outcomes.arms[q // n_personas], outcomes.personas[q % n_personas]
      if not there_N.size:
        estimate = Estimate(math.nan, math.nan, math.nan, 0, "no values")
      elif (there_N == there_N[0]).all() and there_N[0] in (0.0, 1.0):
        trials = _clusters_there(outcomes, q)
        wilson = rate(int(there_N[0]) * trials, trials, confidence)
        reason = f"all values are {there_N[0]:.0f}: Wilson interval over {trials} clusters"
        estimate = dataclasses.replace(wilson, n=there_N.size, reason=reason)
      else:
        one = self.contrasts(outcomes, coef_QMP[q : q + 1])
        estimate = one.estimate(0, confidence)
      row = {"arm": arm, "persona": persona, **dataclasses.asdict(estimate)}
      rows.append({**row, "missing": y_SN.size - there_N.size})
    return pd.DataFrame(rows)


@dataclasses.dataclass(frozen=True, eq=False)
class Contrasts:
  """Linear contrasts of cell means.

  Attributes:
    point_Q: values.
    draw_BQ: calibrated draws: percentiles and shares of these are intervals and p values.
    raw_BQ: the same draws before calibration.
    error_Q: standard errors from the two-way variance.
    df_Q: Satterthwaite's degrees of freedom.
    n_Q: number of values each rests on.
  """

  point_Q: _Floats
  draw_BQ: _Floats
  raw_BQ: _Floats
  error_Q: _Floats
  df_Q: _Floats
  n_Q: NDArray[np.int_]

  def estimate(self, q: int = 0, confidence: float = 0.95) -> Estimate:
    """Return contrast q with its percentile interval."""
    return interval(
      self.draw_BQ[:, q], float(self.point_Q[q]), n=int(self.n_Q[q]), confidence=confidence
    )


def interval(
  draw_B: ArrayLike,
  point: float,
  *,
  n: int = 0,
  confidence: float = 0.95,
  method: Literal["percentile", "bca"] = "percentile",
  leave_one_out_J: ArrayLike | None = None,
) -> Estimate:
  """Return a point with the interval that its draws give.

  Args:
    draw_B: draws of the statistic.
    point: the statistic of the data.
    n: number of values it rests on, for the record.
    confidence: coverage of the two-sided interval.
    method: "percentile", or "bca" (Efron 1987), which falls back to percentile where its
      correction is undefined, and says so in the reason.
    leave_one_out_J: the statistic without one cluster at a time, for the acceleration of BCa.

  Raises:
    ValueError: confidence outside (0, 1), an unknown method, BCa without `leave_one_out_J`.
  """
  if not 0 < confidence < 1:
    raise ValueError(f"confidence is {confidence!r}; a number between 0 and 1 fits")
  if method not in ("percentile", "bca"):
    raise ValueError(f"unknown method {method!r}; 'percentile' or 'bca' fits")
  if method == "bca" and leave_one_out_J is None:
    raise ValueError("BCa needs leave_one_out_J")
  draw_B = np.asarray(draw_B, dtype=np.float64)
  undefined = int(np.isnan(draw_B).sum())
  why = ""
  if math.isnan(point):
    why = "the value is undefined"
  elif undefined:
    why = f"{undefined} of {draw_B.size} draws are undefined"
  elif np.ptp(draw_B) <= 1e-12 * max(1.0, abs(point)):
    why = "every draw gives the same value, so its spread is unknown"
  if why:
    return Estimate(point, math.nan, math.nan, n, why)
  tails = np.array([(1 - confidence) / 2, (1 + confidence) / 2])
  reason = ""
  if method == "bca":
    z0, acceleration = bias_and_acceleration(draw_B, point, leave_one_out_J)
    if math.isfinite(z0) and math.isfinite(acceleration):
      z = z0 + scipy.stats.norm.ppf(tails)
      tails = scipy.stats.norm.cdf(z0 + z / (1 - acceleration * z))
    else:
      reason = "percentile interval: the BCa correction is undefined"
  low, high = np.quantile(draw_B, tails)
  return Estimate(point, float(low), float(high), n, reason)


def bias_and_acceleration(
  draw_B: _Floats, point: float, leave_one_out_J: ArrayLike | None
) -> tuple[float, float]:
  """Return the two constants of the BCa interval; not finite where they are undefined."""
  below = float(np.mean((draw_B < point) + 0.5 * (draw_B == point)))
  z0 = float(scipy.stats.norm.ppf(below))
  jack_J = np.asarray(leave_one_out_J, dtype=np.float64)
  shift_J = jack_J.mean() - jack_J
  scale = float((shift_J**2).sum())
  return z0, float((shift_J**3).sum() / (6 * scale**1.5)) if scale > 0 else math.nan


def p_above(draw_B: ArrayLike, threshold: float | ArrayLike) -> _Floats:
  """Return the one-sided p of the claim that a statistic exceeds a threshold.

  Dual to the percentile interval: p ≤ α iff the lower one-sided 1−α bound lies above the threshold
  (up to the resolution 1/(B+1)). draw_B may have further axes. NaN where a draw is NaN.
  """
  draw_B = np.asarray(draw_B, dtype=np.float64)
  p = (1 + (draw_B <= threshold).sum(axis=0)) / (len(draw_B) + 1)
  return np.where(np.isnan(draw_B).any(axis=0), np.nan, p)


def p_below(draw_B: ArrayLike, threshold: float | ArrayLike) -> _Floats:
  """Return the one-sided p of the claim that a statistic lies below a threshold."""
  return p_above(-np.asarray(draw_B, dtype=np.float64), -np.asarray(threshold))


def weighted_means(
  outcomes: Outcomes, draws: Draws, cluster_BC: _Floats, replicate_BS: _Floats
) -> _Floats:
  """Return means [B, M, P] under weights of clusters and replicates; NaN where nothing has weight.

  Raises:
    ValueError: outcomes with other clusters or another number of replicates than the draws.
  """
  sum_MPSC, count_MPSC = _by_cluster(outcomes, draws)
  shape = (len(cluster_BC), *sum_MPSC.shape[:3])
  total = (cluster_BC @ sum_MPSC.reshape(-1, sum_MPSC.shape[-1]).T).reshape(shape)
  total_BMP = np.einsum("bmps,bs->bmp", total, replicate_BS)
  if (count_MPSC == count_MPSC[0, 0, 0]).all():  # nothing is missing: one count serves all
    weight_B = (cluster_BC @ count_MPSC[0, 0, 0]) * replicate_BS.sum(axis=1)
    weight_BMP = np.broadcast_to(weight_B[:, None, None], total_BMP.shape)
  else:
    count = (cluster_BC @ count_MPSC.reshape(-1, count_MPSC.shape[-1]).T).reshape(shape)
    weight_BMP = np.einsum("bmps,bs->bmp", count, replicate_BS)
  there_BMP = weight_BMP > 0
  return np.where(there_BMP, total_BMP / np.where(there_BMP, weight_BMP, 1.0), np.nan)


def _by_cluster(outcomes: Outcomes, draws: Draws) -> tuple[_Floats, _Floats]:
  """Return sums and counts of what is there, by arm, persona, replicate and cluster."""
  n_replicates = draws.replicate_BS.shape[1]
  if len(outcomes.replicates) != n_replicates:
    raise ValueError(
      f"the outcomes have {len(outcomes.replicates)} replicates and the draws {n_replicates}"
    )
  labels, index_N = np.unique(outcomes.cluster_N, return_inverse=True)
  if not np.array_equal(labels, draws.clusters_C):
    raise ValueError(
      f"the outcomes have {labels.size} clusters that are not the {draws.clusters_C.size} of the "
      "draws; both must be the same"
    )
  there_MPKN = ~np.isnan(outcomes.y_MPKN)
  y_MPKN = np.where(there_MPKN, outcomes.y_MPKN, 0.0)
  if labels.size == index_N.size and np.array_equal(index_N, np.arange(index_N.size)):
    return y_MPKN, there_MPKN.astype(np.float64)
  member_NC = np.zeros((index_N.size, labels.size))
  member_NC[np.arange(index_N.size), index_N] = 1.0
  return y_MPKN @ member_NC, there_MPKN @ member_NC


@dataclasses.dataclass(frozen=True, eq=False)
class _Cells:
  """The cells (arm, persona; flattened to X) that contrasts give weight; others may be missing."""

  coef_QX: _Floats
  used_X: NDArray[np.bool_]
  mean_X: _Floats
  influence_XSC: _Floats
  n_Q: NDArray[np.int_]

  @classmethod
  def of(cls, outcomes: Outcomes, draws: Draws, coef_QMP: ArrayLike) -> _Cells:
    coef_QMP = np.asarray(coef_QMP, dtype=np.float64)
    want = (len(outcomes.arms), len(outcomes.personas))
    if coef_QMP.ndim != 3 or coef_QMP.shape[1:] != want:
      raise ValueError(f"coef_QMP has shape {coef_QMP.shape}; [Q, {want[0]}, {want[1]}] fits")
    used_X = (coef_QMP != 0).any(axis=0).ravel()
    coef_QX = coef_QMP.reshape(len(coef_QMP), -1)[:, used_X]
    sum_MPSC, count_MPSC = _by_cluster(outcomes, draws)
    shape = (-1, *sum_MPSC.shape[2:])
    sum_XSC, count_XSC = sum_MPSC.reshape(shape)[used_X], count_MPSC.reshape(shape)[used_X]
    count_X = count_XSC.sum(axis=(1, 2))
    mean_X = outcomes.mean_MP.ravel()[used_X]
    deviation_XSC = sum_XSC - count_XSC * np.nan_to_num(mean_X)[:, None, None]
    scale_X = np.where(count_X > 0, 1 / np.maximum(count_X, 1), np.nan)
    n_Q = ((coef_QX != 0) @ count_X).astype(int)
    return cls(coef_QX, used_X, mean_X, deviation_XSC * scale_X[:, None, None], n_Q)

  def moments(self) -> tuple[_Floats, _Floats, _Floats]:
    error_Q, df_Q = two_way_error(np.tensordot(self.coef_QX, self.influence_XSC, axes=1))
    return self.coef_QX @ self.mean_X, error_Q, df_Q


def _clusters_there(outcomes: Outcomes, q: int) -> int:
  y_SN = outcomes.y_MPKN.reshape(-1, *outcomes.y_MPKN.shape[2:])[q]
  return int(np.unique(outcomes.cluster_N[~np.isnan(y_SN).all(axis=0)]).size)
