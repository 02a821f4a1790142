"""The coefficient at which a response meets a target: bracketed, solved, and bootstrapped.

A response is the mean over units (prompts, items) of what is measured at a coefficient or, where it
has several parts (the traits of a composite), the least of the parts' means. A scan over a few
coefficients brackets the first crossing; a bracketing root finder (Chandrupatla 1997, as in
`scipy.optimize.elementwise`) solves all cells together, so that each step is one pass of the model.

A failure is a value: cells that are `unreachable`, `non_monotone` or `overshoot` say so, and why.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import scipy.optimize
from numpy.typing import NDArray
from scipy.optimize import elementwise

_Floats = NDArray[np.float64]
Parts = tuple[_Floats, ...]  # one array of units a part
Status = Literal["ok", "unreachable", "non_monotone", "overshoot"]
# (numbers of cells, a coefficient each) → the parts of each
Evaluate = Callable[[Sequence[int], Sequence[float]], list[Parts]]

LEAST_R2 = 0.8  # of the isotonic fit to a scan
_FINE = 0.1  # share of the tolerance to which a root is solved
_STEPS = 16


@dataclasses.dataclass(frozen=True, eq=False)
class Solution:
  """Where a response meets its target.

  Attributes:
    coef: the coefficient; NaN unless the status is "ok" or "overshoot".
    low, high: of its bootstrap interval over units, widened to hold `coef`, which is solved no
      finer than the tolerance; NaN if there is none.
    target: what was to be met.
    achieved: the response at `coef`; where nothing meets it, the largest of the scan.
    status: "ok"; "unreachable", no coefficient up to the largest meets the target; "non_monotone",
      the response does not grow with the coefficient; "overshoot", it jumps over the target, so
      that no coefficient comes within the tolerance.
    reason: why it is not "ok".
    r2: of the isotonic fit to the scan.
    unreached: share of bootstrap draws in which the target is not met.
  """

  coef: float
  low: float
  high: float
  target: float
  achieved: float
  status: Status
  reason: str
  r2: float
  unreached: float


def response(parts: Sequence[_Floats], weight_U: Sequence[_Floats] | None = None) -> float:
  """Return the least of the parts' (weighted) means; NaN if a part has no value at all."""
  return float(np.min(_means(parts, weight_U)))


def _means(parts: Sequence[_Floats], weights: Sequence[_Floats] | None) -> list[float]:
  """Return the means of parts over the units that have a value."""
  found = []
  for p, x_U in enumerate(parts):
    w_U = np.ones(len(x_U)) if weights is None else weights[p]
    there = ~np.isnan(x_U)
    total = w_U[there].sum()
    found.append(float(w_U[there] @ x_U[there] / total) if total > 0 else float("nan"))
  return found


def isotonic_r2(y_J: _Floats) -> float:
  """Return the share of a curve's variance that a growing curve explains; NaN of a constant."""
  total = float(((y_J - y_J.mean()) ** 2).sum())
  if not total > 0:
    return float("nan")
  fitted = scipy.optimize.isotonic_regression(y_J).x
  return 1.0 - float(((y_J - fitted) ** 2).sum()) / total


def solve(
  evaluate: Evaluate,
  targets: Sequence[Parts],
  scan: Sequence[float],
  *,
  most: Sequence[float] | None = None,
  tolerance: float = 0.05,
  logarithmic: bool = False,
  draws: int = 1000,
  confidence: float = 0.95,
  seed: int = 0,
) -> list[Solution]:
  """Find for every cell the least coefficient at which its response meets its target.

  The response at coefficient 0 is 0: measure differences from the unedited model.

  Args:
    evaluate: measures cells at coefficients.
    targets: of each cell, the target's value at every unit, in parts as `evaluate` gives them.
    scan: coefficients above 0 at which all cells are measured first.
    most: of each cell, the largest coefficient allowed (where the model is still coherent); default
      the largest of the scan.
    tolerance: share of the target by which the response may miss it.
    logarithmic: solve log response against log coefficient, for responses that grow like a power.
    draws: bootstrap draws of the units; the curve measured so far is interpolated in each.
    confidence: of the interval.
    seed: of the draws.

  Raises:
    ValueError: no coefficient to scan, one that is not above 0, or limits that fit no cells.
  """
  scan = sorted({float(f"{c:.12g}") for c in scan})
  limits = [scan[-1] if scan else 0.0] * len(targets)
  if most is not None:
    limits = [float(f"{c:.12g}") for c in most]
  if not scan or scan[0] <= 0 or len(limits) != len(targets):
    raise ValueError(
      f"scan={scan} and {len(limits)} limits for {len(targets)} cells: give coefficients above 0, "
      "and a limit each."
    )
  curves = [_Curve(target) for target in targets]
  for coef in [c for c in scan if c < max(limits)] + sorted(set(limits)):
    mine = [n for n, limit in enumerate(limits) if coef <= limit and coef not in curves[n].coefs]
    for n, parts in zip(mine, evaluate(mine, [coef] * len(mine)) if mine else [], strict=True):
      curves[n].add(coef, parts)
  found = [curve.judge() for curve in curves]
  open_cells = [n for n, (status, _) in enumerate(found) if status == "ok"]
  if open_cells:
    _refine(evaluate, curves, open_cells, tolerance, logarithmic)
  return [
    curve.solution(status, reason, tolerance, draws, confidence, seed)
    for curve, (status, reason) in zip(curves, found, strict=True)
  ]


class _Curve:
  """What is known of one cell's response."""

  def __init__(self, target: Parts):
    self.target_parts = target
    self.target = response(target)
    self.coefs: list[float] = [0.0]
    self.parts: list[Parts] = [tuple(np.zeros(len(x)) for x in target)]

  def add(self, coef: float, parts: Parts) -> None:
    """Note the response at a coefficient; of one that was measured before nothing."""
    if coef in self.coefs:
      return
    at = int(np.searchsorted(self.coefs, coef))
    self.coefs.insert(at, coef)
    self.parts.insert(at, parts)

  @property
  def values_J(self) -> _Floats:
    """Responses at the coefficients."""
    return np.asarray([response(parts) for parts in self.parts])

  def judge(self) -> tuple[Status, str]:
    """Return whether the scan brackets the target, and if not, why.

    Where the response cannot be measured any more, the curve ends.
    """
    known_J = ~np.isnan(self.values_J)
    end = len(known_J) if known_J.all() else int(np.argmin(known_J))
    self.coefs, self.parts = self.coefs[:end], self.parts[:end]
    y_J = self.values_J
    self.r2 = isotonic_r2(y_J)
    if np.isnan(self.target) or end == 1:
      return "unreachable", "the target or the response is not measurable"
    if self.target <= 0:
      return "unreachable", f"the target {self.target:.3g} is not above 0, the unedited model's"
    if not np.nan_to_num(self.r2, nan=0.0) >= LEAST_R2:
      return "non_monotone", f"isotonic R² {self.r2:.2f} < {LEAST_R2}"
    if y_J.max() < self.target:
      return "unreachable", (
        f"the target {self.target:.3g} is above {y_J.max():.3g}, the largest response up to "
        f"coefficient {self.coefs[-1]:.3g}"
      )
    return "ok", ""

  def bracket(self) -> tuple[float, float]:
    """Return the coefficients round the first crossing."""
    at = int(np.argmax(self.values_J >= self.target))
    return self.coefs[at - 1], self.coefs[at]

  def nearest(self) -> tuple[float, float]:
    """Return the coefficient in the bracket whose response is nearest the target, and that."""
    low, high = self.bracket()
    curve = zip(self.coefs, self.values_J, strict=True)
    mine = [(c, v) for c, v in curve if low <= c <= high and not np.isnan(v)]
    coef, value = min(mine, key=lambda pair: abs(pair[1] - self.target))
    return coef, float(value)

  def solution(
    self,
    status: Status,
    reason: str,
    tolerance: float,
    draws: int,
    confidence: float,
    seed: int,
  ) -> Solution:
    """Make the solution of what is known."""
    if status != "ok":
      most, nan = float(np.max(self.values_J)), float("nan")
      return Solution(nan, nan, nan, self.target, most, status, reason, self.r2, nan)
    coef, achieved = self.nearest()
    if abs(achieved - self.target) > tolerance * self.target:
      below, coef = self.bracket()
      achieved = response(self.parts[self.coefs.index(coef)])
      status = "overshoot"
      reason = f"the response jumps between coefficients {below:.4g} and {coef:.4g}"
    drawn_B = self._drawn(draws, seed)
    there_B = drawn_B[~np.isnan(drawn_B)]
    unreached = 1.0 - len(there_B) / draws
    low, high = float("nan"), float("nan")
    if unreached <= (1 - confidence) / 2:
      tails = [(1 - confidence) / 2, (1 + confidence) / 2]
      # An unmet target is a large coefficient that was not measured: the upper tail is censored.
      padded_B = np.append(there_B, np.full(draws - len(there_B), np.inf))
      low, high = map(float, np.quantile(padded_B, tails, method="inverted_cdf"))
      low, high = min(low, coef), max(high, coef)
    elif not reason:
      reason = f"no interval: {unreached:.0%} of bootstrap draws do not meet the target"
    return Solution(coef, low, high, self.target, achieved, status, reason, self.r2, unreached)

  def _drawn(self, draws: int, seed: int) -> _Floats:
    """Return the first crossing in each draw of the units, by interpolation; NaN of none, [B].

    It is 0 where the draw's target is not above 0: a small coefficient, not one out of reach.
    """
    rng = np.random.default_rng(seed)
    target_B, curve_BJ = np.full(draws, np.inf), np.full((draws, len(self.coefs)), np.inf)
    for p, t_U in enumerate(self.target_parts):
      x_JU = np.stack([parts[p] for parts in self.parts])
      n = len(t_U)
      w_BU = rng.multinomial(n, np.full(n, 1 / n), draws).astype(np.float64)
      target_B = np.minimum(target_B, _weighted(w_BU, t_U[None])[:, 0])
      curve_BJ = np.minimum(curve_BJ, _weighted(w_BU, x_JU))
    over_BJ = curve_BJ >= target_B[:, None]
    at_B = np.argmax(over_BJ, axis=1)
    found_B = np.full(draws, np.nan)
    met_B = over_BJ.any(axis=1) & (at_B > 0)
    b, j = np.flatnonzero(met_B), at_B[met_B]
    coef_J = np.asarray(self.coefs)
    y0, y1 = curve_BJ[b, j - 1], curve_BJ[b, j]
    share = (target_B[b] - y0) / (y1 - y0)
    found_B[b] = coef_J[j - 1] + share * (coef_J[j] - coef_J[j - 1])
    found_B[over_BJ[:, 0]] = 0.0
    return found_B


def _weighted(w_BU: _Floats, x_JU: _Floats) -> _Floats:
  """Return weighted means over the units that have a value, [B, J]."""
  there_JU = ~np.isnan(x_JU)
  total_BJ = w_BU @ there_JU.T
  with np.errstate(invalid="ignore", divide="ignore"):
    found: _Floats = (w_BU @ np.where(there_JU, x_JU, 0.0).T) / total_BJ
  return found


def _refine(
  evaluate: Evaluate,
  curves: Sequence[_Curve],
  cells: Sequence[int],
  tolerance: float,
  logarithmic: bool,
) -> None:
  """Solve the bracketed cells together; everything measured goes into their curves."""

  def miss(x: _Floats, cell: NDArray[np.int_]) -> _Floats:
    # Twelve digits: the ends of a bracket are known although they went through a logarithm.
    coefs = [float(f"{c:.12g}") for c in (np.exp(x) if logarithmic else x)]
    todo = [k for k, n in enumerate(cell) if coefs[k] not in curves[n].coefs]
    measured = evaluate([int(cell[k]) for k in todo], [coefs[k] for k in todo]) if todo else []
    for k, parts in zip(todo, measured, strict=True):
      curves[cell[k]].add(coefs[k], parts)
    out = np.empty(len(cell))
    for k, n in enumerate(cell):
      curve = curves[n]
      value = response(curve.parts[curve.coefs.index(coefs[k])])
      ratio = value / curve.target
      out[k] = np.log(max(ratio, 1e-12)) if logarithmic else ratio - 1.0
    return out

  low, high = np.asarray([curves[n].bracket() for n in cells]).T
  if logarithmic:
    # A power law has no logarithm at 0: begin where it is small.
    low = np.where(low > 0, low, high * 1e-3)
    low, high = np.log(low), np.log(high)
  elementwise.find_root(
    miss,
    (low, high),
    args=(np.asarray(cells),),
    tolerances={"fatol": tolerance * _FINE, "xrtol": 1e-6, "xatol": 0.0, "frtol": 0.0},
    maxiter=_STEPS,
  )
