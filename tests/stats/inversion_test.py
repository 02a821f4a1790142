"""Inversions: hand-made worlds, Gail and Simon's critical values, simultaneous bounds."""

import math

import numpy as np
import pytest
import scipy.stats

from persona_jax import stats
from persona_jax.stats.inversion import against_others, simultaneous_half_widths


def world(d_MP: np.ndarray, seed: int = 0, noise: float = 0.02, n: int = 40) -> stats.Outcomes:
  rng = np.random.default_rng(seed)
  y_MPKN = 0.3 + d_MP[:, :, None, None] + 0.2 * rng.normal(size=n)
  y_MPKN = y_MPKN + noise * rng.normal(size=(*d_MP.shape, 3, n))
  return stats.Outcomes(y_MPKN, ("SP", "AS"), ("a", "b", "c", "d"), range(3), range(n))


CROSSED = np.array([[-0.2, 0.2, 0.0, 0.0], [0.2, -0.2, 0.0, 0.0]])
DRAWS = stats.Draws.of(range(40), 3)


def test_d_is_a_persona_less_the_mean_of_the_others() -> None:
  assert against_others(3).tolist() == [[1, -0.5, -0.5], [-0.5, 1, -0.5], [-0.5, -0.5, 1]]
  table = stats.inversions(world(CROSSED, noise=0.0), stats.Draws.of(range(40), 3, draws=200))
  assert table.d_SP[:4].tolist() == pytest.approx([-0.8 / 3, 0.8 / 3, 0.0, 0.0])


def test_a_crossing_is_found_in_its_direction_only() -> None:
  table = stats.inversions(world(CROSSED), DRAWS).set_index(["persona", "direction"])
  found = table.index[table.inverted].tolist()
  assert found == [("a", "AS-worse"), ("b", "SP-worse")]
  row = table.loc[("a", "AS-worse")]
  assert row.SP_high < -0.05 and row.AS_low > 0.05
  assert row.p == max(row.p_SP, row.p_AS)


def test_one_arm_alone_makes_no_inversion() -> None:
  d_MP = CROSSED.copy()
  d_MP[0] = 0.0
  table = stats.inversions(world(d_MP), DRAWS)
  assert not table.inverted.any()
  assert table.p_AS.min() < 0.01 < 0.5 < table.p.min()


def test_effects_within_the_margin_make_no_inversion() -> None:
  table = stats.inversions(world(CROSSED / 8), DRAWS)
  assert not table.inverted.any()
  assert stats.inversions(world(CROSSED / 8), DRAWS, delta=0.0).inverted.any()


def test_a_shift_of_a_whole_arm_changes_nothing() -> None:
  plain = stats.inversions(world(CROSSED), DRAWS)
  shifted = stats.inversions(world(CROSSED + np.array([[0.0], [0.4]])), DRAWS)
  np.testing.assert_allclose(plain.p, shifted.p)
  np.testing.assert_allclose(plain.d_AS, shifted.d_AS, atol=1e-12)


def test_one_replicate_against_it_takes_the_claim_away() -> None:
  o = world(CROSSED)
  y_MPKN = o.y_MPKN.copy()
  y_MPKN[1, 0, 2] -= 0.25
  o = stats.Outcomes(y_MPKN, o.arms, o.personas, o.replicates, o.prompts)
  row = stats.inversions(o, DRAWS).iloc[0]
  assert row.d_AS > 0.05 > row.d_AS_2
  assert not row.each_replicate and not row.inverted


def test_a_persona_without_values_has_no_p_and_a_reason() -> None:
  o = world(CROSSED)
  y_MPKN = o.y_MPKN.copy()
  y_MPKN[1, 3] = math.nan
  table = stats.inversions(
    stats.Outcomes(y_MPKN, o.arms, o.personas, o.replicates, o.prompts), DRAWS
  )
  assert table.p.isna().all() and (table.reason != "").all() and not table.inverted.any()


def test_pooled_replicates_give_degrees_of_freedom_and_hold_their_level() -> None:
  rng = np.random.default_rng(3)
  draws = stats.Draws.of(range(40), 3, draws=400)
  covered, df = {"own": [], "pooled": []}, {"own": [], "pooled": []}
  for _ in range(150):
    log_odds = rng.normal(size=(1, 1, 1, 40)) + 0.5 * rng.normal(size=(2, 12, 3, 1))
    y_MPKN = (log_odds > rng.logistic(size=(2, 12, 3, 40))).astype(float)
    o = stats.Outcomes(y_MPKN, ("SP", "AS"), range(12), range(3), range(40))
    for name in ("own", "pooled"):
      contrasts, _ = stats.inversion_p(o, draws, replicates=name)  # type: ignore[arg-type]
      low_Q, high_Q = np.quantile(contrasts.draw_BQ, [0.025, 0.975], axis=0)
      covered[name].append(((low_Q <= 0) & (high_Q >= 0)).mean())
      df[name].append(np.median(contrasts.df_Q))
  assert np.mean(df["own"]) < 4 < 15 < np.mean(df["pooled"])
  assert 0.93 <= np.mean(covered["pooled"]) <= 0.975


# Gail and Simon (1985), table 1: critical values of level .05 for 2, 3, 4 and 5 subsets.
@pytest.mark.parametrize(("n", "critical"), [(2, 2.71), (3, 4.23), (4, 5.43), (5, 6.50)])
def test_gail_and_simons_critical_values_have_p_of_a_twentieth(n: int, critical: float) -> None:
  effect_P = np.zeros(n)
  effect_P[:2] = math.sqrt(critical), -math.sqrt(critical) - 1
  assert stats.gail_simon(effect_P, np.ones(n)).p == pytest.approx(0.05, abs=3e-4)


def test_effects_of_one_sign_are_no_qualitative_interaction() -> None:
  result = stats.gail_simon([1.0, 9.0, 4.0], [1.0, 1.0, 1.0])
  assert (result.p, result.below) == (1.0, 0.0)


def test_gail_simon_holds_its_level_at_its_worst_null() -> None:
  # The worst null has one effect far away and the others at 0.
  rng = np.random.default_rng(0)
  z = rng.normal(size=(4000, 6)) + np.array([50.0, 0, 0, 0, 0, 0])
  rejected = np.mean([stats.gail_simon(row, np.ones(6)).p <= 0.05 for row in z])
  assert rejected == pytest.approx(0.05, abs=0.012)


def test_few_degrees_of_freedom_weaken_the_interaction() -> None:
  sure = stats.gail_simon([3.0, -3.0], [1.0, 1.0])
  unsure = stats.gail_simon([3.0, -3.0], [1.0, 1.0], [2.0, 2.0])
  assert sure.p < 0.01 < unsure.p


def test_an_undefined_effect_gives_no_interaction_and_a_reason() -> None:
  result = stats.gail_simon([1.0, math.nan, 2.0], [1.0, 1.0, 0.0])
  assert math.isnan(result.p)
  assert result.reason == "effects or errors are undefined or without spread: 1, 2"


def test_an_interaction_that_cannot_be_tested_names_the_personas() -> None:
  outcomes = world(CROSSED)
  outcomes.y_MPKN[:, 1] = 1.0  # nothing to estimate a spread from
  assert stats.qualitative_interaction(outcomes, DRAWS).reason.endswith(": b")


def test_the_global_test_sees_a_crossing_and_not_a_shift() -> None:
  assert stats.qualitative_interaction(world(CROSSED), DRAWS).p < 0.01
  shift = np.zeros((2, 4))
  shift[1] = 0.3
  assert stats.qualitative_interaction(world(shift), DRAWS).p > 0.5


def test_pairs_that_reverse_are_listed() -> None:
  table = stats.crossings(world(CROSSED), DRAWS)
  assert len(table) == 6
  crossing = list(zip(table.p[table.crosses], table.q[table.crosses], strict=True))
  assert crossing == [("a", "b"), ("a", "c"), ("a", "d"), ("b", "c"), ("b", "d")]


def test_simultaneous_bounds_miss_any_of_many_contrasts_in_a_twentieth_of_studies() -> None:
  rng = np.random.default_rng(1)
  worlds, misses = 400, 0
  draws = stats.Draws.of(range(60), 1, draws=600)
  coef = np.eye(12)[:, None]
  for _ in range(worlds):
    o = stats.Outcomes(rng.normal(size=(1, 12, 1, 60)), ("AS",), range(12), (0,), range(60))
    contrasts = draws.contrasts(o, coef)
    misses += (np.abs(contrasts.point_Q) > simultaneous_half_widths(contrasts)).any()
  assert misses / worlds == pytest.approx(0.05, abs=0.03)


def test_one_contrast_needs_no_more_than_its_own_t() -> None:
  o = stats.Outcomes(
    np.random.default_rng(2).normal(size=(1, 1, 1, 50)), ("AS",), "a", (0,), range(50)
  )
  contrasts = stats.Draws.of(range(50), 1, draws=40_000).contrasts(o, [[[1.0]]])
  wanted = scipy.stats.t.ppf(0.975, 49) * contrasts.error_Q[0]
  assert simultaneous_half_widths(contrasts)[0] == pytest.approx(wanted, rel=0.02)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: stats.inversions(world(CROSSED), DRAWS, delta=-1), "delta is -1"),
    (lambda: stats.inversions(world(CROSSED), DRAWS, arms=("SP", "XX")), "no arms"),
    (lambda: stats.inversions(world(CROSSED), DRAWS, alpha=0.9), "alpha is 0.9"),
    (
      lambda: stats.inversions(world(CROSSED), DRAWS, replicates="all"),  # type: ignore[arg-type]
      "'own' or 'pooled' fits",
    ),
    (
      lambda: stats.inversions(world(CROSSED + 2), DRAWS, replicates="pooled"),
      "rates between 0 and 1",
    ),
    (lambda: stats.gail_simon([1.0], [1.0, 2.0]), "shapes"),
    (lambda: against_others(1), "needs at least 2"),
  ],
)
def test_faulty_arguments_are_named(call, message: str) -> None:
  with pytest.raises(ValueError, match=message):
    call()
