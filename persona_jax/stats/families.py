"""Families of tests: adjusted p values in a table that names its families, and specificity.

Confirmatory families control the family-wise error rate (Holm 1979), exploratory ones the false
discovery rate (Benjamini & Hochberg 1995).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from statsmodels.stats.multitest import multipletests

Correction = Literal["holm", "fdr_bh"]


def adjust(
  table: pd.DataFrame,
  corrections: Mapping[str, Correction] | Correction = "holm",
  *,
  p: str = "p",
  family: str = "family",
  alpha: float = 0.05,
) -> pd.DataFrame:
  """Return the table with columns correction, family_size, p_adjusted and rejected.

  Args:
    table: one row a test; the family is a column, so a reader sees what was corrected together.
    corrections: "holm" or "fdr_bh" for all families, or one for each family by name.
    p, family: names of the two columns.
    alpha: level of each family.

  A test without a p value (NaN) is not rejected, and stays in its family as if p were 1: a claim
  that could not be tested does not make the others easier.

  Raises:
    ValueError: a missing column, p values outside [0, 1], a family without a correction.
  """
  absent = [column for column in (p, family) if column not in table.columns]
  if absent:
    raise ValueError(f"the table lacks {absent}; it has {list(table.columns)}")
  p_N = table[p].to_numpy(dtype=np.float64)
  if ((p_N < 0) | (p_N > 1)).any():
    raise ValueError(f"column {p!r} holds p values outside [0, 1]")
  if table[family].isna().any():
    raise ValueError(f"column {family!r} holds missing names")
  names = list(dict.fromkeys(table[family]))
  if isinstance(corrections, str):
    corrections = dict.fromkeys(names, corrections)
  out = table.assign(correction="", family_size=0, p_adjusted=np.nan, rejected=False)
  for name in names:
    correction = corrections.get(name)
    if correction not in ("holm", "fdr_bh"):
      raise ValueError(f"family {name!r} has correction {correction!r}; 'holm' or 'fdr_bh' fits")
    member_N = (table[family] == name).to_numpy()
    q_N = np.where(np.isnan(p_N[member_N]), 1.0, p_N[member_N])
    adjusted = holm(q_N) if correction == "holm" else multipletests(q_N, method=correction)[1]
    known = ~np.isnan(p_N[member_N])
    out.loc[member_N, "correction"] = correction
    out.loc[member_N, "family_size"] = len(q_N)
    out.loc[member_N, "p_adjusted"] = np.where(known, adjusted, np.nan)
    out.loc[member_N, "rejected"] = (adjusted <= alpha) & known
  return out


def holm(p_N: ArrayLike) -> NDArray[np.float64]:
  """Return Holm's adjusted p values of one family.

  The numbers are those of statsmodels' `multipletests`, which collects garbage in each call of this
  method: .1 s, and .5 s where a model is loaded.
  """
  p_N = np.asarray(p_N, dtype=np.float64)
  order_N = np.argsort(p_N)
  stepped_N = np.maximum.accumulate(p_N[order_N] * np.arange(p_N.size, 0, -1))
  adjusted_N = np.empty_like(p_N)
  adjusted_N[order_N] = np.minimum(stepped_N, 1.0)
  return adjusted_N


def specificity(
  observed: float,
  control_K: ArrayLike,
  *,
  alternative: Literal["greater", "less", "two-sided"] = "greater",
) -> float:
  """Return the p of an observed effect among control directions: (1 + #{control ≥ observed})/(K+1).

  Its least value is 1/(K+1): .015 with 64 controls. Phipson & Smyth 2010 give the +1. "two-sided"
  compares distances from the median of all K + 1, the observed effect among them: only so is it as
  likely as a control to be the furthest.

  Raises:
    ValueError: no controls, missing values, or an unknown alternative.
  """
  control_K = np.asarray(control_K, dtype=np.float64).ravel()
  if not control_K.size or np.isnan(control_K).any() or np.isnan(observed):
    raise ValueError("specificity needs an observed value and controls, none of them missing")
  if alternative not in ("greater", "less", "two-sided"):
    raise ValueError(f"unknown alternative {alternative!r}; 'greater', 'less' or 'two-sided' fits")
  if alternative == "two-sided":
    middle = np.median(np.append(control_K, observed))
    return specificity(abs(observed - middle), np.abs(control_K - middle))
  sign = 1 if alternative == "greater" else -1
  return float((1 + np.sum(sign * control_K >= sign * observed)) / (control_K.size + 1))
