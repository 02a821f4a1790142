"""The tests of the core study hold their level and cover, by 2,000 simulated studies each.

Bounds: .06 is .05 and two standard errors of 2,000 studies. The negative controls must fail: if
they did not, the generator would be too kind to show anything.
"""

import pytest

from tests.stats import simulations

STUDIES, DRAWS = 2000, 400


def test_equal_effects_are_not_inverted_and_no_slope_is_found() -> None:
  parts = ("H3", "H4")
  seen = simulations.rejection_rates("equal", STUDIES, parts=parts, draws=DRAWS, halves=10)
  for name in ("H3", "H3 any", "H4"):
    assert seen.rate(name) <= 0.06, name
  assert 0.93 <= seen.rate("cover slope") <= 0.97


def test_equal_effects_are_not_unpredictable_and_the_four_together_hold_their_level() -> None:
  parts = ("H1", "H2", "H3", "H4")
  seen = simulations.rejection_rates("equal", 500, parts=parts, draws=DRAWS, halves=10)
  assert seen.rate("H2") <= 0.06
  assert seen.rate("family") <= 0.06
  assert seen.rate("H1 found") > 0.3  # a test that finds nothing would hold every level


def test_independent_effects_are_not_inverted_and_intervals_cover() -> None:
  parts = ("coverage", "H3")
  seen = simulations.rejection_rates("independent", STUDIES, parts=parts, draws=DRAWS, halves=10)
  for name in ("one-sided D", "H3", "H3 any"):
    assert seen.rate(name) <= 0.06, name
  for name in ("cover ASR", "cover D", "cover method"):
    assert 0.93 <= seen.rate(name) <= 0.97, name


def test_independent_rankings_are_not_said_to_be_preserved() -> None:
  seen = simulations.rejection_rates("independent", 500, parts=("H1",), draws=DRAWS, halves=10)
  assert seen.rate("H1") <= 0.06


def test_naive_permutation_and_eyeballing_fail_where_the_signed_group_holds() -> None:
  seen = simulations.negative_controls(STUDIES, permutations=300)
  assert seen.rate("naive") >= 0.15
  assert seen.rate("eyeball") >= 0.5
  assert seen.rate("signed") <= 0.06


def test_the_generator_has_the_rate_that_it_claims() -> None:
  assert simulations.population_rate(simulations.BASE) == pytest.approx(0.2, abs=1e-9)
