"""Point estimates with confidence intervals, resampled by cluster.

Rows of one prompt are not independent, so the bootstrap draws whole clusters (prompts). Every
statistic here is a function of the weights that a draw gives to the clusters, and all of them go
through one call of `scipy.stats.bootstrap`. Clusters are taken in sorted order, so two estimates
over the same set of clusters with the same seed share their draws.

What is undefined is NaN with a reason; nothing is dropped in silence. Dimension letters: N values,
K clusters, B draws.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import warnings
from collections.abc import Callable
from typing import Literal

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray

Method = Literal["percentile", "bca"]
Missing = Literal["nan", "drop"]
_Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A number with its interval.

  Attributes:
    value: the estimate; NaN if it is undefined.
    low, high: bounds of the confidence interval; NaN if there is none.
    n: number of values it rests on.
    reason: why something is NaN, or what was left out; empty if nothing is amiss.
  """

  value: float
  low: float
  high: float
  n: int
  reason: str = ""

  def excludes(self, value: float = 0.0) -> bool:
    """Return whether the interval exists and does not hold `value`."""
    return bool(self.low > value or self.high < value)

  def __str__(self) -> str:
    text = f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}] (n={self.n})"
    return f"{text} ({self.reason})" if self.reason else text


def rate(successes: int, n: int, confidence: float = 0.95) -> Estimate:
  """Return a proportion with its Wilson score interval (Wilson 1927, no continuity correction).

  Args:
    successes: count of successes, 0 … n.
    n: count of trials that gave a result; trials without one are not failures, leave them out and
      report their number.
    confidence: coverage of the two-sided interval.

  Raises:
    ValueError: counts that are not integers or out of range, or confidence outside (0, 1).
  """
  _check_confidence(confidence)
  try:
    successes, n = operator.index(successes), operator.index(n)
  except TypeError:
    raise ValueError(f"rate needs whole counts; got {successes!r} of {n!r}") from None
  if not 0 <= successes <= n:
    raise ValueError(f"rate needs 0 <= successes <= n; got {successes} of {n}")
  if n == 0:
    return Estimate(math.nan, math.nan, math.nan, 0, "no trials")
  interval = scipy.stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
  return Estimate(successes / n, float(interval.low), float(interval.high), n)


def mean(
  values_N: ArrayLike,
  clusters: ArrayLike | None = None,
  *,
  strata: ArrayLike | None = None,
  confidence: float = 0.95,
  method: Method = "percentile",
  missing: Missing = "nan",
  draws: int = 4000,
  seed: int = 0,
) -> Estimate:
  """Return the mean over all values with a cluster-bootstrap interval.

  Args:
    values_N: numbers or booleans; NaN or None is a missing value.
    clusters: N labels; rows with one label are drawn together. None: every value is its own.
    strata: N labels, one a cluster; as many clusters are drawn from each stratum as it has, so that
      what differs between strata (the key of an item, say) adds nothing to the interval.
    confidence: coverage of the two-sided interval.
    method: "percentile" or "bca" (Efron 1987).
    missing: "nan" makes the estimate NaN if a value is missing; "drop" leaves missing values out
      and says in the reason how many.
    draws: number of bootstrap draws.
    seed: seed of the draws.

  Raises:
    ValueError: arrays of different length, an unknown option, infinite values, a cluster in two
      strata.
  """
  options = _Options(confidence, method, missing, draws, seed)
  (value_N,), cluster_N, stratum_K, note, undefined = _prepare(
    {"values": values_N}, clusters, options, strata
  )
  n = len(value_N)
  if undefined:
    return Estimate(math.nan, math.nan, math.nan, n, undefined)
  sum_K, count_K = _by_cluster(value_N, cluster_N), _by_cluster(np.ones(n), cluster_N)

  def statistic(w_BK: _Floats) -> _Floats:
    return (w_BK @ sum_K) / (w_BK @ count_K)

  return _estimate(float(np.mean(value_N)), statistic, stratum_K, n, note, options)


def difference(
  a_N: ArrayLike,
  b_N: ArrayLike,
  clusters: ArrayLike | None = None,
  *,
  confidence: float = 0.95,
  method: Method = "percentile",
  missing: Missing = "nan",
  draws: int = 4000,
  seed: int = 0,
) -> Estimate:
  """Return the mean of the paired differences a − b with a cluster-bootstrap interval.

  Pairs stay together, so what is common to both sides (the prompt) cancels. A pair is missing if
  either side is. The other arguments and errors are those of `mean`.
  """
  options = _Options(confidence, method, missing, draws, seed)
  (a_N, b_N), cluster_N, _, note, undefined = _prepare({"a": a_N, "b": b_N}, clusters, options)
  if undefined:
    return Estimate(math.nan, math.nan, math.nan, len(a_N), undefined)
  estimate = mean(
    a_N - b_N, cluster_N, confidence=confidence, method=method, draws=draws, seed=seed
  )
  reason = "; ".join(filter(None, (note, estimate.reason)))
  return dataclasses.replace(estimate, reason=reason)


def spearman(
  x_N: ArrayLike,
  y_N: ArrayLike,
  clusters: ArrayLike | None = None,
  *,
  confidence: float = 0.95,
  method: Method = "bca",
  missing: Missing = "nan",
  draws: int = 4000,
  seed: int = 0,
) -> Estimate:
  """Return Spearman's rank correlation (average ranks for ties) with a bootstrap interval.

  Ranks are formed anew in every draw. A constant series has no rank correlation: NaN with a reason.
  The other arguments and errors are those of `mean`.
  """
  options = _Options(confidence, method, missing, draws, seed)
  (x_N, y_N), cluster_N, stratum_K, note, undefined = _prepare(
    {"x": x_N, "y": y_N}, clusters, options
  )
  n = len(x_N)
  for name, values_N in (("x", x_N), ("y", y_N)):
    if not undefined and np.ptp(values_N) == 0:
      undefined = f"{name} is constant, so it has no ranks"
  if not undefined and n < 3:
    undefined = f"{n} points are too few for a rank correlation"
  if undefined:
    return Estimate(math.nan, math.nan, math.nan, n, undefined)
  below_x_NN, below_y_NN = _share_below(x_N), _share_below(y_N)

  def statistic(w_BK: _Floats) -> _Floats:
    # A draw repeats points; repeating a point w times moves the average rank of point i by
    # w · (1 if it lies below i, ½ if it is tied with i). So ranks of a draw are a matrix product.
    w_BN = w_BK[:, cluster_N]
    return _weighted_pearson(w_BN @ below_x_NN, w_BN @ below_y_NN, w_BN)

  value = float(scipy.stats.spearmanr(x_N, y_N).statistic)
  return _estimate(value, statistic, stratum_K, n, note, options)


def dose_slope(
  coef_N: ArrayLike,
  y_N: ArrayLike,
  clusters_N: ArrayLike | None = None,
  *,
  strata: ArrayLike | None = None,
  confidence: float = 0.95,
  method: Method = "percentile",
  missing: Missing = "nan",
  draws: int = 4000,
  seed: int = 0,
) -> Estimate:
  """Return the least-squares slope of a measure on the steering coefficient.

  Args:
    coef_N: coefficients, in any one unit; the slope is per that unit.
    y_N: the measure.
    clusters_N: N labels (prompts or items), as for `mean`.
    strata: N labels, as for `mean`.

  The other arguments and errors are those of `mean`. One single coefficient has no slope: NaN with
  a reason.
  """
  options = _Options(confidence, method, missing, draws, seed)
  pair, cluster_N, stratum_K, note, undefined = _prepare(
    {"coef": coef_N, "y": y_N}, clusters_N, options, strata
  )
  x_N, response_N = pair
  n = len(x_N)
  if not undefined and np.ptp(x_N) == 0:
    undefined = "there is only one coefficient, so there is no slope"
  if undefined:
    return Estimate(math.nan, math.nan, math.nan, n, undefined)
  value = float(scipy.stats.linregress(x_N, response_N).slope)
  # Centred first: the sums of squares below would cancel badly otherwise.
  dx_N, dy_N = x_N - x_N.mean(), response_N - response_N.mean()
  sums_5K = [_by_cluster(v, cluster_N) for v in (np.ones(n), dx_N, dy_N, dx_N**2, dx_N * dy_N)]
  scale = float(np.mean(dx_N**2))

  def statistic(w_BK: _Floats) -> _Floats:
    n_B, x_B, y_B, xx_B, xy_B = (w_BK @ sum_K for sum_K in sums_5K)
    var_B = xx_B / n_B - (x_B / n_B) ** 2
    cov_B = xy_B / n_B - (x_B / n_B) * (y_B / n_B)
    defined_B = var_B > 1e-12 * scale
    return np.where(defined_B, cov_B / np.where(defined_B, var_B, 1.0), np.nan)

  return _estimate(value, statistic, stratum_K, n, note, options)


@dataclasses.dataclass(frozen=True)
class _Options:
  confidence: float
  method: str
  missing: str
  draws: int
  seed: int

  def __post_init__(self) -> None:
    _check_confidence(self.confidence)
    if self.method not in ("percentile", "bca"):
      raise ValueError(f"unknown method {self.method!r}; 'percentile' or 'bca' fits")
    if self.missing not in ("nan", "drop"):
      raise ValueError(f"unknown missing {self.missing!r}; 'nan' or 'drop' fits")
    if self.draws < 100:
      raise ValueError(f"draws is {self.draws}; at least 100 are needed for an interval")


def _check_confidence(confidence: float) -> None:
  if not 0 < confidence < 1:
    raise ValueError(f"confidence is {confidence!r}; a number between 0 and 1 fits")


def _prepare(
  series: dict[str, ArrayLike],
  clusters: ArrayLike | None,
  options: _Options,
  strata: ArrayLike | None = None,
) -> tuple[list[_Floats], NDArray[np.intp], NDArray[np.intp], str, str]:
  """Return series as floats, cluster numbers 0 … K−1, strata [K], a note, why it is undefined."""
  arrays = []
  for name, values in series.items():
    array_N = np.asarray(values, dtype=np.float64)  # None becomes NaN
    if array_N.ndim != 1:
      raise ValueError(f"{name} has shape {array_N.shape}; one dimension fits")
    if np.isinf(array_N).any():
      raise ValueError(f"{name} holds infinite values")
    arrays.append(array_N)
  n = len(arrays[0])
  label_N = np.arange(n) if clusters is None else np.asarray(clusters)
  stratum_N = np.zeros(n) if strata is None else np.asarray(strata)
  lengths = {k: len(a) for k, a in zip(series, arrays, strict=True)}
  lengths |= {"clusters": len(label_N), "strata": len(stratum_N)}
  if set(lengths.values()) != {n}:
    raise ValueError(f"arrays of different length: {lengths}")
  missing_N = np.any([np.isnan(a) for a in arrays], axis=0) if n else np.zeros(0, bool)
  lost = int(missing_N.sum())
  note = f"{lost} of {n} values are missing" if lost else ""
  if lost and options.missing == "drop":
    note += " and left out"
    arrays = [a[~missing_N] for a in arrays]
    label_N, stratum_N = label_N[~missing_N], stratum_N[~missing_N]
  if not len(label_N):
    empty = np.zeros(0, np.intp)
    return arrays, empty, empty, note, note or "no values"
  _, first_K, cluster_N = np.unique(label_N, return_index=True, return_inverse=True)
  _, stratum_N = np.unique(stratum_N, return_inverse=True)
  stratum_K = stratum_N[first_K]
  if (stratum_K[cluster_N] != stratum_N).any():
    raise ValueError("a cluster lies in two strata; each cluster has one")
  undefined = note if lost and options.missing == "nan" else ""
  return arrays, cluster_N, stratum_K, note, undefined


def _by_cluster(values_N: _Floats, cluster_N: NDArray[np.intp]) -> _Floats:
  return np.bincount(cluster_N, weights=values_N).astype(np.float64)


def _estimate(
  value: float,
  statistic: Callable[[_Floats], _Floats],
  stratum_K: NDArray[np.intp],
  n: int,
  note: str,
  options: _Options,
) -> Estimate:
  def no_interval(why: str) -> Estimate:
    return Estimate(value, math.nan, math.nan, n, "; ".join(filter(None, (note, why))))

  n_clusters = len(stratum_K)
  members = [np.flatnonzero(stratum_K == s) for s in range(int(stratum_K.max()) + 1)]
  if min(map(len, members)) < 2:
    what = "one cluster" if len(members) == 1 else "a stratum of one cluster"
    return no_interval(f"{what} gives no interval")

  def of_draw(*index_BK_of_strata: NDArray[np.intp], axis: int = -1) -> _Floats:
    index_BK = np.concatenate(
      [np.moveaxis(np.asarray(x, dtype=np.intp), axis, -1) for x in index_BK_of_strata], axis=-1
    )
    flat_BK = index_BK.reshape(-1, index_BK.shape[-1])
    row_B1 = np.arange(len(flat_BK))[:, None] * n_clusters
    weight_BK = np.bincount((flat_BK + row_B1).ravel(), minlength=len(flat_BK) * n_clusters)
    return statistic(weight_BK.reshape(-1, n_clusters).astype(float)).reshape(index_BK.shape[:-1])

  with warnings.catch_warnings():
    # scipy warns where its result is NaN; the reasons below say so instead.
    warnings.simplefilter("ignore", scipy.stats.DegenerateDataWarning)
    warnings.simplefilter("ignore", RuntimeWarning)
    result = scipy.stats.bootstrap(
      members,
      of_draw,
      n_resamples=options.draws,
      vectorized=True,
      confidence_level=options.confidence,
      method="BCa" if options.method == "bca" else "percentile",
      rng=np.random.default_rng(options.seed),
    )
  draw_B = result.bootstrap_distribution
  undefined = int(np.isnan(draw_B).sum())
  if undefined:
    return no_interval(f"{undefined} of {options.draws} bootstrap draws are undefined")
  if np.ptp(draw_B) <= 1e-12 * max(1.0, abs(value)):
    return no_interval("every bootstrap draw gives the same value, so its spread is unknown")
  low, high = float(result.confidence_interval.low), float(result.confidence_interval.high)
  if math.isnan(low) or math.isnan(high):
    return no_interval("the BCa correction is undefined for these values")
  return Estimate(value, low, high, n, note)


def _share_below(values_N: _Floats) -> _Floats:
  row_N1, column_1N = values_N[:, None], values_N[None, :]
  return (row_N1 < column_1N) + 0.5 * (row_N1 == column_1N)


def _weighted_pearson(x_BN: _Floats, y_BN: _Floats, w_BN: _Floats) -> _Floats:
  total_B1 = w_BN.sum(axis=1, keepdims=True)
  x_BN = x_BN - (w_BN * x_BN).sum(axis=1, keepdims=True) / total_B1
  y_BN = y_BN - (w_BN * y_BN).sum(axis=1, keepdims=True) / total_B1
  xx_B, yy_B = (w_BN * x_BN**2).sum(axis=1), (w_BN * y_BN**2).sum(axis=1)
  # Ranks are multiples of ½ (their spread, if any, is far above this), so this tests for constancy.
  defined_B = (xx_B > 1e-6) & (yy_B > 1e-6)
  product_B = np.where(defined_B, xx_B * yy_B, 1.0)
  return np.where(defined_B, (w_BN * x_BN * y_BN).sum(axis=1) / np.sqrt(product_B), np.nan)
