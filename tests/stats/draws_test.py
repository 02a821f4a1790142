"""The shared draws: weights, means by brute force, two-way errors, calibration, duality."""

import math

import numpy as np
import pytest
import scipy.stats

from persona_jax import stats


def outcomes(shape: tuple[int, ...] = (2, 3, 3, 20), seed: int = 0, **more) -> stats.Outcomes:
  y_MPKN = np.random.default_rng(seed).normal(size=shape)
  m, p, k, n = (range(size) for size in shape)
  return stats.Outcomes(y_MPKN, m, p, k, n, **more)


def test_weights_sum_to_the_number_of_clusters_and_of_replicates() -> None:
  draws = stats.Draws.of(["a", "b", "b", "c"], 3, draws=500)
  assert draws.clusters_C.tolist() == ["a", "b", "c"]
  assert (draws.cluster_BC.sum(axis=1) == 3).all()
  np.testing.assert_allclose(draws.replicate_BS.sum(axis=1), 3)
  assert (draws.replicate_BS >= 0).all()


def test_two_draws_of_three_replicates_have_the_unbiased_variance_of_their_mean() -> None:
  draws = stats.Draws.of(range(2), 3, draws=200_000)
  value_S = np.array([0.0, 1.0, 5.0])
  spread = (draws.replicate_BS @ value_S / 3).var()
  assert spread == pytest.approx(value_S.var(ddof=1) / 3, rel=0.01)


def test_means_are_weighted_means_of_what_is_there() -> None:
  rng = np.random.default_rng(1)
  y_MPKN = rng.normal(size=(1, 2, 2, 4))
  y_MPKN[0, 1, 0, :2] = math.nan
  o = stats.Outcomes(y_MPKN, ("SP",), ("C+", "A+"), (0, 1), range(4), np.array([0, 0, 1, 2]))
  draws = stats.Draws.of(o.cluster_N, 2, draws=100)
  means_BMP = draws.means(o)
  for b in (0, 17):
    weight_KN = np.outer(draws.replicate_BS[b], draws.cluster_BC[b][o.cluster_N])
    for p in (0, 1):
      there_KN = ~np.isnan(y_MPKN[0, p])
      brute = np.average(y_MPKN[0, p][there_KN], weights=weight_KN[there_KN])
      assert means_BMP[b, 0, p] == pytest.approx(brute)


def test_leave_one_out_is_the_mean_without_one_cluster() -> None:
  o = outcomes(cluster_N=np.arange(20) // 2)
  left_CMP = stats.Draws.of(o.cluster_N, 3, draws=100).leave_one_out(o)
  np.testing.assert_allclose(left_CMP[3], np.delete(o.y_MPKN, [6, 7], axis=3).mean(axis=(2, 3)))


def test_arms_and_models_share_their_draws() -> None:
  o = outcomes()
  draws = stats.Draws.of(o.cluster_N, 3, draws=200)
  shifted = stats.Outcomes(o.y_MPKN + 1, o.arms, o.personas, o.replicates, o.prompts)
  np.testing.assert_allclose(draws.means(shifted) - draws.means(o), 1.0)


def test_two_way_error_recovers_the_variance_components() -> None:
  rng = np.random.default_rng(2)
  worlds, s, c = 20_000, 3, 12
  y = rng.normal(size=(worlds, 1, c)) + 0.5 * rng.normal(size=(worlds, s, 1))
  y = y + 2.0 * rng.normal(size=(worlds, s, c))
  influence = (y - y.mean(axis=(1, 2), keepdims=True)) / (s * c)
  error, _ = stats.two_way_error(influence)
  truth = 1 / c + 0.25 / s + 4 / (s * c)
  assert y.mean(axis=(1, 2)).var() == pytest.approx(truth, rel=0.03)
  # The floor at the larger single component makes it a little large.
  assert 1.0 <= (error**2).mean() / truth < 1.15


def test_without_replicates_the_error_and_interval_are_the_t_interval_of_clusters() -> None:
  o = outcomes((1, 1, 1, 30))
  draws = stats.Draws.of(o.cluster_N, 1, draws=40_000)
  value_N = o.y_MPKN[0, 0, 0]
  point, error, df = draws.errors(o, [[[1.0]]])
  assert (point[0], error[0], df[0]) == pytest.approx(
    (value_N.mean(), scipy.stats.sem(value_N), 29.0)
  )
  theirs = scipy.stats.ttest_1samp(value_N, 0).confidence_interval(0.95)
  ours = draws.contrasts(o, [[[1.0]]]).estimate()
  assert ours.high - ours.low == pytest.approx(theirs.high - theirs.low, rel=0.02)


@pytest.mark.parametrize("df", [1.0, 2.3, 30.0])
def test_calibrated_normal_draws_are_students_t(df: float) -> None:
  z_B = scipy.stats.norm.ppf((np.arange(4000) + 0.5) / 4000)
  t_B = stats.calibrated(z_B[:, None], [0.0], [2.0 * z_B.std()], [df])[:, 0]
  for share in (0.005, 0.2, 0.975):
    assert np.quantile(t_B, share) == pytest.approx(2 * scipy.stats.t.ppf(share, df), rel=0.03)


def test_calibration_keeps_the_order_of_draws_and_the_point() -> None:
  raw_B = np.random.default_rng(3).gamma(2.0, size=501)
  out_B = stats.calibrated(raw_B[:, None], [2.0], [0.3], [4.0])[:, 0]
  assert ((out_B > 2.0) == (raw_B > 2.0)).all()
  assert np.isnan(stats.calibrated(np.ones((500, 1)), [1.0], [0.3], [4.0])).all()


def test_one_sided_p_is_dual_to_the_interval() -> None:
  draw_B = np.random.default_rng(4).normal(1.0, 0.5, size=3999)
  for level in (0.01, 0.025, 0.05):
    low = np.sort(draw_B)[round(level * 4000) - 1]
    assert stats.p_above(draw_B, low - 1e-9) <= level
    assert stats.p_above(draw_B, low + 1e-9) > level
  assert stats.p_below(-draw_B, -0.2) == stats.p_above(draw_B, 0.2)
  assert stats.p_above(draw_B, -99.0) == 1 / 4000


def test_a_draw_that_is_undefined_takes_the_p_away() -> None:
  assert math.isnan(stats.p_above(np.array([1.0, math.nan, 2.0]), 0.0))


def test_bca_interval_is_scipys_on_the_same_draws() -> None:
  value_N = np.random.default_rng(5).exponential(size=25)
  theirs = scipy.stats.bootstrap(
    (value_N,), np.mean, method="BCa", n_resamples=500, rng=np.random.default_rng(6)
  )
  jack_J = [np.delete(value_N, i).mean() for i in range(25)]
  ours = stats.interval(
    theirs.bootstrap_distribution, value_N.mean(), method="bca", leave_one_out_J=jack_J
  )
  wanted = theirs.confidence_interval
  assert (ours.low, ours.high) == pytest.approx((wanted.low, wanted.high), rel=1e-9)


def test_bca_falls_back_to_percentiles_and_says_so() -> None:
  draw_B = np.random.default_rng(7).normal(size=400)
  ours = stats.interval(draw_B, 99.0, method="bca", leave_one_out_J=np.arange(9.0))
  assert (ours.low, ours.high) == pytest.approx(tuple(np.quantile(draw_B, [0.025, 0.975])))
  assert "percentile interval" in ours.reason


def test_cells_without_a_success_get_wilsons_interval_over_clusters() -> None:
  y_MPKN = np.zeros((1, 2, 3, 20))
  y_MPKN[0, 1, :, :10] = 1.0
  o = stats.Outcomes(y_MPKN, ("SP",), ("C+", "A+"), range(3), range(20))
  table = stats.Draws.of(o.cluster_N, 3, draws=500).rates(o)
  wilson = stats.rate(0, 20)
  assert (table.low[0], table.high[0]) == (wilson.low, wilson.high)
  assert "Wilson interval over 20 clusters" in table.reason[0]
  assert table.low[1] < 0.5 < table.high[1]


def test_an_empty_cell_is_nan_and_its_values_are_counted_as_missing() -> None:
  o = outcomes()
  y_MPKN = o.y_MPKN.copy()
  y_MPKN[1, 2] = math.nan
  o = stats.Outcomes(y_MPKN, o.arms, o.personas, o.replicates, o.prompts)
  draws = stats.Draws.of(o.cluster_N, 3, draws=500)
  table = draws.rates(o)
  assert table.missing.tolist() == [0, 0, 0, 0, 0, 60]
  assert math.isnan(table.value[5]) and table.reason[5] == "no values"
  gap = draws.contrasts(o, [[[1.0, -1.0, 0.0], [0.0, 0.0, 0.0]]]).estimate()
  assert gap.value == pytest.approx(o.mean_MP[0, 0] - o.mean_MP[0, 1]) and gap.n == 120


def test_one_cluster_has_no_interval() -> None:
  o = outcomes((1, 1, 3, 4), cluster_N=np.zeros(4))
  estimate = stats.Draws.of(o.cluster_N, 3, draws=500).contrasts(o, [[[1.0]]]).estimate()
  assert math.isnan(estimate.low) and estimate.value == pytest.approx(o.y_MPKN.mean())


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: stats.Draws.of([], 3), "no clusters"),
    (lambda: stats.Draws.of([1], 0), "n_replicates is 0"),
    (lambda: stats.Draws.of([1], 1, draws=10), "draws is 10"),
    (lambda: stats.Draws.of(range(20), 2, draws=100).means(outcomes()), "3 replicates and the"),
    (lambda: stats.Draws.of(range(19), 3, draws=100).means(outcomes()), "20 clusters that are not"),
    (
      lambda: stats.Draws.of(range(20), 3, draws=100).contrasts(outcomes(), [[1.0]]),
      r"\[Q, 2, 3\] fits",
    ),
    (lambda: stats.interval([1.0], 1.0, method="bca"), "BCa needs"),
    (lambda: stats.interval([1.0], 1.0, confidence=95), "confidence is 95"),
  ],
)
def test_faulty_arguments_are_named(call, message: str) -> None:
  with pytest.raises(ValueError, match=message):
    call()
