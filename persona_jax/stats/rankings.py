"""Agreement of two rankings of personas, with what noise does to it.

Twelve rates with their errors give a rank correlation ρ that is too small: two noisy rankings of
the same truth agree only as far as both are reliable. So ρ is shown with the reliability of each
ranking, and claims rest on ρ/√(rel·rel) (Spearman 1904, disattenuated). Its bootstrap draws carry
the noise twice, once from the data and once from the draw, so they are divided by the reliability
that a ranking with twice the noise has, r/(2 − r).

By simulation with 12 fixed personas (200 prompts, 3 replicates, 300 studies each, true ρ of .5, .7
and .95, persona SD .3 and .6 in log-odds) the disattenuated ρ is right on average (.49 to .53, .70
to .72, .95 to .96), and its nominal .95 interval covers the truth in .95 to 1.00 of studies,
missing it on either side in at most .03. The BCa interval of ρ divided by √(rel·rel) covers only
.69 to .77, because BCa takes the attenuation for bias: it describes the ρ of these data, and no
claim rests on it.

Dimension letters: P personas, B draws, H random halves, C clusters, S replicates.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray

from persona_jax.stats.draws import Draws, interval, p_above, p_below, weighted_means
from persona_jax.stats.families import holm
from persona_jax.stats.intervals import Estimate
from persona_jax.stats.outcomes import Outcomes

_Floats = NDArray[np.float64]
MEASURABLE = 0.3


@dataclasses.dataclass(frozen=True, eq=False)
class RankCorrelation:
  """Spearman's ρ of two rankings.

  Attributes:
    rho: ρ with its BCa interval (percentile where BCa is undefined; the reason says so).
    reliability_x, reliability_y: split-half reliability of each ranking, Spearman–Brown corrected.
    disattenuated: ρ/√(rel·rel) with its percentile interval, not capped; it may exceed 1. NaN if a
      ranking is not measurable.
    distinguishable_x, distinguishable_y: pairs of personas whose difference is significant (Holm
      over all pairs, .05), of `n_pairs`.
    n_pairs: P(P − 1)/2.
    measurable: there are three personas or more and both reliabilities are at least .3.
    reason: why something is NaN or not measurable; empty if nothing is amiss.
    draw_B: draws of the disattenuated ρ, aligned with the study's draws.
  """

  rho: Estimate
  reliability_x: float
  reliability_y: float
  disattenuated: Estimate
  distinguishable_x: int
  distinguishable_y: int
  n_pairs: int
  measurable: bool
  reason: str
  draw_B: _Floats = dataclasses.field(repr=False)

  @property
  def shown(self) -> Estimate:
    """The disattenuated ρ capped at ±1: for display only, tests use it uncapped."""
    e = self.disattenuated
    value, low, high = (float(np.clip(v, -1.0, 1.0)) for v in (e.value, e.low, e.high))
    beyond = max(abs(e.value), abs(e.low), abs(e.high)) > 1
    reason = "; ".join(filter(None, (e.reason, "capped at ±1 for display" if beyond else "")))
    return Estimate(value, low, high, e.n, reason)


def spearman_rows(x_BP: ArrayLike, y_BP: ArrayLike) -> _Floats:
  """Return Spearman's ρ along the last axis (average ranks); NaN for constant or missing rows."""
  x_BP, y_BP = np.broadcast_arrays(np.asarray(x_BP, float), np.asarray(y_BP, float))
  missing_B = np.isnan(x_BP).any(axis=-1) | np.isnan(y_BP).any(axis=-1)
  rank_x, rank_y = _ranks(x_BP), _ranks(y_BP)
  xx_B, yy_B = (rank_x**2).sum(axis=-1), (rank_y**2).sum(axis=-1)
  defined_B = (xx_B * yy_B > 1e-9) & ~missing_B
  scale_B = np.sqrt(np.where(defined_B, xx_B * yy_B, 1.0))
  return np.where(defined_B, (rank_x * rank_y).sum(axis=-1) / scale_B, np.nan)


def reliability(outcomes: Outcomes, draws: Draws, *, halves: int = 200, seed: int = 0) -> float:
  """Return the split-half reliability of one arm's ranking of personas.

  Clusters and replicates are split at random into halves many times (an odd number of replicates
  into a smaller and a larger part), Spearman's ρ of the halves is averaged, and stepped up to the
  whole by λr/(1 + (λ − 1)r) (Spearman 1910, Brown 1910). λ, the error variance of a half over that
  of the whole, would be 2 for halves of one factor; halves of both hold a quarter of the cells, so
  it follows from the parts of the variance and lies between 2 and 4 (a little more with three
  replicates).
  NaN if there is one cluster, or if in no split both halves have a ranking.

  Raises:
    ValueError: outcomes with several arms, or that do not fit the draws.
  """
  _one_arm(outcomes)
  n_clusters, n_replicates = draws.clusters_C.size, draws.replicate_BS.shape[1]
  if n_clusters < 2:
    return math.nan
  rng = np.random.default_rng(seed)
  first_HC = _random_halves(rng, halves, n_clusters)
  parts = [first_HC, ~first_HC]
  replicate_parts = [np.ones((halves, 1), dtype=bool)] * 2
  if n_replicates > 1:
    first_HS = _random_halves(rng, halves, n_replicates)
    replicate_parts = [first_HS, ~first_HS]
  x_HP, y_HP = (
    weighted_means(outcomes, draws, c.astype(float), s.astype(float))[:, 0]
    for c, s in zip(parts, replicate_parts, strict=True)
  )
  rho_H = spearman_rows(x_HP, y_HP)
  if np.isnan(rho_H).all():
    return math.nan
  half = float(np.nanmean(rho_H))
  shares = [(n_clusters // 2 / n_clusters, max(n_replicates // 2, 1) / n_replicates)]
  shares.append((1 - shares[0][0], 1 - shares[0][1] if n_replicates > 1 else 1.0))
  cluster, replicate, cell = _parts_of_noise(outcomes, draws)
  whole = cluster + replicate + cell
  of_half = np.mean([cluster / c + replicate / s + cell / (c * s) for c, s in shares])
  length = float(of_half / whole) if whole > 0 else 2.0
  below = 1 + (length - 1) * half
  return length * half / below if below > 0 else -math.inf


def _parts_of_noise(outcomes: Outcomes, draws: Draws) -> tuple[float, float, float]:
  """Return the error variance from clusters alone, replicates alone and cells, mean over personas.

  Of means less the mean of all personas, since what moves all of them moves no rank.
  """
  cluster_P, replicate_P, cell_P = draws.variances(outcomes, _centring(len(outcomes.personas)))
  cell = float(cell_P.mean())
  return max(float(cluster_P.mean()) - cell, 0.0), max(float(replicate_P.mean()) - cell, 0.0), cell


def _centring(n_personas: int) -> _Floats:
  return (np.eye(n_personas) - 1 / n_personas)[:, None, :]


def _draws_of_ranking(outcomes: Outcomes, draws: Draws) -> _Floats:
  """Return draws [B, P] of the means less their mean, as far apart as their standard errors say.

  Pigeonhole draws count the noise of cells three times, which would blur the ranking too much.
  """
  point_P, error_P, _ = draws.errors(outcomes, _centring(len(outcomes.personas)))
  mean_BP = draws.means(outcomes)[:, 0]
  raw_BP = mean_BP - mean_BP.mean(axis=1, keepdims=True)
  spread_P = raw_BP.std(axis=0)
  scale_P = np.where(spread_P > 0, error_P / np.where(spread_P > 0, spread_P, 1.0), 1.0)
  return point_P + (raw_BP - point_P) * scale_P


def distinguishable_pairs(outcomes: Outcomes, draws: Draws, *, alpha: float = 0.05) -> int:
  """Return how many pairs of personas differ in one arm, by Holm over all pairs.

  The p of a pair is that of its calibrated interval: Student's t on the two-way standard error.

  Raises:
    ValueError: outcomes with several arms, or that do not fit the draws.
  """
  _one_arm(outcomes)
  pairs = list(itertools.combinations(range(len(outcomes.personas)), 2))
  if not pairs:
    return 0
  coef_Q1P = np.zeros((len(pairs), 1, len(outcomes.personas)))
  for q, (i, j) in enumerate(pairs):
    coef_Q1P[q, 0, i], coef_Q1P[q, 0, j] = 1.0, -1.0
  point_Q, error_Q, df_Q = draws.errors(outcomes, coef_Q1P)
  usable_Q = error_Q > 0
  t_Q = np.abs(point_Q) / np.where(usable_Q, error_Q, np.inf)
  p_Q = 2 * scipy.stats.t.sf(t_Q, np.where(usable_Q, df_Q, 1.0))
  return int((holm(np.nan_to_num(p_Q, nan=1.0)) <= alpha).sum())


def rank_correlation(
  x: Outcomes,
  y: Outcomes,
  draws: Draws,
  *,
  confidence: float = 0.95,
  halves: int = 200,
  seed: int = 0,
) -> RankCorrelation:
  """Return the agreement of two rankings of the same personas.

  Args:
    x, y: one arm each (`outcomes.arm("SP")`), of one model or of two, over the same prompts.
    draws: the study's draws; one draw weighs prompts and replicates of both sides alike.
    confidence: coverage of the intervals.
    halves: number of random halves for the reliabilities.
    seed: seed of the halves.

  Raises:
    ValueError: several arms, other personas, or outcomes that do not fit the draws.
  """
  _one_arm(x)
  _one_arm(y)
  if x.personas != y.personas:
    raise ValueError(f"the rankings have personas {x.personas} and {y.personas}; the same fit")
  n_personas = len(x.personas)
  rel_x, rel_y = (reliability(o, draws, halves=halves, seed=seed) for o in (x, y))
  apart_x, apart_y = distinguishable_pairs(x, draws), distinguishable_pairs(y, draws)
  n_pairs = n_personas * (n_personas - 1) // 2
  point = float(spearman_rows(x.mean_MP[0], y.mean_MP[0]))
  why = _undefined(x, y)
  measurable = not why and min(rel_x, rel_y) >= MEASURABLE  # False for NaN too
  if not why and not measurable:
    why = f"ranking not measurable: reliability {rel_x:.2f} and {rel_y:.2f}, wanted {MEASURABLE}"
  if math.isnan(point):
    nothing = Estimate(math.nan, math.nan, math.nan, n_personas, why)
    nan_B = np.full(draws.n_draws, math.nan)
    return RankCorrelation(
      nothing, rel_x, rel_y, nothing, apart_x, apart_y, n_pairs, False, why, nan_B
    )
  raw_B = spearman_rows(_draws_of_ranking(x, draws), _draws_of_ranking(y, draws))
  jack_C = spearman_rows(draws.leave_one_out(x)[:, 0], draws.leave_one_out(y)[:, 0])
  rho = interval(
    raw_B, point, n=n_personas, confidence=confidence, method="bca", leave_one_out_J=jack_C
  )
  if not measurable:
    nothing = Estimate(math.nan, math.nan, math.nan, n_personas, why)
    draw_B = np.full(draws.n_draws, math.nan)
    return RankCorrelation(
      rho, rel_x, rel_y, nothing, apart_x, apart_y, n_pairs, False, why, draw_B
    )
  value = point / math.sqrt(rel_x * rel_y)
  draw_B = raw_B / math.sqrt(rel_x / (2 - rel_x) * (rel_y / (2 - rel_y)))
  disattenuated = interval(draw_B, value, n=n_personas, confidence=confidence)
  return RankCorrelation(
    rho, rel_x, rel_y, disattenuated, apart_x, apart_y, n_pairs, True, "", draw_B
  )


@dataclasses.dataclass(frozen=True, eq=False)
class Preserved:
  """The claim that models share one ranking.

  Attributes:
    holds: in every pair of models the disattenuated ρ has its lower bound above the threshold.
      False means "not shown".
    p: largest over pairs of the two-sided p against the threshold; NaN if it is not testable.
    pairs: the correlation of every pair of models.
    reason: why it is not testable; empty if it is.
  """

  holds: bool
  p: float
  pairs: dict[tuple[Any, Any], RankCorrelation]
  reason: str = ""


def preserved(
  models: Mapping[Any, Outcomes],
  draws: Draws,
  *,
  threshold: float = 0.5,
  confidence: float = 0.95,
  halves: int = 200,
) -> Preserved:
  """Return whether every pair of models has a disattenuated ρ above a threshold.

  Every pair must pass, so the p is the largest of them (Berger 1982) and nothing is corrected. It
  is twice the one-sided p, dual to the two-sided interval.

  Args:
    models: one arm (system prompts) of each model, over the same personas and prompts.

  Raises:
    ValueError: fewer than two models, or outcomes that do not fit.
  """
  pairs = _all_pairs(models, draws, confidence, halves)
  reasons = [f"{a}, {b}: {r.reason}" for (a, b), r in pairs.items() if not r.measurable]
  if reasons:
    return Preserved(False, math.nan, pairs, "; ".join(reasons))
  p = max(_doubled(p_above(r.draw_B, threshold)) for r in pairs.values())
  reasons = [r.disattenuated.reason for r in pairs.values() if r.disattenuated.reason]
  holds = all(r.disattenuated.low > threshold for r in pairs.values())
  return Preserved(holds, p, pairs, "; ".join(reasons))


@dataclasses.dataclass(frozen=True, eq=False)
class Unpredictable:
  """The claim that one method's ranking does not follow from the other's.

  Attributes:
    holds: the disattenuated ρ(SP, AS) has its upper bound below the threshold, and its difference
      to the median ρ_SP across models has an interval below 0. False means "not shown".
    p: larger of the two two-sided p; NaN if it is not testable.
    correlation: ρ(SP, AS) in the model.
    difference: disattenuated ρ(SP, AS) less the median over pairs of models of disattenuated ρ_SP.
    reason: why it is not testable; empty if it is.
  """

  holds: bool
  p: float
  correlation: RankCorrelation
  difference: Estimate
  reason: str = ""


def unpredictable(
  sp: Outcomes,
  as_: Outcomes,
  shared: Preserved,
  draws: Draws,
  *,
  threshold: float = 0.7,
  confidence: float = 0.95,
  halves: int = 200,
) -> Unpredictable:
  """Return whether the steered ranking is shown to differ from the prompted one.

  That ρ is not significant shows nothing; it must be shown to be low, and lower than what two
  models have in common under prompts.

  Args:
    sp, as_: the two arms of one model.
    shared: `preserved` over the prompt arms of the models, with the same draws.
    draws: the study's draws.

  Raises:
    ValueError: outcomes that do not fit, or other draws than those of `shared`.
  """
  one = rank_correlation(sp, as_, draws, confidence=confidence, halves=halves)
  pairs = shared.pairs
  if any(len(r.draw_B) != draws.n_draws for r in pairs.values()):
    raise ValueError("the models were compared with other draws than these")
  reasons = [f"{a}, {b}: {r.reason}" for (a, b), r in pairs.items() if not r.measurable]
  reasons += [one.reason] if one.reason else []
  n = len(sp.personas)
  if reasons:
    why = "; ".join(reasons)
    nothing = Estimate(math.nan, math.nan, math.nan, n, why)
    return Unpredictable(False, math.nan, one, nothing, why)
  median_B = np.median([r.draw_B for r in pairs.values()], axis=0)
  median = float(np.median([r.disattenuated.value for r in pairs.values()]))
  difference_B = one.draw_B - median_B
  difference = interval(difference_B, one.disattenuated.value - median, n=n, confidence=confidence)
  p = max(_doubled(p_below(one.draw_B, threshold)), _doubled(p_below(difference_B, 0.0)))
  holds = one.disattenuated.high < threshold and difference.high < 0
  reason = "; ".join(filter(None, (one.disattenuated.reason, difference.reason)))
  return Unpredictable(bool(holds), p, one, difference, reason)


def _all_pairs(
  models: Mapping[Any, Outcomes], draws: Draws, confidence: float, halves: int
) -> dict[tuple[Any, Any], RankCorrelation]:
  if len(models) < 2:
    raise ValueError(f"{len(models)} model; a comparison of models wants at least 2")
  return {
    (a, b): rank_correlation(models[a], models[b], draws, confidence=confidence, halves=halves)
    for a, b in itertools.combinations(models, 2)
  }


def _ranks(values_BP: _Floats) -> _Floats:
  """Return average ranks less their mean."""
  below = (values_BP[..., None] > values_BP[..., None, :]).sum(axis=-1)
  equal = (values_BP[..., None] == values_BP[..., None, :]).sum(axis=-1)
  return below + equal / 2 - values_BP.shape[-1] / 2


def _random_halves(rng: np.random.Generator, halves: int, n: int) -> NDArray[np.bool_]:
  order_HN = rng.permuted(np.tile(np.arange(n), (halves, 1)), axis=1)
  return order_HN < n // 2


def _undefined(x: Outcomes, y: Outcomes) -> str:
  for name, o in (("x", x), ("y", y)):
    mean_P = o.mean_MP[0]
    if np.isnan(mean_P).any():
      return f"{name} lacks values of {np.array(o.personas, dtype=object)[np.isnan(mean_P)]}"
    if np.ptp(mean_P) == 0:
      return f"{name} is constant, so it has no ranks"
  return f"{len(x.personas)} personas are too few" if len(x.personas) < 3 else ""


def _doubled(p: ArrayLike) -> float:
  return float(np.minimum(1.0, 2 * np.asarray(p)))


def _one_arm(outcomes: Outcomes) -> None:
  if len(outcomes.arms) != 1:
    raise ValueError(f"a ranking has one arm; there are {list(outcomes.arms)}: use outcomes.arm()")
