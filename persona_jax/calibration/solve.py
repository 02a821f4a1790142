"""The coefficient at which a response meets a target: bracketed, solved, and bootstrapped.

A response is the mean over units (prompts, items) of what is measured at a coefficient or, where it
has several parts (the traits of a composite), the least of the parts' means. A scan over a few
coefficients brackets the first crossing; a bracketing root finder (Chandrupatla 1997, as in
`scipy.optimize.elementwise`) solves all cells together, so that each step is one pass of the model.

Target and response are compared over the same units: those that have a value in the target and at
every coefficient of the curve, which ends where fewer than half would be left.

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
Parts = tuple[_Floats, ...]  # one array of units a part, NaN where a unit has no value
Units = tuple[NDArray[np.bool_], ...]  # of each part, the units that are compared
Status = Literal["ok", "unreachable", "non_monotone", "overshoot"]
# (numbers of cells, a coefficient each) → the parts of each
Evaluate = Callable[[Sequence[int], Sequence[float]], list[Parts]]

LEAST_R2 = 0.8  # of the isotonic fit to a scan
LEAST_UNITS = 0.5  # share of a part's units that must have a value
_FINE = 0.1  # share of the tolerance to which a root is solved
_STEPS = 16


@dataclasses.dataclass(frozen=True, eq=False)
class Solution:
  """Where a response meets its target.

  Attributes:
    coef: the coefficient; NaN unless the status is "ok" or "overshoot".
    low, high: of its bootstrap interval over units, widened to hold `coef`, which is solved no
      finer than the tolerance; NaN if there is none.
    target: what was to be met, over `units`; NaN if they are fewer than half of a part's.
    achieved: the response at `coef` over `units`; where nothing meets it, the largest of the scan.
    status: "ok"; "unreachable", no coefficient up to the largest meets the target; "non_monotone",
      the response does not grow with the coefficient; "overshoot", it jumps over the target, so
      that no coefficient comes within the tolerance.
    reason: why it is not "ok".
    r2: of the isotonic fit to the scan.
    unreached: share of bootstrap draws in which the target is not met.
    units: which units all of this rests on.
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
  units: Units


def known(*measured: Parts) -> Units:
  """Return the units that have a value in all of what was measured, bool [U] a part."""
  return tuple(~np.isnan(np.stack(same)).any(axis=0) for same in zip(*measured, strict=True))


def enough(units: Units) -> bool:
  """Return whether at least half of each part's units are there."""
  return all(u_U.any() and u_U.mean() >= LEAST_UNITS for u_U in units)


def response(parts: Parts, units: Units) -> float:
  """Return the least of the parts' means over certain units; NaN if a part has none of them."""
  means = [x[u].mean() if u.any() else np.nan for x, u in zip(parts, units, strict=True)]
  return float(np.min(means))


def _count(units: Units) -> str:
  """Say how many units the part has that has the smallest share of its own."""
  least_U = min(units, key=lambda u_U: u_U.mean() if len(u_U) else 0.0)
  return f"{least_U.sum()} of {len(least_U)} units have a value"


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

  The response at coefficient 0 is 0: measure differences from the unedited model. A unit without a
  value (NaN) in the target or at a coefficient is left out everywhere, so that both rest on the
  same units. The curve ends at a coefficient that would leave fewer than half of a part's units;
  where such a one is tried in the bracket, the bracket has a hole.

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
      curves[n].scan(coef, parts)
  found = [curve.judge() for curve in curves]
  open_cells = [n for n, (status, _) in enumerate(found) if status == "ok"]
  while open_cells:
    before = {n: curves[n].num_units for n in open_cells}
    _refine(evaluate, curves, open_cells, tolerance, logarithmic)
    # A unit that was lost on the way changes the target: such a cell is solved again.
    changed = [n for n in open_cells if curves[n].num_units < before[n]]
    found = [curve.judge() if n in changed else found[n] for n, curve in enumerate(curves)]
    open_cells = [n for n in changed if found[n][0] == "ok"]
  return [
    curve.solution(status, reason, tolerance, draws, confidence, seed)
    for curve, (status, reason) in zip(curves, found, strict=True)
  ]


class _Curve:
  """What is known of one cell's response."""

  def __init__(self, target: Parts):
    self.target_parts = target
    self.units = known(target)
    self.coefs: list[float] = [0.0]
    self.parts: list[Parts] = [tuple(np.zeros(len(x)) for x in target)]
    self.end = ""  # why nothing is known of larger coefficients
    self.holes: list[float] = []  # coefficients at which too few units have a value

  @property
  def num_units(self) -> int:
    """Units that are compared, of all parts."""
    return sum(int(u_U.sum()) for u_U in self.units)

  @property
  def target(self) -> float:
    """What is to be met."""
    return response(self.target_parts, self.units)

  def scan(self, coef: float, parts: Parts) -> None:
    """Note the response at a coefficient, whatever has a value there."""
    at = int(np.searchsorted(self.coefs, coef))
    self.coefs.insert(at, coef)
    self.parts.insert(at, parts)

  def add(self, coef: float, parts: Parts) -> None:
    """Note the response at a coefficient in the bracket, or that it has a hole there."""
    left = _both(self.units, known(parts))
    if enough(left):
      self.units = left
      self.scan(coef, parts)
    else:
      self.holes.append(coef)

  @property
  def values_J(self) -> _Floats:
    """Responses at the coefficients."""
    return np.asarray([response(parts, self.units) for parts in self.parts])

  def has(self, coef: float) -> bool:
    """Return whether a coefficient was measured."""
    return coef in self.coefs or coef in self.holes

  def at(self, coef: float) -> float:
    """Return the response at a coefficient; NaN in a hole."""
    if coef in self.holes:
      return float("nan")
    return response(self.parts[self.coefs.index(coef)], self.units)

  def judge(self) -> tuple[Status, str]:
    """Return whether the scan brackets the target, and if not, why."""
    self._cut()
    self.r2 = isotonic_r2(self.values_J)
    if not enough(self.units):
      return "unreachable", f"of the target {_count(self.units)}, fewer than half"
    if len(self.coefs) == 1:
      return "unreachable", f"the response is not measurable: {self.end}"
    if self.target <= 0:
      return "unreachable", f"the target {self.target:.3g} is not above 0, the unedited model's"
    if not np.nan_to_num(self.r2, nan=0.0) >= LEAST_R2:
      return "non_monotone", f"isotonic R² {self.r2:.2f} < {LEAST_R2}"
    if self.values_J.max() < self.target:
      return "unreachable", (
        f"the target {self.target:.3g} is above {self.values_J.max():.3g}, the largest response up "
        f"to coefficient {self.coefs[-1]:.3g}{self.end and '; '}{self.end}"
      )
    return "ok", ""

  def _cut(self) -> None:
    """Compare over the units that have a value throughout, and end the curve where few are left."""
    for j, parts in enumerate(self.parts):
      left = _both(self.units, known(parts))
      if j and not enough(left):
        self.end = f"at {self.coefs[j]:.3g} {_count(left)}, fewer than half"
        self.coefs, self.parts = self.coefs[:j], self.parts[:j]
        return
      self.units = left

  def bracket(self) -> tuple[float, float]:
    """Return the coefficients round the first crossing."""
    at = int(np.argmax(self.values_J >= self.target))
    return self.coefs[at - 1], self.coefs[at]

  def nearest(self) -> tuple[float, float]:
    """Return the coefficient in the bracket whose response is nearest the target, and that."""
    low, high = self.bracket()
    mine = [(c, v) for c, v in zip(self.coefs, self.values_J, strict=True) if low <= c <= high]
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
      nan = float("nan")
      target = self.target if enough(self.units) else nan
      most = float(np.max(self.values_J)) if len(self.coefs) > 1 else nan
      return Solution(nan, nan, nan, target, most, status, reason, self.r2, nan, self.units)
    coef, achieved = self.nearest()
    if abs(achieved - self.target) > tolerance * self.target:
      below, coef = self.bracket()
      achieved = self.at(coef)
      status = "overshoot"
      reason = f"the response jumps between coefficients {below:.4g} and {coef:.4g}"
      if any(below < hole < coef for hole in self.holes):
        reason += ", where fewer than half of the units have a value"
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
    return Solution(
      coef, low, high, self.target, achieved, status, reason, self.r2, unreached, self.units
    )

  def _drawn(self, draws: int, seed: int) -> _Floats:
    """Return the first crossing in each draw of the units, by interpolation; NaN of none, [B].

    It is 0 where the draw's target is not above 0: a small coefficient, not one out of reach.
    """
    rng = np.random.default_rng(seed)
    target_B, curve_BJ = np.full(draws, np.inf), np.full((draws, len(self.coefs)), np.inf)
    for p, there_U in enumerate(self.units):
      t_U = self.target_parts[p][there_U]
      x_JU = np.stack([parts[p][there_U] for parts in self.parts])
      n = len(t_U)
      w_BU = rng.multinomial(n, np.full(n, 1 / n), draws) / n
      target_B = np.minimum(target_B, w_BU @ t_U)
      curve_BJ = np.minimum(curve_BJ, w_BU @ x_JU.T)
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


def _both(a: Units, b: Units) -> Units:
  return tuple(a_U & b_U for a_U, b_U in zip(a, b, strict=True))


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
    todo = [k for k, n in enumerate(cell) if not curves[n].has(coefs[k])]
    measured = evaluate([int(cell[k]) for k in todo], [coefs[k] for k in todo]) if todo else []
    for k, parts in zip(todo, measured, strict=True):
      curves[cell[k]].add(coefs[k], parts)
    out = np.empty(len(cell))
    for k, n in enumerate(cell):
      curve = curves[n]
      ratio = curve.at(coefs[k]) / curve.target
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
