"""A logistic mixed model beside the bootstrap: method × persona with prompts and replicates random.

logit P(y = 1) = method × persona + (1 + method | prompt cluster) + (1 | replicate), the two prompt
terms uncorrelated. Normal priors keep cells without a success finite (Gelman et al. 2008, Ann.
Appl. Stat. 2: 1360–1383). Effects are integrated out by Laplace's approximation at every value of
the three standard deviations, whose posterior is then maximised (Breslow & Clayton 1993, JASA 88:
9–25). The joint mode of effects and variances, which statsmodels' `fit_map` seeks, is no use here:
on a simulated study of 200 prompts it ran to a replicate sd of 185. The model is secondary: it
conditions on one shape of noise, and where its signs differ from the bootstrap's, the bootstrap
stands and the table says so.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import scipy.linalg
import scipy.optimize
import scipy.sparse
import scipy.special
from numpy.typing import NDArray

from persona_jax.stats.outcomes import Outcomes

_Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, eq=False)
class MixedModel:
  """A fitted method × persona model.

  Attributes:
    fixed: one row a fixed effect: term, mean and sd of the posterior, in log-odds.
    interaction: one row a persona: its method × persona term (they sum to 0), sd, the estimate it
      is compared with, and whether the signs agree (NA without one, or if either is 0 or NaN).
    interaction_variance: variance of the terms over personas, in squared log-odds.
    prompt_sd, prompt_method_sd, replicate_sd: standard deviations of the random effects.
    agrees: all comparable signs agree; None if nothing was compared.
    n: number of values used.
    reason: why it is NaN, or what was left out; empty if nothing is amiss.
  """

  fixed: pd.DataFrame
  interaction: pd.DataFrame
  interaction_variance: float
  prompt_sd: float
  prompt_method_sd: float
  replicate_sd: float
  agrees: bool | None
  n: int
  reason: str = ""


def mixed_model(
  outcomes: Outcomes,
  *,
  arms: tuple[str, str] = ("SP", "AS"),
  against: Mapping[Any, float] | None = None,
  prior_sd: float = 2.5,
) -> MixedModel:
  """Return the fit of a binary outcome on method × persona.

  Args:
    outcomes: values 0 and 1; missing cells are left out and counted.
    arms: the two methods; the method term is the second less the first.
    against: a bootstrap estimate for each persona whose sign its interaction should have, such as
      D_AS − D_SP.
    prior_sd: of the Normal priors on fixed effects, in log-odds.

  Raises:
    ValueError: outcomes that are not binary, arms that are not there, fewer than two personas.
  """
  two = outcomes.select(arms=arms)
  n_personas = len(two.personas)
  if n_personas < 2:
    raise ValueError(f"{n_personas} persona; an interaction wants at least 2")
  m, p, k, c = np.nonzero(~np.isnan(two.y_MPKN))
  y = two.y_MPKN[m, p, k, c]
  if not np.isin(y, (0.0, 1.0)).all():
    raise ValueError("the outcome has values besides 0 and 1; the logistic model wants one sample")
  lost = two.y_MPKN.size - y.size
  note = f"{lost} of {two.y_MPKN.size} values are missing and left out" if lost else ""
  if not y.size or np.ptp(y) == 0:
    return _nothing(two, f"{note}; " * bool(note) + "the outcome is constant")
  # Sum coding: method ±½, personas against their mean, so interactions sum to 0.
  method = m - 0.5
  code_PQ = np.concatenate([np.eye(n_personas - 1), -np.ones((1, n_personas - 1))])
  persona = code_PQ[p]
  fixed = np.column_stack([np.ones(y.size), method, persona, method[:, None] * persona])
  labels, cluster_N = np.unique(two.cluster_N, return_inverse=True)
  cluster, n_clusters = cluster_N[c], labels.size
  n_replicates = len(two.replicates)
  row = np.arange(y.size)
  shapes = [(cluster, np.ones(y.size), n_clusters), (cluster, method, n_clusters)]
  if n_replicates > 1:
    shapes.append((k, np.ones(y.size), n_replicates))
  random = scipy.sparse.hstack(
    [scipy.sparse.csr_matrix((v, (row, col)), shape=(y.size, n)) for col, v, n in shapes], "csr"
  )
  design = scipy.sparse.hstack([scipy.sparse.csr_matrix(fixed), random], "csr")
  n_fixed = fixed.shape[1]
  part = np.repeat(np.arange(len(shapes)), [n for _, _, n in shapes])
  mean, covariance, sd = _laplace(y, design, n_fixed, part, prior_sd)
  names = ["intercept", "method"]
  names += [f"persona {x}" for x in two.personas[:-1]]
  names += [f"method × persona {x}" for x in two.personas[:-1]]
  table = pd.DataFrame({"term": names, "mean": mean, "sd": np.sqrt(np.diag(covariance))})
  first = 2 + n_personas - 1
  inner = covariance[first:, first:]
  term_P = code_PQ @ mean[first:]
  sd_P = np.sqrt(np.einsum("pq,qr,pr->p", code_PQ, inner, code_PQ))
  interaction, agrees = _compared(two, term_P, sd_P, against)
  return MixedModel(
    table,
    interaction,
    float(term_P.var()),
    float(sd[0]),
    float(sd[1]),
    float(sd[2]) if n_replicates > 1 else math.nan,
    agrees,
    int(y.size),
    note,
  )


def _laplace(
  y: _Floats, design: Any, n_fixed: int, part: np.ndarray, prior_sd: float
) -> tuple[_Floats, _Floats, _Floats]:
  """Return mean and covariance of the fixed effects and the sd of each random part."""
  n_parts = int(part.max()) + 1
  start = np.zeros(design.shape[1])
  transposed = design.T.tocsr()

  def precision(log_sd: _Floats) -> _Floats:
    return np.concatenate([np.full(n_fixed, prior_sd**-2.0), np.exp(-2 * log_sd)[part]])

  def mode(log_sd: _Floats) -> tuple[_Floats, Any, float]:
    prior = precision(log_sd)

    def objective(beta: _Floats, eta: _Floats) -> float:
      return float(np.logaddexp(0, eta).sum() - y @ eta + 0.5 * prior @ beta**2)

    beta = start.copy()
    eta = design @ beta
    value = objective(beta, eta)
    for _ in range(50):
      mu = scipy.special.expit(eta)
      hessian = (transposed @ design.multiply((mu * (1 - mu))[:, None]).tocsr()).toarray()
      hessian[np.diag_indices_from(hessian)] += prior
      factor = scipy.linalg.cho_factor(hessian, lower=True)
      step = scipy.linalg.cho_solve(factor, transposed @ (y - mu) - prior * beta)
      length = 1.0
      while True:  # Newton's step, halved until the objective falls
        trial = beta + length * step
        eta = design @ trial
        fell = objective(trial, eta)
        if fell <= value + 1e-9 or length < 1e-4:
          break
        length /= 2
      beta, gain, value = trial, value - fell, fell
      if gain < 1e-6:
        break
    start[:] = beta
    return beta, factor, value

  def negative_log_posterior(log_sd: _Floats) -> float:
    _, factor, value = mode(log_sd)
    log_det = 2 * np.log(np.diag(factor[0])).sum() - np.log(precision(log_sd)).sum()
    return float(value + 0.5 * log_det + 0.5 * (log_sd**2).sum())  # Normal(0, 1) on log sd

  # The default simplex is so small here that the search would end where it began.
  simplex = np.full((n_parts + 1, n_parts), -1.0)
  simplex[1:] += np.eye(n_parts)
  found = scipy.optimize.minimize(
    negative_log_posterior,
    simplex[0],
    method="Nelder-Mead",
    options={"xatol": 0.02, "fatol": 0.01, "initial_simplex": simplex},
  )
  beta, factor, _ = mode(found.x)
  covariance = scipy.linalg.cho_solve(factor, np.eye(len(beta))[:, :n_fixed])[:n_fixed]
  return beta[:n_fixed], covariance, np.exp(found.x)


def _compared(
  two: Outcomes, term_P: np.ndarray, sd_P: np.ndarray, against: Mapping[Any, float] | None
) -> tuple[pd.DataFrame, bool | None]:
  unknown = [name for name in against or {} if name not in two.personas]
  if unknown:
    raise ValueError(f"no personas {unknown}; there are {list(two.personas)}")
  other_P = np.array([float((against or {}).get(name, math.nan)) for name in two.personas])
  product_P = np.sign(term_P) * np.sign(other_P)
  comparable_P = ~np.isnan(product_P) & (product_P != 0)
  same = pd.array(product_P > 0, dtype="boolean")
  same[~comparable_P] = pd.NA
  table = pd.DataFrame(
    {"persona": two.personas, "term": term_P, "sd": sd_P, "against": other_P, "agrees": same}
  )
  agrees = bool((product_P[comparable_P] > 0).all()) if comparable_P.any() else None
  return table, agrees


def _nothing(two: Outcomes, reason: str) -> MixedModel:
  nan = math.nan
  nan_P = np.full(len(two.personas), nan)
  fixed = pd.DataFrame({"term": [], "mean": [], "sd": []})
  interaction, _ = _compared(two, nan_P, nan_P, None)
  n = int((~np.isnan(two.y_MPKN)).sum())
  return MixedModel(fixed, interaction, nan, nan, nan, nan, None, n, reason)
