"""Inversions: a persona that is safe under one method and dangerous under the other.

D_m(p) is the rate of persona p under method m less the mean of the other personas, so a shift of a
whole method cancels. A claim "AS-worse" wants D_AS above δ and D_SP below −δ; both must be shown,
so its p is the larger of the two one-sided p (intersection–union, Berger 1982, Technometrics 24:
295–300), and Holm corrects over personas × 2 directions. It must also show in each replicate, so
that one lucky wording or vector cannot make it.

Dimension letters: M = 2 arms (SP, AS), P personas, K replicates, Q contrasts, B draws.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
import scipy.stats
from numpy.typing import ArrayLike, NDArray

from persona_jax.stats.calibration import calibrated
from persona_jax.stats.draws import Contrasts, Draws, p_above, p_below
from persona_jax.stats.families import adjust
from persona_jax.stats.outcomes import Outcomes

_Floats = NDArray[np.float64]
Replicates = Literal["own", "pooled"]


def against_others(n_personas: int) -> _Floats:
  """Return coefficients [P, P]: each persona less the mean of the others."""
  if n_personas < 2:
    raise ValueError(f"{n_personas} personas; D needs at least 2")
  return np.where(np.eye(n_personas, dtype=bool), 1.0, -1.0 / (n_personas - 1))


def inversions(
  outcomes: Outcomes,
  draws: Draws,
  *,
  delta: float = 0.05,
  arms: tuple[str, str] = ("SP", "AS"),
  alpha: float = 0.05,
  replicates: Replicates = "own",
) -> pd.DataFrame:
  """Return the test of every persona in both directions, one row each.

  Args:
    outcomes: with both arms over the same personas.
    draws: the study's draws.
    delta: margin, in the unit of the outcome (.05 of ASR).
    arms: names of the two methods, prompt first.
    alpha: level; bounds are one-sided at 1 − alpha, and Holm is at alpha.
    replicates: whose spread over replicates a persona's error rests on; see `inversion_p`.

  Returns:
    Columns persona, direction ("AS-worse" or "SP-worse", by the names of the arms), d_* with
    *_low and *_high (one-sided bounds) and p_* for each arm, p, p_holm, each_replicate (point
    estimates beyond delta in every one), d_* of each replicate, and inverted: p_holm ≤ alpha and
    each_replicate. A persona without a value in one of the arms makes the others' means undefined
    too: p is NaN and the reason says so; select the personas that both arms have.

  Raises:
    ValueError: arms that are not there, a negative margin, fewer than two personas.
  """
  if delta < 0:
    raise ValueError(f"delta is {delta}; a margin of at least 0 fits")
  two = outcomes.select(arms=arms)
  contrasts, p_DMP = inversion_p(two, draws, delta, replicates=replicates)
  low_Q, high_Q = _one_sided(contrasts, alpha)
  d_MP, low_MP, high_MP = (v.reshape(2, -1) for v in (contrasts.point_Q, low_Q, high_Q))
  by_replicate_MPK = _by_replicate(two)
  sp, as_ = arms
  rows = []
  for direction, (worse, sign) in enumerate(((as_, 1), (sp, -1))):
    p_sp_P, p_as_P = p_DMP[direction]
    for i, persona in enumerate(two.personas):
      each_K = (sign * by_replicate_MPK[1, i] > delta) & (-sign * by_replicate_MPK[0, i] > delta)
      row = {"persona": persona, "direction": f"{worse}-worse"}
      for m, name in enumerate(arms):
        row |= {f"d_{name}": d_MP[m, i], f"{name}_low": low_MP[m, i], f"{name}_high": high_MP[m, i]}
      p = np.maximum(p_sp_P[i], p_as_P[i])
      row |= {f"p_{sp}": p_sp_P[i], f"p_{as_}": p_as_P[i], "p": p}
      row["each_replicate"] = bool(each_K.all())
      for k, replicate in enumerate(two.replicates):
        row |= {f"d_{name}_{replicate}": by_replicate_MPK[m, i, k] for m, name in enumerate(arms)}
      row["reason"] = "no value, or draws without a spread" if math.isnan(p) else ""
      rows.append(row)
  table = adjust(pd.DataFrame(rows).assign(family="inversion"), "holm", alpha=alpha)
  table["inverted"] = table["rejected"] & table["each_replicate"]
  table = table.rename(columns={"p_adjusted": "p_holm"})
  return table.drop(columns=["family", "correction", "family_size", "rejected"])


def inversion_p(
  two: Outcomes, draws: Draws, delta: float = 0.05, *, replicates: Replicates = "own"
) -> tuple[Contrasts, NDArray[np.float64]]:
  """Return D of both arms and the one-sided p of each claim.

  Args:
    two: outcomes of two arms, prompt first.
    draws: the study's draws.
    delta: margin.
    replicates: "own" takes each persona's own spread over replicates, which with three of them has
      two degrees of freedom and leaves little power after Holm. "pooled" takes the mean over the
      arm's personas, for rates between 0 and 1: it assumes that replicates spread alike in
      log-odds, so that variances go with (rate·(1 − rate))². Fix the choice before the data. By
      simulation (200 prompts, 3 replicates) D covers .943 to .948 with it (one-sided at .05: .041
      above, .063 below), and the smallest inversion found with 80 % power falls from .18 to .15
      for a persona named beforehand and from .41 to .21 among all.

  Raises:
    ValueError: an unknown choice, or pooling of an outcome outside 0 … 1.

  Returns:
    The contrasts, D of the first arm's personas and then of the second's; and p [2, 2, P]:
    directions (second arm worse, first arm worse), arms, personas. A claim's p is the larger over
    the arms.
  """
  if replicates not in ("own", "pooled"):
    raise ValueError(f"unknown replicates {replicates!r}; 'own' or 'pooled' fits")
  coef_QMP = _both_arms(against_others(len(two.personas)))
  contrasts = draws.contrasts(two, coef_QMP)
  if replicates == "pooled":
    contrasts = _pooled(contrasts, two, draws, coef_QMP)
  up_MP = p_above(contrasts.draw_BQ, delta).reshape(2, -1)
  down_MP = p_below(contrasts.draw_BQ, -delta).reshape(2, -1)
  second = np.stack([down_MP[0], up_MP[1]])
  return contrasts, np.stack([second, np.stack([up_MP[0], down_MP[1]])])


@dataclasses.dataclass(frozen=True)
class GailSimon:
  """The test of a qualitative interaction.

  Attributes:
    above, below: sums of squared z of the positive and of the negative effects.
    p: p of the null that no two effects have opposite signs.
    n: number of effects.
    reason: why p is NaN; empty if nothing is amiss.
  """

  above: float
  below: float
  p: float
  n: int
  reason: str = ""


def gail_simon(
  effect_P: ArrayLike,
  error_P: ArrayLike,
  df_P: ArrayLike | None = None,
  *,
  names: Sequence[str] | None = None,
) -> GailSimon:
  """Return the likelihood-ratio test that effects of both signs exist.

  Gail & Simon (1985, Biometrics 41: 361–372): min of the two sums against a mixture of χ². Effects
  are taken as independent. With df_P, each t = effect/error becomes the z of equal p, without
  which few replicates would reject too often.

  Raises:
    ValueError: series of different length or an error that is negative.
  """
  effect_P, error_P = np.asarray(effect_P, dtype=float), np.asarray(error_P, dtype=float)
  if effect_P.shape != error_P.shape or effect_P.ndim != 1:
    raise ValueError(f"effects and errors have shapes {effect_P.shape} and {error_P.shape}")
  if (error_P < 0).any():
    raise ValueError("a standard error is negative")
  n = len(effect_P)
  unusable = np.flatnonzero(~(error_P > 0) | np.isnan(effect_P))
  if n < 2 or unusable.size:
    which = ", ".join(str(i) if names is None else names[int(i)] for i in unusable)
    reason = f"effects or errors are undefined or without spread: {which}"
    return GailSimon(math.nan, math.nan, math.nan, n, reason if which else f"{n} effects")
  t_P = effect_P / error_P
  if df_P is not None:
    tail_P = scipy.stats.t.sf(np.abs(t_P), np.asarray(df_P, dtype=float))
    t_P = np.sign(t_P) * scipy.stats.norm.isf(tail_P)
  above, below = float((t_P[t_P > 0] ** 2).sum()), float((t_P[t_P < 0] ** 2).sum())
  h = np.arange(1, n)
  share = scipy.stats.binom.pmf(h, n - 1, 0.5)
  p = float((share * scipy.stats.chi2.sf(min(above, below), h)).sum())
  return GailSimon(above, below, p if min(above, below) > 0 else 1.0, n)


def qualitative_interaction(
  outcomes: Outcomes, draws: Draws, *, arms: tuple[str, str] = ("SP", "AS")
) -> GailSimon:
  """Return Gail and Simon's test that one method is worse for some personas, better for others.

  The effects are AS − SP of each persona, paired by prompt and replicate. It is global: it names no
  persona, and a rejection is no inversion of ranks by itself.

  Raises:
    ValueError: arms that are not there.
  """
  two = outcomes.select(arms=arms)
  eye_PP = np.eye(len(two.personas))
  moments = draws.errors(two, np.stack([-eye_PP, eye_PP], axis=1))
  return gail_simon(*moments, names=two.personas)


def crossings(
  outcomes: Outcomes,
  draws: Draws,
  *,
  delta: float = 0.05,
  arms: tuple[str, str] = ("SP", "AS"),
  alpha: float = 0.05,
) -> pd.DataFrame:
  """Return the pairs of personas whose order certainly reverses between the methods.

  A pair (p, q) crosses if its difference lies beyond δ in one method and beyond −δ in the other,
  by simultaneous bounds over all pairs, methods and sides.

  Returns:
    One row a pair: p, q, for each arm the difference, its low and high bounds, and crosses. The
    bounds are max-T: the 1 − alpha quantile of the largest |z| in the draws, each z mapped to its
    contrast's own t. `table.crosses.sum()` is the count.

  Raises:
    ValueError: arms that are not there, a negative margin, fewer than two personas.
  """
  if delta < 0:
    raise ValueError(f"delta is {delta}; a margin of at least 0 fits")
  two = outcomes.select(arms=arms)
  pairs = list(itertools.combinations(range(len(two.personas)), 2))
  if not pairs:
    raise ValueError("one persona has no pairs")
  gap_QP = np.zeros((len(pairs), len(two.personas)))
  for row, (i, j) in enumerate(pairs):
    gap_QP[row, i], gap_QP[row, j] = 1.0, -1.0
  contrasts = draws.contrasts(two, _both_arms(gap_QP))
  half_Q = simultaneous_half_widths(contrasts, alpha)
  low_MQ = (contrasts.point_Q - half_Q).reshape(2, -1)
  high_MQ = (contrasts.point_Q + half_Q).reshape(2, -1)
  crosses_Q = ((low_MQ[0] > delta) & (high_MQ[1] < -delta)) | (
    (high_MQ[0] < -delta) & (low_MQ[1] > delta)
  )
  table = pd.DataFrame(
    {"p": [two.personas[i] for i, _ in pairs], "q": [two.personas[j] for _, j in pairs]}
  )
  for m, name in enumerate(arms):
    table[f"difference_{name}"] = contrasts.point_Q.reshape(2, -1)[m]
    table[f"{name}_low"], table[f"{name}_high"] = low_MQ[m], high_MQ[m]
  return table.assign(crosses=crosses_Q)


def simultaneous_half_widths(contrasts: Contrasts, alpha: float = 0.05) -> _Floats:
  """Return half widths [Q] of max-T intervals that hold for all contrasts at once."""
  spread_Q = contrasts.raw_BQ.std(axis=0)
  usable_Q = spread_Q > 1e-12
  half_Q = np.full(len(spread_Q), np.nan)
  if not usable_Q.any():
    return half_Q
  z_BQ = (contrasts.raw_BQ - contrasts.point_Q)[:, usable_Q] / spread_Q[usable_Q]
  critical = float(np.quantile(np.abs(z_BQ).max(axis=1), 1 - alpha))
  tail = scipy.stats.norm.sf(critical)
  half_Q[usable_Q] = scipy.stats.t.isf(tail, contrasts.df_Q[usable_Q])
  return half_Q * contrasts.error_Q


def _both_arms(coef_QP: _Floats) -> _Floats:
  """Return coefficients [2Q, 2, P]: the contrasts in the first arm, then in the second."""
  nought_QP = np.zeros_like(coef_QP)
  first = np.stack([coef_QP, nought_QP], axis=1)
  return np.concatenate([first, first[:, ::-1]])


def _pooled(contrasts: Contrasts, two: Outcomes, draws: Draws, coef_QMP: _Floats) -> Contrasts:
  """Return D of both arms with the spread over replicates pooled within each arm."""
  mean_MP = two.mean_MP
  if ((mean_MP < 0) | (mean_MP > 1)).any():
    raise ValueError("pooled replicates want rates between 0 and 1")
  s, c = draws.replicate_BS.shape[1], draws.clusters_C.size
  if s < 2 or c < 2:
    return contrasts
  cluster_MP, replicate_MP, cell_MP = (
    v.reshape(mean_MP.shape) for v in draws.variances(two, coef_QMP)
  )
  slope_MP = (mean_MP * (1 - mean_MP)) ** 2 + 1e-4  # a rate of 0 still has a little
  alone_MP = slope_MP * np.maximum(
    ((replicate_MP - cell_MP) / slope_MP).mean(axis=1, keepdims=True), 0.0
  )
  total_Q = (cluster_MP + alone_MP).ravel()
  parts_MP = cluster_MP**2 / (c - 1) + (alone_MP + cell_MP) ** 2 / ((s - 1) * mean_MP.shape[1])
  df_Q = total_Q**2 / np.where(parts_MP > 0, parts_MP, np.nan).ravel()
  error_Q = np.sqrt(total_Q)
  draw_BQ = calibrated(contrasts.raw_BQ, contrasts.point_Q, error_Q, df_Q)
  return dataclasses.replace(contrasts, draw_BQ=draw_BQ, error_Q=error_Q, df_Q=df_Q)


def _one_sided(contrasts: Contrasts, alpha: float) -> tuple[_Floats, _Floats]:
  if not 0 < alpha < 0.5:
    raise ValueError(f"alpha is {alpha}; a level between 0 and .5 fits")
  low_Q, high_Q = np.quantile(contrasts.draw_BQ, [alpha, 1 - alpha], axis=0)
  return low_Q, high_Q


def _by_replicate(two: Outcomes) -> _Floats:
  """Return D [M, P, K] of each replicate alone."""
  there_MPK = (~np.isnan(two.y_MPKN)).sum(axis=3)
  mean_MPK = np.nansum(two.y_MPKN, axis=3) / np.where(there_MPK > 0, there_MPK, np.nan)
  return np.einsum("qp,mpk->mqk", against_others(len(two.personas)), mean_MPK)
