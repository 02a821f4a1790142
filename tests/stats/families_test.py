"""Adjusted p values against statsmodels, specificity against counting, PPI against its formula."""

import math

import numpy as np
import pandas as pd
import pytest
import statsmodels.stats.multitest

from persona_jax import stats


@pytest.mark.parametrize("correction", ["holm", "fdr_bh"])
def test_each_family_is_adjusted_as_statsmodels_does(correction: str) -> None:
  rng = np.random.default_rng(0)
  table = pd.DataFrame({"family": ["a"] * 7 + ["b"] * 4, "p": rng.random(11) ** 3})
  out = stats.adjust(table, correction)  # type: ignore[arg-type]
  for name in ("a", "b"):
    p_N = table.p[table.family == name].to_numpy()
    rejected, adjusted, *_ = statsmodels.stats.multitest.multipletests(p_N, method=correction)
    np.testing.assert_allclose(out.p_adjusted[out.family == name], adjusted)
    assert (out.rejected[out.family == name] == rejected).all()
  assert out.family_size.tolist() == [7] * 7 + [4] * 4


def test_families_may_have_their_own_corrections() -> None:
  table = pd.DataFrame({"family": ["sure", "sure", "look", "look"], "p": [0.03, 0.04] * 2})
  out = stats.adjust(table, {"sure": "holm", "look": "fdr_bh"})
  assert out.p_adjusted.tolist() == pytest.approx([0.06, 0.06, 0.04, 0.04])
  assert out.rejected.tolist() == [False, False, True, True]


def test_an_untestable_claim_keeps_its_place_in_the_family() -> None:
  out = stats.adjust(pd.DataFrame({"family": "f", "p": [0.02, math.nan, 0.9]}))
  assert out.p_adjusted[0] == pytest.approx(0.06)
  assert math.isnan(out.p_adjusted[1]) and not out.rejected[1]


@pytest.mark.parametrize(
  ("table", "corrections", "message"),
  [
    (pd.DataFrame({"p": [0.1]}), "holm", "lacks"),
    (pd.DataFrame({"p": [1.1], "family": "f"}), "holm", "outside"),
    (pd.DataFrame({"p": [0.1], "family": "f"}), {"g": "holm"}, "'f' has correction None"),
    (pd.DataFrame({"p": [0.1], "family": [None]}), "holm", "missing names"),
  ],
)
def test_faulty_families_are_named(table: pd.DataFrame, corrections, message: str) -> None:
  with pytest.raises(ValueError, match=message):
    stats.adjust(table, corrections)


def test_specificity_counts_controls_at_least_as_large() -> None:
  assert stats.specificity(3.0, [1.0, 2.0, 3.0, 4.0]) == 3 / 5
  assert stats.specificity(1.0, [1.0, 2.0, 3.0], alternative="less") == 2 / 4
  assert stats.specificity(9.0, np.zeros(64)) == 1 / 65
  assert stats.specificity(-9.0, np.zeros(64), alternative="two-sided") == 1 / 65
  with pytest.raises(ValueError, match="none of them missing"):
    stats.specificity(1.0, [math.nan])


def labels(seed: int, n: int = 100, others: int = 900) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  rng = np.random.default_rng(seed)
  truth = rng.random(n + others) < 0.3
  judge = np.where(rng.random(n + others) < 0.1, ~truth, truth)  # .34 on average, not .30
  return truth[:n].astype(float), judge[:n].astype(float), judge[n:].astype(float)


def test_plain_ppi_is_the_judge_plus_the_mean_error_of_the_labelled_rows() -> None:
  human, judged, other = labels(0)
  estimate = stats.ppi_mean(human, judged, other, weight=1)
  assert estimate.value == pytest.approx(other.mean() + (human - judged).mean())
  error = math.sqrt(other.var(ddof=1) / 900 + (human - judged).var(ddof=1) / 100)
  assert estimate.high - estimate.value == pytest.approx(1.959964 * error)


def test_without_weight_only_the_human_labels_count() -> None:
  human, judged, other = labels(1)
  estimate = stats.ppi_mean(human, judged, other, weight=0)
  assert estimate.value == pytest.approx(human.mean())
  useless = stats.ppi_mean(human, np.ones(100), np.ones(900))
  assert (useless.value, useless.low) == pytest.approx((estimate.value, estimate.low))


def test_ppi_covers_the_truth_that_the_judge_misses_and_is_narrower_than_labels_alone() -> None:
  hits, judge_hits, narrower = 0, 0, 0
  for seed in range(500):
    human, judged, other = labels(seed)
    tuned, alone = (stats.ppi_mean(human, judged, other, weight=w) for w in (None, 0))
    hits += tuned.low <= 0.3 <= tuned.high
    narrower += tuned.high - tuned.low < alone.high - alone.low
    judge = stats.mean(other, draws=200)
    judge_hits += judge.low <= 0.3 <= judge.high
  assert 0.92 <= hits / 500 <= 0.975
  assert narrower == 500
  assert judge_hits / 500 < 0.5


def test_ppi_of_copied_rows_is_that_of_their_clusters() -> None:
  human, judged, other = labels(2, 40, 60)
  once = stats.ppi_mean(human, judged, other, weight=0.7)
  copied = stats.ppi_mean(
    *(np.repeat(v, 3) for v in (human, judged, other)),
    clusters_n=np.repeat(np.arange(40), 3),
    clusters_N=np.repeat(np.arange(60), 3),
    weight=0.7,
  )
  assert (copied.low, copied.high) == pytest.approx((once.low, once.high))


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (([1.0, math.nan], [1.0, 0.0], [1.0, 0.0]), "human_n must be one row of finite"),
    (([1.0, 0.0], [1.0], [1.0, 0.0]), "2 human labels and 1"),
    (([1.0], [1.0], [1.0, 0.0]), "1 labelled and 2 other"),
  ],
)
def test_faulty_labels_are_named(arguments: tuple, message: str) -> None:
  with pytest.raises(ValueError, match=message):
    stats.ppi_mean(*arguments)


def test_each_of_exchangeable_effects_is_as_likely_to_be_the_furthest() -> None:
  # Were the median that of the controls alone, the observed effect would lie too far out.
  skewed_R = np.random.default_rng(0).exponential(size=40)
  found = [
    stats.specificity(skewed_R[i], np.delete(skewed_R, i), alternative="two-sided")
    for i in range(len(skewed_R))
  ]
  middle = (np.sort(skewed_R)[19] + np.sort(skewed_R)[20]) / 2  # two are as near: they share a p
  assert sorted(found) == sorted(
    (np.abs(skewed_R - middle) >= abs(x - middle)).sum() / 40 for x in skewed_R
  )
  assert all(np.mean([p <= k / 40 for p in found]) <= k / 40 for k in range(1, 41))
