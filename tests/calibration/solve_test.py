"""Solving for coefficients: curves with known inverses, and bootstraps by closed form."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from persona_jax.calibration.solve import (
  Evaluate,
  Parts,
  Solution,
  isotonic_r2,
  known,
  response,
  solve,
)

SCAN = (0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.9)
Curve = Callable[[float], Parts]


class Cells:
  """Measures curves, and notes what it was asked."""

  def __init__(self, *curves: Curve):
    self.curves = curves
    self.calls: list[list[tuple[int, float]]] = []

  def __call__(self, cells: Sequence[int], coefs: Sequence[float]) -> list[Parts]:
    self.calls.append(list(zip(cells, coefs, strict=True)))
    return [self.curves[n](c) for n, c in self.calls[-1]]


def one(f: Callable[[float], float]) -> Curve:
  """Makes a curve of one part with one unit."""
  return lambda c: (np.array([f(c)]),)


def find(f: Callable[[float], float], target: float, **options: object) -> Solution:
  (solution,) = solve(Cells(one(f)), [(np.array([target]),)], SCAN, **options)  # type: ignore[arg-type]
  return solution


# ---- where a curve meets its target --------------------------------------------------------------


@pytest.mark.parametrize(
  ("f", "inverse"),
  [
    (lambda c: 3 * c, lambda y: y / 3),
    (lambda c: c**1.8, lambda y: y ** (1 / 1.8)),
    (lambda c: 1 - np.exp(-5 * c), lambda y: -np.log(1 - y) / 5),
    (lambda c: np.expm1(3 * c), lambda y: np.log1p(y) / 3),
  ],
  ids=["linear", "power", "saturating", "exponential"],
)
@pytest.mark.parametrize("coef", [0.02, 0.13, 0.5, 0.88])
def test_a_growing_curve_is_inverted(
  f: Callable[[float], float], inverse: Callable[[float], float], coef: float
) -> None:
  target = f(coef)
  found = find(f, target)
  assert (found.status, found.reason, found.r2) == ("ok", "", 1.0)
  assert found.target == target
  assert found.achieved == pytest.approx(target, rel=0.005)  # a tenth of the tolerance
  assert found.coef == pytest.approx(inverse(found.achieved), rel=1e-9)


@pytest.mark.parametrize("power", [1.0, 2.0, 3.5])
@pytest.mark.parametrize("coef", [0.004, 0.02, 0.13, 0.88])
def test_a_power_law_is_a_line_in_logarithms(power: float, coef: float) -> None:
  cells = Cells(one(lambda c: 7 * c**power))
  (found,) = solve(cells, [(np.array([7 * coef**power]),)], SCAN, logarithmic=True)
  assert found.status == "ok"
  assert found.coef == pytest.approx(coef, rel=0.006 / power)
  assert len(cells.calls) <= len(SCAN) + 4


def test_a_coefficient_of_the_scan_that_meets_the_target_is_kept() -> None:
  cells = Cells(one(lambda c: 3 * c))
  (found,) = solve(cells, [(np.array([0.9]),)], SCAN)
  assert (found.coef, found.status) == (0.3, "ok")
  assert len(cells.calls) == len(SCAN)


def test_of_two_crossings_the_first_counts() -> None:
  found = find(lambda c: 2 * c if c < 0.7 else 1.4 - 0.3 * (c - 0.7), 0.8)
  assert found.status == "ok" and found.r2 > 0.9
  assert found.coef == pytest.approx(0.4, rel=0.005)


def test_a_jump_over_the_target_is_an_overshoot_at_its_upper_side() -> None:
  found = find(lambda c: 0.1 * c + (c >= 0.37), 0.5)
  assert found.status == "overshoot"
  assert found.coef == pytest.approx(0.37, abs=1e-4) and found.coef >= 0.37
  assert found.achieved == pytest.approx(1.037, abs=1e-4)
  assert found.reason.startswith("the response jumps between coefficients 0.3")


def test_a_jump_within_the_tolerance_is_none() -> None:
  found = find(lambda c: 2 * c + 0.04 * (c >= 0.37), 0.76)
  assert found.status == "ok" and abs(found.achieved - 0.76) <= 0.05 * 0.76
  assert find(lambda c: 2 * c + 0.04 * (c >= 0.37), 0.76, tolerance=0.01).status == "overshoot"


def test_a_root_is_no_finer_than_a_tenth_of_the_tolerance() -> None:
  cells = Cells(one(lambda c: 3 * c))
  (found,) = solve(cells, [(np.array([0.8]),)], SCAN, tolerance=1.0)
  assert found.coef == pytest.approx(0.25)  # the middle of .2 and .3, 6 % below the target
  assert len(cells.calls) == len(SCAN) + 1


# ---- failures are values -------------------------------------------------------------------------


def failed(found: Solution) -> bool:
  return bool(np.isnan([found.coef, found.low, found.high, found.unreached]).all())


def test_a_target_above_the_largest_response_is_unreachable_and_not_the_edge() -> None:
  found = find(lambda c: 2 * c, 1.81)
  assert failed(found) and found.status == "unreachable"
  assert (found.target, found.achieved) == (1.81, 1.8)
  assert found.reason == (
    "the target 1.81 is above 1.8, the largest response up to coefficient 0.9"
  )
  assert find(lambda c: 2 * c, 1.8).coef == 0.9


@pytest.mark.parametrize("target", [0.0, -0.3])
def test_a_target_that_the_unedited_model_meets_is_unreachable(target: float) -> None:
  found = find(lambda c: 2 * c, target)
  assert failed(found) and found.status == "unreachable"
  assert "not above 0" in found.reason


@pytest.mark.parametrize(
  "f",
  [lambda c: -c, lambda c: np.sin(14 * c), lambda c: 0.0],
  ids=["falling", "waves", "flat"],
)
def test_a_curve_that_does_not_grow_is_non_monotone(f: Callable[[float], float]) -> None:
  found = find(f, 0.5)
  assert failed(found) and found.status == "non_monotone"
  assert not found.r2 >= 0.8 and "isotonic R²" in found.reason


def test_isotonic_r2_is_the_share_that_a_growing_curve_explains() -> None:
  # The best growing fit of 0 2 1 is 0 1.5 1.5: .5 of a sum of squares of 2 is left.
  assert isotonic_r2(np.array([0.0, 2.0, 1.0])) == pytest.approx(0.75)
  assert isotonic_r2(np.array([0.0, 1.0, 5.0])) == 1.0
  assert isotonic_r2(np.array([3.0, 2.0, 1.0])) == pytest.approx(0.0)
  assert np.isnan(isotonic_r2(np.zeros(3)))


# ---- units and parts -----------------------------------------------------------------------------


def test_a_response_is_the_least_mean_of_the_parts_over_units_that_have_a_value() -> None:
  parts = (np.array([1.0, 3.0]), np.array([np.nan, 1.5, 1.5]))
  of = lambda parts: response(parts, known(parts))
  assert of(parts) == 1.5
  assert response(parts, (np.array([True, False]), known(parts)[1])) == 1.0
  assert np.isnan(of((np.array([1.0]), np.array([np.nan]))))
  assert np.isnan(of((np.array([np.nan]), np.array([1.0]))))


def test_a_composite_is_solved_on_the_part_that_binds() -> None:
  curve = lambda c: (np.array([5 * c, 3 * c]), np.array([c]))
  target = (np.array([0.9, 0.9]), np.array([0.33]))
  (found,) = solve(Cells(curve), [target], SCAN)
  assert found.target == 0.33  # of the second part, and so is the response
  assert found.coef == pytest.approx(0.33, rel=0.005)
  (found,) = solve(Cells(curve), [(np.array([0.2, 0.2]), np.array([0.33]))], SCAN)
  assert found.coef == pytest.approx(0.2, rel=0.005)  # the least target by the least response


def test_missing_units_are_left_out_of_means_and_draws() -> None:
  slope_U = np.array([1.0, 2.0, 3.0, 2.0])
  gap_U = np.array([0, 0, 0, np.nan])
  (found,) = solve(
    Cells(lambda c: (slope_U * c + gap_U,)), [(np.array([0.5, 0.6, 0.7, 9.9]) + gap_U,)], SCAN
  )
  assert found.target == pytest.approx(0.6)
  assert found.coef == pytest.approx(0.3, rel=0.005)
  assert found.unreached < 0.02 and np.isfinite([found.low, found.high]).all()


# Four units of one slope, one that is steep: with it a line of .4, without it one of .25.
UNEQUAL = np.array([0.25, 0.25, 0.25, 0.25, 1.0])


def loses(from_coef: float, *units: int) -> Curve:
  """Makes lines that lose units at coefficients from one on."""

  def curve(c: float) -> Parts:
    x_U = UNEQUAL * c
    x_U[list(units)] = np.nan if c >= from_coef else x_U[list(units)]
    return (x_U,)

  return curve


@pytest.mark.parametrize("from_coef", [0.55, 0.9])
def test_a_unit_that_is_lost_at_a_dose_counts_nowhere(from_coef: float) -> None:
  # Target .2 a unit. Means of what has a value: .2 of .4 c, at .5, and by the four others at .8.
  target = (np.full(5, 0.2),)
  (found,) = solve(Cells(loses(from_coef, 4)), [target], SCAN)
  (expected,) = solve(Cells(lambda c: (UNEQUAL[:4] * c,)), [(np.full(4, 0.2),)], SCAN)
  assert (found.status, found.reason) == ("ok", "")
  assert found.coef == expected.coef == pytest.approx(0.8, rel=0.005)
  assert (found.target, found.achieved) == (expected.target, expected.achieved)
  assert (found.low, found.high, found.r2) == (expected.low, expected.high, expected.r2)
  np.testing.assert_array_equal(found.units[0], [True] * 4 + [False])


def test_a_unit_that_the_target_lacks_counts_nowhere() -> None:
  target_U = np.append(np.full(4, 0.2), np.nan)
  (found,) = solve(Cells(lambda c: (UNEQUAL * c,)), [(target_U,)], SCAN)
  assert found.coef == pytest.approx(0.8, rel=0.005)  # all five would meet it at .5
  np.testing.assert_array_equal(found.units[0], [True] * 4 + [False])


def test_a_unit_that_is_lost_while_it_is_solved_changes_the_target_and_is_solved_again() -> None:
  # No scanned coefficient is in the gap, but those that are tried between .45 and .6 are.
  def curve(c: float) -> Parts:
    x_U = UNEQUAL * c
    x_U[4] = np.nan if 0.46 < c < 0.59 else x_U[4]
    return (x_U,)

  target_U = np.append(np.full(4, 0.2), 0.24)  # .208 of five, at .52; .2 of four, at .8
  cells = Cells(curve)
  (found,) = solve(cells, [(target_U,)], SCAN)
  assert found.status == "ok" and found.target == pytest.approx(0.2)
  assert found.coef == pytest.approx(0.8, rel=0.005)
  assert found.achieved == pytest.approx(0.25 * found.coef)
  assert found.units[0].sum() == 4
  asked = [c for call in cells.calls for _, c in call]
  assert len(set(asked)) == len(asked)


def test_a_curve_ends_where_fewer_than_half_of_the_units_are_left() -> None:
  cells = lambda: Cells(loses(0.6, 1, 2, 4))
  (found,) = solve(cells(), [(np.full(5, 0.16),)], SCAN)  # at .4, before it ends
  assert (found.status, found.units[0].sum()) == ("ok", 5)
  assert found.coef == pytest.approx(0.4, rel=0.005)
  (found,) = solve(cells(), [(np.full(5, 0.2),)], SCAN)
  assert failed(found) and found.status == "unreachable"
  assert found.reason == (
    "the target 0.2 is above 0.18, the largest response up to coefficient 0.45; at 0.6 2 of 5 "
    "units have a value, fewer than half"
  )


def test_a_target_with_fewer_than_half_of_the_units_is_unreachable() -> None:
  target_U = np.array([0.2, np.nan, np.nan, np.nan, 0.2])
  (found,) = solve(Cells(lambda c: (UNEQUAL * c,)), [(target_U,)], SCAN)
  assert failed(found) and found.status == "unreachable" and np.isnan(found.target)
  assert found.reason == "of the target 2 of 5 units have a value, fewer than half"


def test_half_of_the_units_is_wanted_of_every_part() -> None:
  both = lambda c: (np.full(8, c), np.array([c, c, np.nan]))
  target = (np.full(8, 0.2), np.full(3, 0.2))
  (found,) = solve(Cells(both), [target], SCAN)
  assert (found.status, [u_U.sum() for u_U in found.units]) == ("ok", [8, 2])
  few = lambda c: (np.full(8, c), np.array([c, np.nan, np.nan]))
  (found,) = solve(Cells(few), [target], SCAN)
  assert failed(found)
  assert found.reason == (
    "the response is not measurable: at 0.05 1 of 3 units have a value, fewer than half"
  )


def test_a_part_without_any_value_is_not_left_out() -> None:
  nothing = np.full(2, np.nan)
  both = (np.ones(2), np.ones(2))
  lost = "0 of 2 units have a value, fewer than half"
  for curve, target, where in (
    (lambda c: (np.ones(2) * c, nothing), both, "the response is not measurable: at 0.05 "),
    (lambda c: (nothing, np.ones(2) * c), both, "the response is not measurable: at 0.05 "),
    (lambda c: (np.ones(2) * c, np.ones(2) * c), (np.ones(2) / 2, nothing), "of the target "),
  ):
    (found,) = solve(Cells(curve), [target], SCAN)
    assert failed(found) and found.status == "unreachable"
    assert found.reason == where + lost


def test_a_curve_ends_where_it_cannot_be_measured_any_more() -> None:
  f = lambda c: 2 * c if c < 0.4 else np.nan
  found = find(f, 0.5)
  assert found.status == "ok" and found.coef == pytest.approx(0.25, rel=0.005)
  found = find(f, 0.7)
  assert failed(found) and found.achieved == 0.6
  assert found.reason.endswith(
    "is above 0.6, the largest response up to coefficient 0.3; at 0.45 0 of 1 units have a value, "
    "fewer than half"
  )


def test_a_hole_in_a_bracket_is_no_solution() -> None:
  found = find(lambda c: np.nan if 0.31 < c < 0.44 else 2 * c, 0.75)
  assert not np.isnan(found.achieved)
  assert (found.status, found.coef, found.achieved) == ("overshoot", 0.45, 0.9)
  assert found.reason == (
    "the response jumps between coefficients 0.3 and 0.45, where fewer than half of the units have "
    "a value"
  )


# ---- limits, calls, arguments --------------------------------------------------------------------


def test_no_cell_is_measured_above_its_limit_and_the_limit_itself_is() -> None:
  limits = [0.02, 0.15, 0.9]
  cells = Cells(*[one(lambda c: 2 * c)] * 3)
  found = solve(cells, [(np.array([0.3]),)] * 3, SCAN, most=limits)
  assert [s.status for s in found] == ["unreachable", "ok", "ok"]
  assert found[0].achieved == 0.04 and "up to coefficient 0.02" in found[0].reason
  assert (found[1].coef, found[1].achieved) == (0.15, 0.3)
  for n, limit in enumerate(limits):
    asked = [c for call in cells.calls for m, c in call if m == n]
    assert max(asked) == limit and len(set(asked)) == len(asked)


def test_all_cells_go_in_one_call_a_step() -> None:
  rates = np.linspace(0.5, 6, 40)
  cells = Cells(*[one(lambda c, k=k: 1 - np.exp(-k * c)) for k in rates])  # type: ignore[misc]
  targets = [(np.array([1 - np.exp(-k * c)]),) for k, c in zip(rates, np.linspace(0.06, 0.85, 40))]  # noqa: B905
  found = solve(cells, targets, SCAN)
  assert {s.status for s in found} == {"ok"}
  assert [len(call) for call in cells.calls[: len(SCAN)]] == [40] * len(SCAN)
  assert len(cells.calls) <= len(SCAN) + 6
  for n in range(40):
    asked = [c for call in cells.calls for m, c in call if m == n]
    assert len(set(asked)) == len(asked) <= len(SCAN) + 6


def test_cells_that_cannot_be_solved_cost_the_scan_alone() -> None:
  cells = Cells(one(lambda c: c), one(lambda c: c))
  found = solve(cells, [(np.array([2.0]),), (np.array([0.5]),)], SCAN)
  assert [s.status for s in found] == ["unreachable", "ok"]
  assert {n for call in cells.calls[len(SCAN) :] for n, _ in call} == {1}


@pytest.mark.parametrize(
  ("scan", "options"),
  [((), {}), ((0.0, 0.1), {}), ((-0.1, 0.1), {}), ((0.1,), {"most": [0.1, 0.2]})],
)
def test_scans_and_limits_that_do_not_fit_are_refused(
  scan: tuple[float, ...], options: dict[str, list[float]]
) -> None:
  with pytest.raises(ValueError, match="give coefficients above 0"):
    solve(Cells(one(lambda c: c)), [(np.array([0.05]),)], scan, **options)  # type: ignore[arg-type]


# ---- intervals -----------------------------------------------------------------------------------


def drawn(x_U: np.ndarray, y_U: np.ndarray, draws: int = 200_000) -> np.ndarray:
  """Draws ratios of means over units: the coefficients of lines, by brute force."""
  at_BU = np.random.default_rng(11).integers(0, len(x_U), (draws, len(x_U)))
  return x_U[at_BU].mean(1) / y_U[at_BU].mean(1)


def line(slope_U: np.ndarray) -> Evaluate:
  return Cells(lambda c: (slope_U * c,))


RNG = np.random.default_rng(4)
SLOPE = RNG.uniform(0.5, 1.5, 12)
TARGET = 0.4 * SLOPE + RNG.normal(0, 0.15, 12)


def test_the_interval_of_a_line_is_that_of_a_ratio_of_means() -> None:
  (found,) = solve(line(SLOPE), [(TARGET,)], SCAN, draws=20_000)
  expected = np.quantile(drawn(TARGET, SLOPE), [0.025, 0.975])
  np.testing.assert_allclose([found.low, found.high], expected, rtol=0.01)
  assert (found.unreached, found.status, found.reason) == (0.0, "ok", "")
  assert found.low < found.coef < found.high
  (half,) = solve(line(SLOPE), [(TARGET,)], SCAN, draws=20_000, confidence=0.5)
  expected = np.quantile(drawn(TARGET, SLOPE), [0.25, 0.75])
  np.testing.assert_allclose([half.low, half.high], expected, rtol=0.01)


def test_units_of_target_and_response_are_drawn_together() -> None:
  (found,) = solve(line(SLOPE), [(0.37 * SLOPE,)], SCAN)
  assert found.high - found.low < 0.01 * found.coef


def test_parts_are_drawn_apart() -> None:
  noise = np.array([-0.2, 0.2, -0.1, 0.1, 0.0, 0.0])
  target = (0.5 + noise, 0.5 + noise[::-1])
  (found,) = solve(Cells(lambda c: (np.full(6, c), np.full(6, c))), [target], SCAN, draws=20_000)
  at_2BU = np.random.default_rng(3).integers(0, 6, (2, 200_000, 6))
  least_B = np.minimum(*(t[at].mean(1) for t, at in zip(target, at_2BU, strict=True)))
  expected = np.quantile(least_B, [0.025, 0.975])
  np.testing.assert_allclose([found.low, found.high], expected, atol=0.01)


def test_a_seed_gives_the_same_draws() -> None:
  a, b, c = (solve(line(SLOPE), [(TARGET,)], SCAN, seed=seed)[0] for seed in (1, 1, 2))
  assert (a.low, a.high) == (b.low, b.high) != (c.low, c.high)


def test_the_interval_holds_a_coefficient_that_was_solved_to_the_tolerance() -> None:
  # .3 is kept although .3012 is exact, and all draws give that.
  (found,) = solve(line(np.ones(5)), [(np.full(5, 0.3012),)], SCAN)
  assert (found.coef, found.low) == (0.3, 0.3)
  assert found.high == pytest.approx(0.3012)


def test_draws_beyond_the_largest_coefficient_are_censored_and_counted() -> None:
  most = 0.41
  ratio_B = drawn(TARGET, SLOPE)
  (found,) = solve(line(SLOPE), [(TARGET,)], SCAN, most=[most], draws=20_000)
  assert found.status == "ok"
  assert found.unreached == pytest.approx((ratio_B > most).mean(), abs=0.01)
  assert found.unreached > 0.025 and np.isnan([found.low, found.high]).all()
  assert found.reason == (
    f"no interval: {found.unreached:.0%} of bootstrap draws do not meet the target"
  )


def test_few_censored_draws_leave_the_interval_as_it_is() -> None:
  ratio_B = drawn(TARGET, SLOPE)
  most = float(np.quantile(ratio_B, 0.985))
  (found,) = solve(line(SLOPE), [(TARGET,)], SCAN, most=[most], draws=20_000)
  assert 0.005 < found.unreached < 0.025 and found.reason == ""
  np.testing.assert_allclose(
    [found.low, found.high], np.quantile(ratio_B, [0.025, 0.975]), rtol=0.01
  )


def test_draws_with_a_target_below_zero_are_small_coefficients_not_large_ones() -> None:
  target_U = np.array([-0.5, 0.2, 0.4, 0.5, 0.6, 0.6])
  ratio_B = np.maximum(drawn(target_U, np.ones(6)), 0)
  assert 0.03 < (ratio_B == 0).mean() < 0.1
  (found,) = solve(line(np.ones(6)), [(target_U,)], SCAN, draws=20_000)
  assert (found.status, found.low, found.unreached) == ("ok", 0.0, 0.0)
  assert found.high == pytest.approx(np.quantile(ratio_B, 0.975), rel=0.01)
