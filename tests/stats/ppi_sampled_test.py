"""Prediction-powered means of rows drawn by strata: exact numbers, coverage, the best weight."""

import math

import numpy as np
import pytest

from persona_jax import stats

NAN = math.nan


def test_plain_correction_is_the_judge_plus_the_weighted_error() -> None:
  judged = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
  human = [1, 0, NAN, NAN, 0, 1, NAN, NAN, NAN, NAN]
  weights = [2, 2, NAN, NAN, 3, 3, NAN, NAN, NAN, NAN]  # 2 of 4 and 2 of 6 rows
  found = stats.ppi_sampled_mean(human, judged, weights_N=weights, weight=1)
  assert found.value == pytest.approx(0.4 + (2 * -1 + 3 * 1) / 10)
  # Error of each row: its share of the judge's mean, and of the weighted differences, mean 0.1.
  error = np.array([0.6, 0.6, 0.6, 0.6, -0.4, -0.4, -0.4, -0.4, -0.4, -0.4]) / 10
  error[[0, 1, 4, 5]] += [0.2 * -0.1, 0.2 * -1.1, 0.3 * -0.1, 0.3 * 0.9]
  half = 1.959963985 * math.sqrt((error**2).sum() * 10 / 9)
  assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half))
  assert (found.n, found.reason) == (10, "judge weighted 1, 4 human labels")
  alone = stats.ppi_sampled_mean(human, judged, weights_N=weights, weight=0)
  assert alone.value == pytest.approx((2 * 1 + 3 * 1) / 10)


def sampled(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """120 prompts of 5 rows: true rate .2, a judge that errs, 40 labels of each judge's verdict."""
  rng = np.random.default_rng(seed)
  cluster = np.repeat(np.arange(120), 5)
  p = np.repeat(rng.beta(1, 4, size=120), 5)
  truth = rng.random(600) < p
  judge = np.where(truth, rng.random(600) < 0.9, rng.random(600) < 0.15)
  human, weights = np.full(600, NAN), np.full(600, NAN)
  for side in (False, True):
    members = np.flatnonzero(judge == side)
    drawn = rng.permutation(members)[:40]
    human[drawn], weights[drawn] = truth[drawn], len(members) / len(drawn)
  return human, judge.astype(float), weights, cluster


def test_it_covers_the_truth_where_the_judges_label_is_a_stratum() -> None:
  hits, narrower, means, unweighted = 0, 0, [], []
  for seed in range(400):
    human, judge, weights, cluster = sampled(seed)
    found = stats.ppi_sampled_mean(human, judge, weights_N=weights, clusters_N=cluster)
    hits += found.low <= 0.2 <= found.high
    there = ~np.isnan(human)
    plain = stats.ppi_mean(
      human[there],
      judge[there],
      judge[~there],
      weight=1,
    )
    means.append(found.value)
    unweighted.append(plain.value)
    alone = stats.ppi_sampled_mean(human, judge, weights_N=weights, clusters_N=cluster, weight=0)
    narrower += found.high - found.low < alone.high - alone.low
  assert 0.92 <= hits / 400 <= 0.98
  assert np.mean(means) == pytest.approx(0.2, abs=0.005)
  assert np.mean(unweighted) < 0.1  # as if half of all rows were the judge's bypasses
  assert narrower == 400


def test_tuned_weight_gives_the_least_interval() -> None:
  human, judge, weights, cluster = sampled(3)
  tuned = stats.ppi_sampled_mean(human, judge, weights_N=weights, clusters_N=cluster)
  width = tuned.high - tuned.low
  for weight in np.linspace(0, 1, 21):
    other = stats.ppi_sampled_mean(
      human, judge, weights_N=weights, clusters_N=cluster, weight=float(weight)
    )
    assert width <= other.high - other.low + 1e-12


def test_copied_rows_are_their_clusters_and_constant_labels_have_no_interval() -> None:
  human, judge, weights, _ = sampled(1)
  once = stats.ppi_sampled_mean(human, judge, weights_N=weights, weight=0.7)
  copied = stats.ppi_sampled_mean(
    np.repeat(human, 3),
    np.repeat(judge, 3),
    weights_N=np.repeat(weights, 3),
    clusters_N=np.repeat(np.arange(600), 3),
    weight=0.7,
  )
  assert (copied.low, copied.high) == pytest.approx((once.low, once.high))
  none = stats.ppi_sampled_mean([0, 0, NAN], [0, 0, 0])
  assert none.value == 0 and math.isnan(none.low) and "no spread" in none.reason
  assert "holds no error of the judge" in none.reason


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (dict(human_N=[1, 0], judge_N=[1]), "one row of each"),
    (dict(human_N=[1, 0], judge_N=[1, NAN]), "leave rows without the judge's label out"),
    (dict(human_N=[1, 0], judge_N=[1, 0], weights_N=[1, 0]), "weights_N must be positive"),
    (dict(human_N=[1, 0], judge_N=[1, 0], clusters_N=[1]), "1 cluster labels for 2 rows"),
    (dict(human_N=[1, 0, NAN], judge_N=[1, 0, 0], clusters_N=[1, 1, 2]), "fewer than 2 clusters"),
    (dict(human_N=[1, 0], judge_N=[1, 0], confidence=1.0), "confidence is 1.0"),
  ],
)
def test_faulty_labels_are_named(arguments: dict, message: str) -> None:
  with pytest.raises(ValueError, match=message):
    stats.ppi_sampled_mean(**arguments)
