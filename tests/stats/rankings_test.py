"""Rank correlations, reliabilities and the two hypotheses on rankings, against scipy and truth."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
import statsmodels.stats.multitest

from persona_jax import stats
from persona_jax.stats.rankings import MEASURABLE


def arm(
  effect_P: np.ndarray, seed: int, noise: float = 0.3, n: int = 60, replicates: int = 3
) -> stats.Outcomes:
  rng = np.random.default_rng(seed)
  p = len(effect_P)
  y_MPKN = (
    effect_P[:, None, None] + rng.normal(size=n) + noise * rng.normal(size=(p, replicates, n))
  )
  return stats.Outcomes(y_MPKN[None], ("SP",), range(p), range(replicates), range(n))


DRAWS = stats.Draws.of(range(60), 3, draws=1000)
SPREAD = np.linspace(-1, 1, 12)


def test_rho_is_scipys_with_ties_and_nan_where_a_row_is_constant() -> None:
  rng = np.random.default_rng(0)
  x_BP, y_BP = rng.integers(0, 5, size=(2, 30, 9)).astype(float)
  x_BP[3] = 2.0
  with np.errstate(all="ignore"):
    wanted = [
      scipy.stats.spearmanr(x, y).statistic if np.ptp(x) * np.ptp(y) else math.nan
      for x, y in zip(x_BP, y_BP, strict=True)
    ]
  np.testing.assert_allclose(stats.spearman_rows(x_BP, y_BP), wanted, atol=1e-12)


def test_equal_rankings_without_much_noise_have_rho_and_reliability_of_one() -> None:
  x, y = arm(SPREAD, 1, noise=0.01), arm(SPREAD, 2, noise=0.01)
  result = stats.rank_correlation(x, y, DRAWS)
  assert result.rho.value == pytest.approx(1.0)
  assert result.reliability_x == result.reliability_y == pytest.approx(1.0)
  assert result.disattenuated.value == pytest.approx(1.0)
  assert result.distinguishable_x == result.n_pairs == 66


def test_reliability_is_the_share_of_true_variance() -> None:
  # Noise of variance τ²/(S N) on persona means; Pearson and Spearman agree closely here.
  seen, wanted = [], []
  for seed in range(60):
    effect_P = np.random.default_rng(seed).normal(size=24)
    o = arm(effect_P, seed, noise=8.0, n=60, replicates=2)
    seen.append(stats.reliability(o, stats.Draws.of(range(60), 2, draws=100), halves=60))
    wanted.append(effect_P.var(ddof=1) / (effect_P.var(ddof=1) + 64 / 120))
  assert np.mean(seen) == pytest.approx(np.mean(wanted), abs=0.05)


def test_disattenuation_undoes_the_noise_on_average() -> None:
  raw, corrected = [], []
  for seed in range(80):
    x, y = arm(SPREAD, 2 * seed, noise=6.0), arm(SPREAD, 2 * seed + 1, noise=6.0)
    result = stats.rank_correlation(x, y, stats.Draws.of(range(60), 3, draws=100), halves=60)
    if result.measurable:
      raw.append(result.rho.value)
      corrected.append(result.disattenuated.value)
  assert np.mean(raw) < 0.75
  assert np.mean(corrected) == pytest.approx(1.0, abs=0.12)


def test_a_ranking_of_noise_is_not_measurable_and_says_so() -> None:
  result = stats.rank_correlation(arm(SPREAD, 1), arm(np.zeros(12), 5, noise=3.0), DRAWS)
  assert not result.measurable and min(result.reliability_y, MEASURABLE) < MEASURABLE
  assert "ranking not measurable" in result.reason
  assert math.isnan(result.disattenuated.value) and not math.isnan(result.rho.value)


def test_a_constant_ranking_is_nan_with_a_reason() -> None:
  flat = stats.Outcomes(np.zeros((1, 12, 3, 60)), ("AS",), range(12), range(3), range(60))
  result = stats.rank_correlation(arm(SPREAD, 1), flat, DRAWS)
  assert math.isnan(result.rho.value) and result.reason == "y is constant, so it has no ranks"
  assert not result.measurable and result.distinguishable_y == 0


def test_a_disattenuated_rho_is_capped_only_for_display() -> None:
  result = stats.rank_correlation(arm(SPREAD, 1, noise=4.0), arm(SPREAD, 4, noise=4.0), DRAWS)
  assert result.disattenuated.high > 1
  assert result.shown.high == 1 and "capped" in result.shown.reason


def test_distinguishable_pairs_are_counted_by_holm_over_t_tests() -> None:
  o = arm(SPREAD[:5], 3, noise=2.0, replicates=1)
  mean_PN = o.y_MPKN[0, :, 0]
  p = [
    scipy.stats.ttest_rel(mean_PN[i], mean_PN[j]).pvalue
    for i, j in itertools.combinations(range(5), 2)
  ]
  wanted = int(statsmodels.stats.multitest.multipletests(p, method="holm")[0].sum())
  draws = stats.Draws.of(range(60), 1, draws=100)
  assert 0 < wanted < 10
  assert stats.distinguishable_pairs(o, draws) == wanted


def test_a_shared_ranking_is_preserved_and_an_unrelated_one_is_not() -> None:
  models = {"a": arm(SPREAD, 1), "b": arm(SPREAD, 2), "c": arm(SPREAD, 3)}
  same = stats.preserved(models, DRAWS)
  assert same.holds and same.p <= 0.05 and len(same.pairs) == 3
  other = np.random.default_rng(4).permutation(SPREAD)
  mixed = stats.preserved(models | {"d": arm(other, 4)}, DRAWS)
  assert not mixed.holds and mixed.p > 0.5


def test_a_reversed_ranking_is_unpredictable_and_an_equal_one_is_not() -> None:
  shared = stats.preserved({"a": arm(SPREAD, 1), "b": arm(SPREAD, 2)}, DRAWS)
  sp = arm(SPREAD, 1)
  found = stats.unpredictable(sp, arm(-SPREAD, 5), shared, DRAWS)
  assert found.holds and found.p <= 0.05 and found.difference.high < 0
  equal = stats.unpredictable(sp, arm(SPREAD, 6), shared, DRAWS)
  assert not equal.holds and equal.p > 0.05


def test_noise_is_no_evidence_for_unpredictability() -> None:
  shared = stats.preserved({"a": arm(SPREAD, 1), "b": arm(SPREAD, 2)}, DRAWS)
  result = stats.unpredictable(arm(SPREAD, 1), arm(np.zeros(12), 5, noise=3.0), shared, DRAWS)
  assert not result.holds and math.isnan(result.p)
  assert "not measurable" in result.reason


def test_two_personas_are_no_ranking_however_reliably_they_differ() -> None:
  two = np.array([-1.0, 1.0])
  found = stats.rank_correlation(arm(two, 1), arm(-two, 2), DRAWS)
  assert min(found.reliability_x, found.reliability_y) >= MEASURABLE
  assert not found.measurable and "2 personas are too few" in found.reason
  shared = stats.preserved({"a": arm(two, 1), "b": arm(two, 3)}, DRAWS)
  assert not shared.holds and math.isnan(shared.p)
  assert not stats.unpredictable(arm(two, 1), arm(-two, 2), shared, DRAWS).holds


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: stats.preserved({"a": arm(SPREAD, 1)}, DRAWS), "1 model"),
    (lambda: stats.rank_correlation(arm(SPREAD, 1), arm(SPREAD[:5], 1), DRAWS), "the same fit"),
    (
      lambda: stats.reliability(
        stats.Outcomes(np.zeros((2, 12, 3, 60)), "ab", range(12), range(3), range(60)), DRAWS
      ),
      "a ranking has one arm",
    ),
  ],
)
def test_faulty_arguments_are_named(call, message: str) -> None:
  with pytest.raises(ValueError, match=message):
    call()
