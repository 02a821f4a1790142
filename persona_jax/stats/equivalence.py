"""Claims of no effect by equivalence tests, and odd and even parts of dose curves.

That a test does not reject is no evidence for no effect. Two one-sided tests show that an effect
lies within ±δ (Schuirmann 1987, J. Pharmacokinet. Biopharm. 15: 657–680). A direction that means
something moves the outcome with its sign (odd part); mere damage does not know the sign (even).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats
from numpy.typing import ArrayLike

from persona_jax.stats.draws import Draws, interval, p_above, p_below
from persona_jax.stats.intervals import Estimate
from persona_jax.stats.outcomes import Outcomes


@dataclasses.dataclass(frozen=True)
class Equivalence:
  """Two one-sided tests against ±δ.

  Attributes:
    estimate: the value with its 1 − 2·alpha interval, whose position within ±δ is the test.
    delta: the margin.
    p: larger of the two one-sided p; NaN if the draws are not at hand.
    equivalent: the interval lies within (−δ, δ). False also means "not shown".
  """

  estimate: Estimate
  delta: float
  p: float
  equivalent: bool


def equivalence(
  draw_B: ArrayLike, point: float, delta: float, *, alpha: float = 0.05, n: int = 0
) -> Equivalence:
  """Return the equivalence test of a statistic by its bootstrap draws.

  Args:
    draw_B: draws of the statistic (calibrated, if it is a contrast).
    point: its value.
    delta: margin, above 0.
    alpha: level of each one-sided test, below .5.
    n: number of values it rests on, for the record.

  Raises:
    ValueError: a margin or a level that does not fit.
  """
  _check_margin(delta)
  if not 0 < alpha < 0.5:
    raise ValueError(f"alpha is {alpha}; a level between 0 and .5 fits")
  estimate = interval(draw_B, point, n=n, confidence=1 - 2 * alpha)
  p = max(float(p_above(draw_B, -delta)), float(p_below(draw_B, delta)))
  if math.isnan(estimate.low):
    p = math.nan
  return Equivalence(estimate, delta, p, _within(estimate, delta))


def equivalence_of_estimate(estimate: Estimate, delta: float) -> Equivalence:
  """Return the equivalence test that an interval gives: a 90 % interval tests at .05.

  Raises:
    ValueError: a margin that is not above 0.
  """
  _check_margin(delta)
  return Equivalence(estimate, delta, math.nan, _within(estimate, delta))


@dataclasses.dataclass(frozen=True, eq=False)
class DoseParts:
  """Odd and even parts of a dose curve.

  Attributes:
    table: one row a dose a > 0: odd = (y(a) − y(−a))/2 and even = (y(a) + y(−a))/2 − y(0), each
      with *_low and *_high.
    p_odd, p_even: Page's test that the part changes steadily with the dose, in the direction of its
      value at the largest dose, doubled for having looked; NaN with fewer than 3 doses.
    reason: why something is NaN; empty if nothing is amiss.
  """

  table: pd.DataFrame
  p_odd: float
  p_even: float
  reason: str = ""


def dose_parts(
  outcomes: Outcomes,
  draws: Draws,
  coef: Mapping[Any, float],
  persona: Any = None,
  *,
  confidence: float = 0.95,
) -> DoseParts:
  """Return the odd and even parts of one persona's dose curve.

  Args:
    outcomes: the arms are doses.
    draws: the study's draws.
    coef: dose of each arm that belongs to the curve; symmetric, with 0.
    persona: which one; None if there is only one.
    confidence: coverage of the intervals.

  Page's trend test (Page 1963) takes clusters of prompts as blocks, so it speaks of these wordings.

  Raises:
    ValueError: doses that are not symmetric or lack 0, or an unknown arm or persona.
  """
  if persona is None and len(outcomes.personas) > 1:
    raise ValueError(f"name one persona of {list(outcomes.personas)}")
  curve = outcomes.select(arms=list(coef), personas=None if persona is None else [persona])
  arm_of = {float(a): i for i, a in enumerate(coef.values())}
  if len(arm_of) != len(coef) or 0.0 not in arm_of or any(-a not in arm_of for a in arm_of):
    raise ValueError(f"doses {sorted(coef.values())} are not symmetric about one dose 0")
  doses = sorted(a for a in arm_of if a > 0)
  if not doses:
    raise ValueError("dose 0 alone is no curve")
  odd_QM = np.zeros((len(doses), len(coef)))
  even_QM = np.zeros_like(odd_QM)
  for q, a in enumerate(doses):
    odd_QM[q, arm_of[a]], odd_QM[q, arm_of[-a]] = 0.5, -0.5
    even_QM[q, arm_of[a]] = even_QM[q, arm_of[-a]] = 0.5
    even_QM[q, arm_of[0.0]] -= 1.0
  contrasts = draws.contrasts(curve, np.concatenate([odd_QM, even_QM])[:, :, None])
  estimates = [contrasts.estimate(q, confidence) for q in range(2 * len(doses))]
  rows = [
    {"dose": a, "odd": o.value, "odd_low": o.low, "odd_high": o.high}
    | {"even": e.value, "even_low": e.low, "even_high": e.high}
    for a, o, e in zip(doses, estimates[: len(doses)], estimates[len(doses) :], strict=True)
  ]
  there_MKN = ~np.isnan(curve.y_MPKN[:, 0])
  labels, index_N = np.unique(curve.cluster_N, return_inverse=True)
  member_NC = np.eye(len(labels))[index_N]
  total_MC = (np.where(there_MKN, curve.y_MPKN[:, 0], 0.0).sum(axis=1)) @ member_NC
  count_MC = there_MKN.sum(axis=1) @ member_NC
  mean_MC = total_MC / np.where(count_MC > 0, count_MC, np.nan)
  mean_MC = mean_MC[:, ~np.isnan(mean_MC).any(axis=0)]
  reason = "; ".join(dict.fromkeys(e.reason for e in estimates if e.reason))
  if len(doses) < 3 or mean_MC.shape[1] < 2:
    why = "Page's trend needs 3 doses and 2 complete clusters"
    reason = "; ".join(filter(None, (reason, why)))
    return DoseParts(pd.DataFrame(rows), math.nan, math.nan, reason)
  p_odd, p_even = (_page(coef_QM @ mean_MC) for coef_QM in (odd_QM, even_QM))
  return DoseParts(pd.DataFrame(rows), p_odd, p_even, reason)


def _page(part_QC: np.ndarray) -> float:
  rising = part_QC[-1].mean() >= 0
  data_CQ = (part_QC if rising else -part_QC).T
  p = scipy.stats.page_trend_test(data_CQ, method="asymptotic").pvalue
  return float(min(1.0, 2 * p))


def _within(estimate: Estimate, delta: float) -> bool:
  return bool(-delta < estimate.low and estimate.high < delta)


def _check_margin(delta: float) -> None:
  if not delta > 0:
    raise ValueError(f"delta is {delta}; a margin above 0 fits")
