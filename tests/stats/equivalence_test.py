"""Equivalence against the t-test's own TOST; odd and even parts of curves that are known."""

import math

import numpy as np
import pytest
import statsmodels.stats.weightstats

from persona_jax import stats

COEF = {f"{a:+d}": float(a) for a in (-3, -2, -1, 0, 1, 2, 3)}


def test_tost_by_draws_is_the_t_tests() -> None:
  value_N = np.random.default_rng(0).normal(0.1, 1.0, size=80)
  o = stats.Outcomes(value_N[None, None, None], ("d",), ("p",), (0,), range(80))
  contrasts = stats.Draws.of(range(80), 1, draws=20_000).contrasts(o, [[[1.0]]])
  ours = stats.equivalence(contrasts.draw_BQ[:, 0], value_N.mean(), 0.3, n=80)
  p, *_ = statsmodels.stats.weightstats.DescrStatsW(value_N).ttost_mean(-0.3, 0.3)
  assert ours.p == pytest.approx(p, rel=0.2)
  assert ours.equivalent == (p <= 0.05)


def test_a_wide_interval_about_zero_shows_nothing() -> None:
  draw_B = np.random.default_rng(1).normal(0.0, 1.0, size=2000)
  assert not stats.equivalence(draw_B, 0.0, 0.5).equivalent
  assert stats.equivalence(draw_B, 0.0, 5.0).equivalent


def test_an_estimate_is_equivalent_if_its_interval_lies_within_the_margin() -> None:
  inside = stats.Estimate(0.0, -0.04, 0.03, 100)
  assert stats.equivalence_of_estimate(inside, 0.05).equivalent
  assert not stats.equivalence_of_estimate(inside, 0.04).equivalent
  unknown = stats.Estimate(0.0, math.nan, math.nan, 100)
  assert not stats.equivalence_of_estimate(unknown, 0.05).equivalent


def test_draws_without_spread_show_no_equivalence() -> None:
  result = stats.equivalence(np.zeros(500), 0.0, 0.1)
  assert not result.equivalent and math.isnan(result.p)


def curve(odd: float, even: float, seed: int = 0) -> stats.Outcomes:
  rng = np.random.default_rng(seed)
  a_M = np.array(list(COEF.values()))
  y_MPKN = (0.4 + odd * a_M + even * a_M**2)[:, None, None, None] + rng.normal(size=(1, 1, 1, 50))
  y_MPKN = y_MPKN + 0.2 * rng.normal(size=(7, 1, 3, 50))
  return stats.Outcomes(y_MPKN, tuple(COEF), ("p",), range(3), range(50))


DRAWS = stats.Draws.of(range(50), 3, draws=1000)


def test_odd_and_even_parts_are_recovered() -> None:
  parts = stats.dose_parts(curve(0.2, 0.05), DRAWS, COEF)
  assert parts.table.dose.tolist() == [1.0, 2.0, 3.0]
  assert parts.table.odd.tolist() == pytest.approx([0.2, 0.4, 0.6], abs=0.05)
  assert parts.table.even.tolist() == pytest.approx([0.05, 0.2, 0.45], abs=0.08)
  assert (parts.table.odd_low < parts.table.odd).all()
  assert max(parts.p_odd, parts.p_even) < 0.001


def test_the_parts_are_the_formula_on_cell_means() -> None:
  o = curve(0.2, 0.05, seed=3)
  y_M = o.mean_MP[:, 0]
  table = stats.dose_parts(o, DRAWS, COEF).table
  assert table.odd[1] == pytest.approx((y_M[5] - y_M[1]) / 2)
  assert table.even[1] == pytest.approx((y_M[5] + y_M[1]) / 2 - y_M[3])


def test_damage_has_an_even_part_only() -> None:
  parts = stats.dose_parts(curve(0.0, 0.1), DRAWS, COEF)
  assert parts.p_even < 0.001 and parts.p_odd > 0.01
  assert (parts.table.even_low > 0).all() and (parts.table.odd_low < 0).all()


def test_a_falling_curve_has_a_trend_too() -> None:
  parts = stats.dose_parts(curve(-0.2, 0.0), DRAWS, COEF)
  assert parts.p_odd < 0.001 and (parts.table.odd_high < 0).all()


def test_two_doses_have_parts_and_no_trend() -> None:
  parts = stats.dose_parts(curve(0.2, 0.0), DRAWS, {"-1": -1.0, "+0": 0.0, "+1": 1.0})
  assert parts.table.odd[0] == pytest.approx(0.2, abs=0.05)
  assert math.isnan(parts.p_odd) and "3 doses" in parts.reason


@pytest.mark.parametrize(
  ("coef", "message"),
  [
    ({"+1": 1.0, "+0": 0.0}, "not symmetric"),
    ({"-1": -1.0, "+1": 1.0}, "not symmetric about one dose 0"),
    ({"+0": 0.0}, "no curve"),
    ({"-1": -1.0, "+0": 0.0, "+9": 1.0}, "no arms"),
  ],
)
def test_faulty_doses_are_named(coef: dict, message: str) -> None:
  with pytest.raises(ValueError, match=message):
    stats.dose_parts(curve(0.2, 0.0), DRAWS, coef)


def test_faulty_margins_are_named() -> None:
  with pytest.raises(ValueError, match="delta is 0"):
    stats.equivalence(np.zeros(5), 0.0, 0.0)
  with pytest.raises(ValueError, match="alpha is 0.7"):
    stats.equivalence(np.zeros(5), 0.0, 0.1, alpha=0.7)
