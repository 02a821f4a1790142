"""What goes together with an outcome, at equal length: a clustered logit, and matched pairs.

Longer traces hold more of every cue, and length itself goes with the outcome. So length is a
covariate of the logit, and besides, rows of two methods are compared in pairs of like length. Both
are association only: traces are not assigned, they are what the model wrote.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
import scipy.optimize
import scipy.stats
import statsmodels.api as sm
from numpy.typing import NDArray

from persona_jax.stats import intervals
from persona_jax.stats.intervals import Estimate

CALIPER = 0.2  # of the standard deviation of log length (Austin 2011, Pharm. Stat. 10: 150–161)
_Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, eq=False)
class Association:
  """A fitted logit.

  Attributes:
    terms: a row a term: term, coef (log-odds), low, high (95 %), p; NaN where nothing was fitted.
    n: rows used.
    num_clusters: clusters they lie in.
    reason: what was left out and why, or why nothing was fitted; empty if nothing is amiss.
  """

  terms: pd.DataFrame
  n: int
  num_clusters: int
  reason: str = ""


def clustered_logit(
  table: pd.DataFrame,
  outcome: str,
  covariates: Sequence[str],
  *,
  factors: tuple[str, str] = ("method", "persona"),
  cluster: str = "prompt_id",
) -> Association:
  """Fit outcome ~ covariates + first factor × second, with cluster-robust covariance.

  The covariance is that of Liang & Zeger (1986, Biometrika 73: 13–22) with the small-sample factor
  G/(G−1)·(n−1)/(n−k); intervals are of the t distribution with G−1 degrees of freedom, G clusters.
  Where the outcome can be told from the terms without error the likelihood has no maximum
  (separation, found by linear programming: Konis 2007). Then factors are left out until it has: the
  interaction, then both; the reason says so.

  Args:
    table: a row an observation; rows with a missing outcome or covariate are left out and counted.
    outcome: column of booleans or of 0 and 1.
    covariates: columns of numbers; constant ones are left out, with a reason.
    factors: two columns of labels; combinations that do not occur have no term.
    cluster: column of labels.

  Raises:
    ValueError: a column is lacking, or an outcome that is not binary.
  """
  absent = [c for c in (outcome, *covariates, *factors, cluster) if c not in table.columns]
  if absent:
    raise ValueError(f"the table lacks {absent}; it has {list(table.columns)}")
  numbers = table[[outcome, *covariates]].astype("Float64").astype("float64")
  used_N = numbers.notna().all(axis=1).to_numpy()
  notes = [f"{(~used_N).sum()} of {len(table)} rows are missing and left out"] * bool(
    (~used_N).any()
  )
  y_N = numbers.loc[used_N, outcome].to_numpy()
  if not np.isin(y_N, (0, 1)).all():
    raise ValueError(f"column {outcome!r} holds values other than 0 and 1")
  rows, labels = numbers[used_N], table.loc[used_N, [*factors, cluster]]
  num_clusters = labels[cluster].nunique()
  constant = [c for c in covariates if rows[c].nunique() < 2]
  if constant and len(rows):
    notes.append(f"constant and left out: {', '.join(constant)}")
  varying = [c for c in covariates if c not in constant]

  def nothing(why: str) -> Association:
    terms = pd.DataFrame([_blank(name) for name in ("intercept", *covariates)])
    return Association(terms, len(y_N), num_clusters, "; ".join([*notes, why]))

  if len(set(y_N)) < 2:
    return nothing("no rows" if not len(y_N) else "the outcome is the same in all rows")
  for level in ("interaction", "additive", "none"):
    design = _design(rows[varying], labels, factors, level)
    if num_clusters <= design.shape[1]:
      why = f"{num_clusters} clusters for {design.shape[1]} terms"
    elif apart := _separating(design.to_numpy(), y_N):
      why = f"separated by {', '.join(design.columns[i] for i in apart)}"
    else:
      fitted = _fitted(design, y_N, pd.factorize(labels[cluster])[0], num_clusters)
      terms = pd.concat([fitted, pd.DataFrame([_blank(c) for c in constant])], ignore_index=True)
      return Association(terms, len(y_N), num_clusters, "; ".join(notes))
    left_out = {
      "interaction": f"{factors[0]} × {factors[1]}",
      "additive": f"{factors[0]} and {factors[1]}",
    }
    if level in left_out:
      notes.append(f"with {left_out[level]} {why}, so left out")
  return nothing(f"no finite estimate: {why}")


def _blank(name: str) -> dict[str, object]:
  return {"term": name, "coef": math.nan, "low": math.nan, "high": math.nan, "p": math.nan}


def _design(
  covariates: pd.DataFrame, labels: pd.DataFrame, factors: tuple[str, str], level: str
) -> pd.DataFrame:
  """Return the design matrix, without columns that others already span."""
  parts = [pd.Series(1.0, covariates.index, name="intercept"), covariates]
  if level != "none":
    first, second = (pd.get_dummies(labels[f].astype(str), dtype=float) for f in factors)
    # The base of either is its first level in sorted order.
    parts += [first.iloc[:, 1:].add_prefix(f"{factors[0]}=")]
    parts += [second.iloc[:, 1:].add_prefix(f"{factors[1]}=")]
    if level == "interaction":
      parts += [
        (first[a] * second[b]).rename(f"{factors[0]}={a} × {factors[1]}={b}")
        for a in first.columns[1:]
        for b in second.columns[1:]
      ]
  whole = pd.concat(parts, axis=1)
  kept: list[str] = []
  for name in whole.columns:
    if np.linalg.matrix_rank(whole[[*kept, name]].to_numpy()) == len(kept) + 1:
      kept.append(name)
  return whole[kept]


def _separating(design_NK: _Floats, y_N: _Floats) -> list[int]:
  """Return the terms of a direction that tells the outcomes apart, or none.

  It maximises Σ s·x·b under s·x·b >= 0 and |b| <= 1, s = ±1 the outcome; above 0 is separation,
  complete or quasi-complete.
  """
  scale_K = np.abs(design_NK).max(axis=0)
  signed_NK = (2 * y_N - 1)[:, None] * design_NK / scale_K
  found = scipy.optimize.linprog(
    -signed_NK.sum(axis=0), A_ub=-signed_NK, b_ub=np.zeros(len(y_N)), bounds=(-1, 1)
  )
  if not found.success or -found.fun < 1e-7:
    return []
  return np.flatnonzero(np.abs(found.x) > 1e-7).tolist()


def _fitted(
  design: pd.DataFrame, y_N: _Floats, cluster_N: NDArray[np.intp], num_clusters: int
) -> pd.DataFrame:
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what could go wrong was tried before
    result = sm.GLM(y_N, design.to_numpy(), family=sm.families.Binomial()).fit(
      cov_type="cluster", cov_kwds={"groups": cluster_N}
    )
  half = scipy.stats.t.ppf(0.975, num_clusters - 1) * result.bse
  p = 2 * scipy.stats.t.sf(np.abs(result.params / result.bse), num_clusters - 1)
  return pd.DataFrame(
    {
      "term": design.columns,
      "coef": result.params,
      "low": result.params - half,
      "high": result.params + half,
      "p": p,
    }
  )


def length_matched(
  table: pd.DataFrame,
  methods: tuple[str, str],
  *,
  method: str = "method",
  length: str = "n_think_tokens",
  within: Sequence[str] = ("prompt_id",),
  caliper: float = CALIPER,
) -> pd.DataFrame:
  """Return pairs of rows of two methods with like lengths.

  Within each group of `within`, pairs are the assignment with the least sum of distances in log
  length; each row is in one pair at most, and pairs further apart than the caliper are none.

  Args:
    table: with a unique index; rows without a length, or of length 0, are in no pair.
    methods: two values of the column `method`.
    method, length: columns.
    within: columns whose values a pair shares.
    caliper: in standard deviations of log length over the rows of both methods.

  Returns:
    A row a pair: a, b (index labels of the rows), the columns of `within`, distance (absolute
    difference in log length).

  Raises:
    ValueError: a column is lacking, an index label twice, or a caliper below 0.
  """
  absent = [c for c in (method, length, *within) if c not in table.columns]
  if absent:
    raise ValueError(f"the table lacks {absent}; it has {list(table.columns)}")
  if not table.index.is_unique or caliper < 0:
    raise ValueError(f"caliper={caliper} and a unique index are needed; at least 0 fits")
  rows = table[table[method].isin(methods) & (table[length].fillna(0) > 0)]
  log_length = np.log(rows[length].astype(float))
  widest = caliper * float(log_length.std(ddof=0)) if len(rows) else 0.0
  pairs = []
  for key, group in rows.groupby(list(within), sort=True):
    sides = [group.index[(group[method] == name).to_numpy()] for name in methods]
    distance_AB = np.abs(np.subtract.outer(*(log_length[side].to_numpy() for side in sides)))
    near_AB = distance_AB <= widest + 1e-12
    # Further pairs cost more than all near ones together, so as many near ones as can be are made.
    cost_AB = np.where(near_AB, distance_AB, 1 + distance_AB.size * (widest + 1))
    for i, j in zip(*scipy.optimize.linear_sum_assignment(cost_AB), strict=True):
      if near_AB[i, j]:
        shared = dict(zip(within, key, strict=True))
        pairs.append(
          {"a": sides[0][i], "b": sides[1][j], **shared, "distance": float(distance_AB[i, j])}
        )
  return pd.DataFrame(pairs, columns=["a", "b", *within, "distance"])


def matched_difference(
  table: pd.DataFrame,
  pairs: pd.DataFrame,
  value: str,
  *,
  cluster: str = "prompt_id",
  draws: int = 4000,
  seed: int = 0,
) -> Estimate:
  """Return the mean difference a − b of a column over pairs, with a bootstrap over clusters.

  Pairs with a missing value are left out and counted in the reason.

  Args:
    table: that `length_matched` was given.
    pairs: what it returned.
    value: column of numbers or booleans.
    cluster: column of `pairs`.
    draws, seed: of the bootstrap.

  Raises:
    ValueError: a column is lacking.
  """
  for name, frame in ((value, table), (cluster, pairs)):
    if name not in frame.columns:
      raise ValueError(f"there is no column {name!r}; there are {list(frame.columns)}")
  if pairs.empty:
    return Estimate(math.nan, math.nan, math.nan, 0, "no pair of like length")
  a_N, b_N = (
    table.loc[pairs[side], value].astype("Float64").astype("float64").to_numpy()
    for side in ("a", "b")
  )
  return intervals.difference(
    a_N, b_N, pairs[cluster].to_numpy(), missing="drop", draws=draws, seed=seed
  )
