"""Intervals against published numbers, against scipy on the same draws, and by their coverage."""

import math

import numpy as np
import pytest
import scipy.stats

from persona_jax import stats


# Newcombe (1998), Stat. Med. 17: 857–872, table I: Wilson score method without continuity
# correction, 95 %.
@pytest.mark.parametrize(
  ("successes", "n", "low", "high"),
  [
    (81, 263, 0.2553, 0.3662),
    (15, 148, 0.0624, 0.1605),
    (0, 20, 0.0000, 0.1611),
    (1, 29, 0.0061, 0.1718),
  ],
)
def test_rate_gives_newcombes_wilson_intervals(
  successes: int, n: int, low: float, high: float
) -> None:
  estimate = stats.rate(successes, n)
  assert estimate.value == successes / n
  assert estimate.n == n
  assert estimate.low == pytest.approx(low, abs=5e-5)
  assert estimate.high == pytest.approx(high, abs=5e-5)


def test_rate_of_five_in_ten_is_wilsons_formula() -> None:
  z = 1.959963984540054
  half = z * math.sqrt(0.25 / 10 + z**2 / 400) / (1 + z**2 / 10)
  estimate = stats.rate(5, 10)
  assert (estimate.low, estimate.high) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-12)


def test_rate_narrows_with_less_confidence() -> None:
  wide, narrow = stats.rate(30, 100), stats.rate(30, 100, confidence=0.5)
  assert wide.low < narrow.low < 0.3 < narrow.high < wide.high


def test_rate_of_no_trials_is_nan_with_a_reason() -> None:
  estimate = stats.rate(0, 0)
  assert math.isnan(estimate.value) and math.isnan(estimate.low) and math.isnan(estimate.high)
  assert (estimate.n, estimate.reason) == (0, "no trials")


@pytest.mark.parametrize(("successes", "n"), [(3, 2), (-1, 2), (1.5, 3), (float("nan"), 3)])
def test_rate_refuses_counts_that_are_none(successes: float, n: int) -> None:
  with pytest.raises(ValueError, match="rate needs"):
    stats.rate(successes, n)  # type: ignore[arg-type]


def test_rate_takes_numpy_counts() -> None:
  assert stats.rate(np.int64(3), np.int32(12)) == stats.rate(3, 12)


@pytest.mark.parametrize(("method", "scipy_method"), [("percentile", "percentile"), ("bca", "BCa")])
def test_mean_without_clusters_is_scipys_bootstrap_on_the_same_draws(
  method: str, scipy_method: str
) -> None:
  values_N = np.random.default_rng(1).exponential(size=40)
  ours = stats.mean(values_N, method=method, draws=1000, seed=7)  # type: ignore[arg-type]
  theirs = scipy.stats.bootstrap(
    (values_N,), np.mean, n_resamples=1000, method=scipy_method, rng=np.random.default_rng(7)
  ).confidence_interval
  assert ours.value == pytest.approx(values_N.mean(), abs=1e-15)
  assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_mean_of_equal_clusters_is_the_bootstrap_of_cluster_means() -> None:
  values_KM = np.random.default_rng(2).normal(size=(15, 4))
  by_row = stats.mean(values_KM.ravel(), np.repeat(np.arange(15), 4))
  by_cluster = stats.mean(values_KM.mean(axis=1))
  assert (by_row.low, by_row.high) == pytest.approx((by_cluster.low, by_cluster.high), abs=1e-12)
  assert (by_row.n, by_cluster.n) == (60, 15)


def test_mean_weighs_rows_and_not_clusters_alike() -> None:
  assert stats.mean([0, 0, 0, 4], ["a", "a", "a", "b"]).value == 1.0


def test_rows_in_another_order_give_the_same_interval() -> None:
  rng = np.random.default_rng(3)
  values_N, cluster_N = rng.normal(size=50), rng.integers(0, 12, 50)
  order_N = rng.permutation(50)
  one, other = stats.mean(values_N, cluster_N), stats.mean(values_N[order_N], cluster_N[order_N])
  assert (one.low, one.high) == pytest.approx((other.low, other.high), abs=1e-12)


def test_a_seed_gives_one_interval_and_another_seed_another() -> None:
  values_N = np.random.default_rng(4).normal(size=30)
  assert stats.mean(values_N, seed=5) == stats.mean(values_N, seed=5)
  assert stats.mean(values_N, seed=5).low != stats.mean(values_N, seed=6).low


def clustered(seed: int) -> tuple[np.ndarray, np.ndarray]:
  """30 clusters of 4 rows, true mean 0; half of the variance is between clusters."""
  rng = np.random.default_rng(seed)
  values_KM = rng.normal(size=(30, 1)) + rng.normal(size=(30, 4))
  return values_KM.ravel(), np.repeat(np.arange(30), 4)


def test_cluster_bootstrap_covers_the_true_mean_and_the_row_bootstrap_does_not() -> None:
  worlds = 400
  hits = {"clusters": 0, "rows": 0}
  for seed in range(worlds):
    values_N, cluster_N = clustered(seed)
    for name, clusters in (("clusters", cluster_N), ("rows", None)):
      estimate = stats.mean(values_N, clusters, draws=400, seed=seed)
      hits[name] += estimate.low <= 0 <= estimate.high
  # A percentile interval over 30 clusters covers a little less than its nominal .95.
  assert 0.90 <= hits["clusters"] / worlds <= 0.975
  assert hits["rows"] / worlds <= 0.85


def test_cluster_interval_is_as_wide_as_the_t_interval_of_cluster_means() -> None:
  values_N, cluster_N = clustered(0)
  means_K = values_N.reshape(30, 4).mean(axis=1)
  theirs = scipy.stats.ttest_1samp(means_K, 0).confidence_interval(0.95)
  ours = stats.mean(values_N, cluster_N, draws=20_000)
  assert ours.high - ours.low == pytest.approx(theirs.high - theirs.low, rel=0.08)


def test_difference_is_the_mean_of_paired_differences() -> None:
  rng = np.random.default_rng(5)
  prompt_N = rng.normal(scale=10, size=60)
  a_N, b_N = prompt_N + 1 + rng.normal(size=60), prompt_N + rng.normal(size=60)
  cluster_N = np.repeat(np.arange(20), 3)
  paired = stats.difference(a_N, b_N, cluster_N)
  alone = stats.mean(a_N - b_N, cluster_N)
  assert (paired.value, paired.low, paired.high) == (alone.value, alone.low, alone.high)
  assert paired.excludes(0)
  # Unpaired, the spread of the prompts would drown the difference.
  assert stats.mean(a_N, cluster_N).high - stats.mean(a_N, cluster_N).low > 4


def test_difference_of_swapped_sides_is_mirrored() -> None:
  a_N, b_N = np.random.default_rng(6).normal(size=(2, 40))
  one, other = stats.difference(a_N, b_N), stats.difference(b_N, a_N)
  assert (other.value, other.low, other.high) == pytest.approx((-one.value, -one.high, -one.low))


@pytest.mark.parametrize(("method", "scipy_method"), [("percentile", "percentile"), ("bca", "BCa")])
def test_spearman_with_ties_is_scipys_on_the_same_draws(method: str, scipy_method: str) -> None:
  rng = np.random.default_rng(7)
  x_N = rng.integers(0, 8, 25).astype(float)
  y_N = x_N + rng.integers(-4, 5, 25)

  def statistic(x: np.ndarray, y: np.ndarray) -> float:
    return float(scipy.stats.spearmanr(x, y).statistic)

  theirs = scipy.stats.bootstrap(
    (x_N, y_N),
    statistic,
    paired=True,
    vectorized=False,
    n_resamples=200,
    method=scipy_method,
    rng=np.random.default_rng(3),
  ).confidence_interval
  ours = stats.spearman(x_N, y_N, method=method, draws=200, seed=3)  # type: ignore[arg-type]
  assert ours.value == pytest.approx(statistic(x_N, y_N), abs=1e-12)
  assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_spearman_over_clusters_of_copies_is_that_of_the_clusters() -> None:
  x_K, y_K = np.random.default_rng(8).normal(size=(2, 12))
  cluster_N = np.repeat(np.arange(12), 3)
  copies = stats.spearman(np.repeat(x_K, 3), np.repeat(y_K, 3), cluster_N, method="percentile")
  single = stats.spearman(x_K, y_K, method="percentile")
  assert (copies.value, copies.low, copies.high) == pytest.approx(
    (single.value, single.low, single.high), abs=1e-9
  )


def test_twelve_personas_pin_a_rank_correlation_only_loosely() -> None:
  # r = .71 with n = 12 has a 95 % interval of about .15 to .92.
  rng = np.random.default_rng(9)
  widths = []
  for _ in range(20):
    x_N = rng.normal(size=12)
    estimate = stats.spearman(x_N, x_N + rng.normal(size=12), draws=1000)
    widths.append(estimate.high - estimate.low)
  assert 0.5 < np.median(widths) < 1.1


@pytest.mark.parametrize(
  ("x", "y", "reason"),
  [
    ([1, 1, 1, 1], [1, 2, 3, 4], "x is constant"),
    ([1, 2, 3, 4], [2, 2, 2, 2], "y is constant"),
    ([1, 2], [2, 1], "2 points are too few"),
    ([], [], "no values"),
  ],
)
def test_an_undefined_rank_correlation_is_nan_with_a_reason(
  x: list[float], y: list[float], reason: str
) -> None:
  estimate = stats.spearman(x, y)
  assert math.isnan(estimate.value) and math.isnan(estimate.low) and math.isnan(estimate.high)
  assert reason in estimate.reason
  assert estimate.n == len(x)


def test_draws_without_a_rank_correlation_take_the_interval_away_and_are_counted() -> None:
  estimate = stats.spearman([0, 0, 0, 1], [1, 2, 3, 4])
  assert not math.isnan(estimate.value)
  assert math.isnan(estimate.low) and math.isnan(estimate.high)
  assert "of 4000 bootstrap draws are undefined" in estimate.reason


@pytest.mark.parametrize(("method", "scipy_method"), [("percentile", "percentile"), ("bca", "BCa")])
def test_dose_slope_is_linregress_on_the_same_draws(method: str, scipy_method: str) -> None:
  rng = np.random.default_rng(10)
  coef_N = rng.uniform(1000, 1001, size=30)
  y_N = 0.5 * coef_N + rng.normal(scale=0.2, size=30)

  def statistic(x: np.ndarray, y: np.ndarray) -> float:
    return float(scipy.stats.linregress(x, y).slope)

  theirs = scipy.stats.bootstrap(
    (coef_N, y_N),
    statistic,
    paired=True,
    vectorized=False,
    n_resamples=200,
    method=scipy_method,
    rng=np.random.default_rng(11),
  ).confidence_interval
  ours = stats.dose_slope(coef_N, y_N, method=method, draws=200, seed=11)  # type: ignore[arg-type]
  assert ours.value == pytest.approx(statistic(coef_N, y_N), rel=1e-12)
  assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=1e-6)


def test_dose_slope_of_item_lines_is_the_bootstrap_of_their_slopes() -> None:
  # Every item sees every coefficient, so the pooled slope of a draw is the mean of its items'.
  coef_C = np.array([-0.4, -0.2, 0.0, 0.2, 0.4])
  rng = np.random.default_rng(12)
  slope_K, height_K = rng.normal(1, 0.5, 24), rng.normal(scale=5, size=24)
  y_KC = height_K[:, None] + slope_K[:, None] * coef_C
  ours = stats.dose_slope(np.tile(coef_C, 24), y_KC.ravel(), np.repeat(np.arange(24), 5))
  by_item = stats.mean(slope_K)
  assert (ours.value, ours.low, ours.high) == pytest.approx(
    (by_item.value, by_item.low, by_item.high), abs=1e-9
  )


def test_one_coefficient_has_no_slope() -> None:
  estimate = stats.dose_slope([2, 2, 2], [1, 2, 3])
  assert math.isnan(estimate.value)
  assert "only one coefficient" in estimate.reason


def test_a_missing_value_makes_the_mean_nan_and_is_counted() -> None:
  estimate = stats.mean([1.0, None, 3.0, float("nan")])
  assert math.isnan(estimate.value)
  assert estimate.n == 4
  assert estimate.reason == "2 of 4 values are missing"


def test_missing_values_are_left_out_only_when_asked_and_said() -> None:
  estimate = stats.mean([1.0, None, 3.0, 5.0], missing="drop")
  assert (estimate.value, estimate.n) == (3.0, 3)
  assert estimate.reason == "1 of 4 values are missing and left out"
  assert not math.isnan(estimate.low)


def test_a_pair_with_a_missing_side_is_missing() -> None:
  estimate = stats.difference([1, 2, 3, None], [0, None, 1, 1], missing="drop")
  assert (estimate.value, estimate.n) == (1.5, 2)
  assert estimate.reason == "2 of 4 values are missing and left out"


def test_one_cluster_has_a_value_and_no_interval() -> None:
  estimate = stats.mean([1, 2, 3], ["a", "a", "a"])
  assert estimate.value == 2
  assert math.isnan(estimate.low) and math.isnan(estimate.high)
  assert estimate.reason == "one cluster gives no interval"


def test_equal_values_do_not_pass_for_certainty() -> None:
  estimate = stats.mean([0, 0, 0, 0])
  assert estimate.value == 0
  assert math.isnan(estimate.low) and math.isnan(estimate.high)
  assert "the same value" in estimate.reason
  assert not estimate.excludes(1)


@pytest.mark.parametrize(
  ("arguments", "options", "message"),
  [
    (([1, 2], ["a"]), {}, "different length: .*'values': 2, 'clusters': 1"),
    (([1, float("inf")],), {}, "values holds infinite values"),
    (([[1, 2]],), {}, r"values has shape \(1, 2\)"),
    (([1, 2],), {"method": "basic"}, "'basic'; 'percentile' or 'bca' fits"),
    (([1, 2],), {"missing": "zero"}, "'zero'; 'nan' or 'drop' fits"),
    (([1, 2],), {"draws": 10}, "draws is 10; at least 100"),
    (([1, 2],), {"confidence": 95}, "confidence is 95"),
  ],
)
def test_faulty_arguments_are_named(arguments: tuple, options: dict, message: str) -> None:
  with pytest.raises(ValueError, match=message):
    stats.mean(*arguments, **options)


def test_an_estimate_reads_as_value_interval_and_size() -> None:
  assert str(stats.Estimate(0.25, 0.125, 0.5, 8)) == "0.25 [0.125, 0.5] (n=8)"
  assert str(stats.Estimate(0.25, math.nan, math.nan, 1, "why")) == "0.25 [nan, nan] (n=1) (why)"


@pytest.mark.parametrize(
  ("low", "high", "excludes"), [(0.1, 0.2, True), (-0.2, -0.1, True), (-0.1, 0.1, False)]
)
def test_an_interval_excludes_what_lies_outside(low: float, high: float, excludes: bool) -> None:
  assert stats.Estimate(0.0, low, high, 5).excludes(0) is excludes


KEYS = np.repeat([1, -1], [18, 6])


def test_a_shift_of_all_items_alike_adds_nothing_to_a_stratified_interval() -> None:
  rng = np.random.default_rng(11)
  plain_N, weight_N = rng.normal(size=24), 24 / (2 * np.where(KEYS == 1, 18, 6)) * KEYS
  alone = stats.mean(weight_N * plain_N, strata=KEYS)
  shifted = stats.mean(weight_N * (plain_N + 5), strata=KEYS)
  assert (shifted.value, shifted.low, shifted.high) == pytest.approx(
    (alone.value, alone.low, alone.high)
  )
  loose = stats.mean(weight_N * (plain_N + 5))
  assert loose.high - loose.low > 3 * (shifted.high - shifted.low)


def test_a_stratified_mean_has_the_standard_error_of_its_strata() -> None:
  value_N = np.random.default_rng(12).normal(size=24) + 10 * KEYS
  error = math.sqrt(18 * value_N[:18].var() + 6 * value_N[18:].var()) / 24
  estimate = stats.mean(value_N, strata=KEYS, draws=40_000)
  assert estimate.value == value_N.mean()
  assert (estimate.high - estimate.low) / 2 == pytest.approx(1.96 * error, rel=0.03)


def test_a_stratified_slope_ignores_a_shift_of_all_items_with_the_dose() -> None:
  rng = np.random.default_rng(13)
  item_N, coef_N = np.tile(np.arange(24), 4), np.repeat([-0.2, -0.1, 0.1, 0.2], 24)
  key_N = KEYS[item_N]
  weight_N = 24 / (2 * np.where(key_N == 1, 18, 6)) * key_N
  own_N = rng.normal(size=24)[item_N] * coef_N
  alone = stats.dose_slope(coef_N, weight_N * own_N, item_N, strata=key_N)
  shifted = stats.dose_slope(coef_N, weight_N * (own_N + 7 * coef_N), item_N, strata=key_N)
  assert (shifted.value, shifted.low, shifted.high) == pytest.approx(
    (alone.value, alone.low, alone.high)
  )


def test_a_cluster_in_two_strata_is_refused_and_a_stratum_of_one_has_no_interval() -> None:
  with pytest.raises(ValueError, match="cluster lies in two strata"):
    stats.mean([1, 2, 3], ["a", "a", "b"], strata=[0, 1, 1])
  alone = stats.mean([1.0, 2.0, 3.0], strata=[0, 0, 1])
  assert math.isnan(alone.low) and alone.reason == "a stratum of one cluster gives no interval"
