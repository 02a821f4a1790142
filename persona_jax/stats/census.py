"""The census: does the alignment of many independent directions predict what they do to refusal?

Five traits give hardly any power; dozens of independent directions do. The slope of the change in
refusal log-odds on alignment is bootstrapped over directions crossed with prompts, and its
calibration is that of `persona_jax.stats.calibration`, with directions in the place of replicates.
What the slope is worth for prediction is the R² on groups of directions left out whole (all
directions of a trait), and on composites predicted from poles.

Dimension letters: R directions, G groups of directions, N prompts, C clusters, K controls, B draws.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from persona_jax.stats.calibration import calibrated, two_way_error
from persona_jax.stats.draws import interval, p_above, p_below
from persona_jax.stats.families import specificity
from persona_jax.stats.intervals import Estimate

_Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Census:
  """The regression of an effect on alignment.

  Attributes:
    slope: units of y per unit of x, with its crossed bootstrap interval.
    p_negative, p_positive: one-sided p of a slope below and above 0.
    intercept: of the fit to all directions.
    r2: share of variance predicted with whole groups left out; may be negative; NaN if undefined.
    band: 2.5 and 97.5 percentiles of the standardised slope on control alignments; NaN without.
    p_specific: share of controls with a standardised slope at least as far on the observed side.
    reason: why something is NaN; empty if nothing is amiss.
  """

  slope: Estimate
  p_negative: float
  p_positive: float
  intercept: float
  r2: float
  band: tuple[float, float] = (math.nan, math.nan)
  p_specific: float = math.nan
  reason: str = ""


def census(
  y_RN: ArrayLike,
  x_R: ArrayLike,
  groups_R: ArrayLike | None = None,
  *,
  clusters_N: ArrayLike | None = None,
  control_x_KR: ArrayLike | None = None,
  draws: int = 4000,
  seed: int = 0,
  confidence: float = 0.95,
) -> Census:
  """Return the slope of y on x over directions.

  Args:
    y_RN: change of refusal log-odds of each direction on each prompt; nothing missing.
    x_R: alignment with refusal: cosine, whitened cosine or jvp.
    groups_R: a label for each direction (its trait); directions of one group are drawn and left out
      together. None: each is its own.
    clusters_N: clusters of the prompts. None: each is its own.
    control_x_KR: alignments of the same directions with K random directions in the place of the
      refusal direction; slopes on them are the band that the slope must leave.
    draws, seed, confidence: of the bootstrap.

  Raises:
    ValueError: shapes that do not fit, or missing or infinite values.
  """
  y_RN, x_R, group_R, cluster_N = _checked(y_RN, x_R, groups_R, clusters_N)
  mean_R = y_RN.mean(axis=1)
  n = y_RN.size
  undefined = ""
  if len(x_R) < 3 or group_R.max() < 2:
    undefined = f"{len(x_R)} directions in {int(group_R.max()) + 1} groups are too few for a slope"
  elif np.ptp(x_R) <= 1e-12 * max(1.0, float(np.abs(x_R).max())):
    undefined = "x is constant, so there is no slope"
  if undefined:
    nothing = Estimate(math.nan, math.nan, math.nan, n, undefined)
    return Census(nothing, math.nan, math.nan, math.nan, math.nan, reason=undefined)
  dx_R = x_R - x_R.mean()
  slope = float(dx_R @ mean_R / (dx_R @ dx_R))
  intercept = float(mean_R.mean() - slope * x_R.mean())
  draw_B = _slopes(y_RN, x_R, group_R, cluster_N, draws, seed)
  error, df = _error(y_RN, dx_R, slope, group_R, cluster_N)
  if np.isfinite(draw_B).all() and np.isfinite(error):
    draw_B = calibrated(draw_B[:, None], [slope], [error], [df])[:, 0]
  estimate = interval(draw_B, slope, n=n, confidence=confidence)
  band, p_specific = (math.nan, math.nan), math.nan
  if control_x_KR is not None:
    band, p_specific = _band(mean_R, x_R, np.asarray(control_x_KR, dtype=np.float64))
  return Census(
    estimate,
    float(p_below(draw_B, 0.0)),
    float(p_above(draw_B, 0.0)),
    intercept,
    cross_validated_r2(mean_R, x_R, group_R),
    band,
    p_specific,
    estimate.reason,
  )


def cross_validated_r2(y_R: ArrayLike, x_R: ArrayLike, groups_R: ArrayLike) -> float:
  """Return 1 − SS(y − predicted) / SS(y − mean of the rest), leaving out one whole group at a time.

  NaN if a fit or the denominator is undefined. Near 0 or below: x predicts nothing.
  """
  y_R, x_R = np.asarray(y_R, dtype=np.float64), np.asarray(x_R, dtype=np.float64)
  group_R = np.asarray(groups_R)
  _, index_R = np.unique(group_R, return_inverse=True)
  # Sums without a group are the whole less the group's; centred first, so that nothing cancels.
  dx_R, dy_R = x_R - x_R.mean(), y_R - y_R.mean()
  columns = (np.ones(len(x_R)), dx_R, dy_R, dx_R**2, dx_R * dy_R)
  n_R, sx_R, sy_R, sxx_R, sxy_R = (
    v.sum() - np.bincount(index_R, weights=v)[index_R] for v in columns
  )
  if (n_R < 2).any():
    return math.nan
  xx_R = sxx_R - sx_R**2 / n_R
  if (xx_R <= 1e-12 * (dx_R @ dx_R)).any():
    return math.nan
  slope_R = (sxy_R - sx_R * sy_R / n_R) / xx_R
  from_mean_R = dy_R - sy_R / n_R
  total = float(from_mean_R @ from_mean_R)
  error_R = from_mean_R - slope_R * (dx_R - sx_R / n_R)
  return 1 - float(error_R @ error_R) / total if total > 0 else math.nan


def predict(x_R: ArrayLike, y_R: ArrayLike, x_new_Q: ArrayLike) -> _Floats:
  """Return what a line through one set of directions (the poles) predicts for others (composites).

  Args:
    x_R, y_R: alignments and mean effects of the directions that are fitted.
    x_new_Q: alignments of the directions that are predicted.

  Returns:
    float64 [Q]; NaN if x_R is constant.

  Raises:
    ValueError: series of different length.
  """
  x_R, y_R = np.asarray(x_R, dtype=np.float64), np.asarray(y_R, dtype=np.float64)
  if x_R.shape != y_R.shape or x_R.ndim != 1:
    raise ValueError(f"x and y have shapes {x_R.shape} and {y_R.shape}; one row of equal length")
  x_new_Q = np.asarray(x_new_Q, dtype=np.float64)
  fit = _line(x_R, y_R)
  return np.full(x_new_Q.shape, np.nan) if fit is None else fit[0] + fit[1] * x_new_Q


def _checked(
  y_RN: ArrayLike, x_R: ArrayLike, groups_R: ArrayLike | None, clusters_N: ArrayLike | None
) -> tuple[_Floats, _Floats, NDArray[np.intp], NDArray[np.intp]]:
  y_RN, x_R = np.asarray(y_RN, dtype=np.float64), np.asarray(x_R, dtype=np.float64)
  if y_RN.ndim != 2 or x_R.shape != y_RN.shape[:1] or y_RN.size == 0:
    raise ValueError(f"y_RN has shape {y_RN.shape} and x_R {x_R.shape}; [R, N] and [R] fit")
  if not (np.isfinite(y_RN).all() and np.isfinite(x_R).all()):
    raise ValueError("y_RN or x_R holds missing or infinite values; leave those directions out")
  labels = []
  for name, given, n in (
    ("groups_R", groups_R, y_RN.shape[0]),
    ("clusters_N", clusters_N, y_RN.shape[1]),
  ):
    label = np.arange(n) if given is None else np.asarray(given)
    if label.shape != (n,):
      raise ValueError(f"{name} has shape {label.shape}; ({n},) fits")
    labels.append(np.unique(label, return_inverse=True)[1])
  return y_RN, x_R, labels[0], labels[1]


def _slopes(
  y_RN: _Floats,
  x_R: _Floats,
  group_R: NDArray[np.intp],
  cluster_N: NDArray[np.intp],
  draws: int,
  seed: int,
) -> _Floats:
  """Return slopes under random weights of groups and clusters; NaN where x has no spread."""
  if draws < 100:
    raise ValueError(f"draws is {draws}; at least 100 are needed for an interval")
  rng = np.random.default_rng(seed)
  n_groups, n_clusters = int(group_R.max()) + 1, int(cluster_N.max()) + 1
  w_BR = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=draws)[:, group_R]
  w_BN = rng.multinomial(n_clusters, np.full(n_clusters, 1 / n_clusters), size=draws)[:, cluster_N]
  y_BR = (w_BN @ y_RN.T) / w_BN.sum(axis=1, keepdims=True)
  total_B1 = w_BR.sum(axis=1, keepdims=True)
  dx_BR = x_R - (w_BR @ x_R)[:, None] / total_B1
  xx_B = (w_BR * dx_BR**2).sum(axis=1)
  defined_B = xx_B > 1e-12 * float(((x_R - x_R.mean()) ** 2).sum())
  xy_B = (w_BR * dx_BR * y_BR).sum(axis=1)
  return np.where(defined_B, xy_B / np.where(defined_B, xx_B, 1.0), np.nan)


def _error(
  y_RN: _Floats,
  dx_R: _Floats,
  slope: float,
  group_R: NDArray[np.intp],
  cluster_N: NDArray[np.intp],
) -> tuple[float, float]:
  """Return the standard error of the slope with groups and clusters random, and its df."""
  n_prompts = y_RN.shape[1]
  mean_R = y_RN.mean(axis=1)
  # The deviation of a prompt's own slope plus that of a direction from the line.
  leverage_R = dx_R / (dx_R @ dx_R)
  # Residuals over 1 − leverage (HC3, MacKinnon & White 1985): without it 60 directions cover .93.
  residual_R = mean_R - mean_R.mean() - slope * dx_R
  residual_R = residual_R / (1 - 1 / len(dx_R) - dx_R**2 / (dx_R @ dx_R))
  z_RN = leverage_R[:, None] * (y_RN - mean_R[:, None] + residual_R[:, None]) / n_prompts
  member_GR = np.eye(int(group_R.max()) + 1)[:, group_R]
  member_NC = np.eye(int(cluster_N.max()) + 1)[cluster_N]
  error, df = two_way_error(member_GR @ z_RN @ member_NC)
  return float(error), float(df)


def _band(mean_R: _Floats, x_R: _Floats, control_KR: _Floats) -> tuple[tuple[float, float], float]:
  if control_KR.ndim != 2 or control_KR.shape[1] != len(x_R):
    raise ValueError(f"control_x_KR has shape {control_KR.shape}; [K, {len(x_R)}] fits")
  # Controls align less, so slopes are compared per standard deviation of x.
  dy_R = mean_R - mean_R.mean()

  def standardised(x_KR: _Floats) -> _Floats:
    dx_KR = x_KR - x_KR.mean(axis=-1, keepdims=True)
    scale_K = np.sqrt((dx_KR**2).mean(axis=-1))
    return (dx_KR @ dy_R) / len(dy_R) / np.where(scale_K > 0, scale_K, np.inf)

  observed, control_K = float(standardised(x_R)), standardised(control_KR)
  low, high = np.quantile(control_K, [0.025, 0.975])
  side: Literal["greater", "less"] = "greater" if observed >= 0 else "less"
  return (float(low), float(high)), specificity(observed, control_K, alternative=side)


def _line(x_R: _Floats, y_R: _Floats) -> tuple[float, float] | None:
  dx_R = x_R - x_R.mean() if len(x_R) else x_R
  xx = float(dx_R @ dx_R)
  if len(x_R) < 2 or xx <= 1e-24 * max(1.0, float(np.abs(x_R).max()) ** 2):
    return None
  slope = float(dx_R @ y_R) / xx
  return float(y_R.mean() - slope * x_R.mean()), slope
