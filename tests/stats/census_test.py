"""The census regression against scipy and scikit-learn, and what it refuses."""

import math

import numpy as np
import pytest
import scipy.stats
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict

from persona_jax import stats


def world(
  slope: float, seed: int = 0, directions: int = 60, prompts: int = 80, own: float = 0.3
) -> tuple[np.ndarray, np.ndarray]:
  rng = np.random.default_rng(seed)
  x_R = rng.normal(size=directions)
  y_RN = slope * x_R[:, None] + own * rng.normal(size=(directions, 1))
  return y_RN + rng.normal(size=(directions, prompts)), x_R


def test_the_slope_is_that_of_least_squares_on_mean_effects() -> None:
  y_RN, x_R = world(-0.4)
  result = stats.census(y_RN, x_R, draws=500)
  fit = scipy.stats.linregress(x_R, y_RN.mean(axis=1))
  assert result.slope.value == pytest.approx(fit.slope)
  assert result.intercept == pytest.approx(fit.intercept)
  assert result.slope.high < 0 and result.p_negative < 0.01 < 0.99 < result.p_positive


def test_with_one_sort_of_noise_the_interval_is_that_of_linregress() -> None:
  y_RN, x_R = world(-0.4, directions=200, own=2.0)
  result = stats.census(y_RN, x_R)
  fit = scipy.stats.linregress(x_R, y_RN.mean(axis=1))
  half = scipy.stats.t.ppf(0.975, 198) * fit.stderr
  assert result.slope.high - result.slope.low == pytest.approx(2 * half, rel=0.12)


def test_a_slope_that_differs_between_prompts_widens_the_interval() -> None:
  y_RN, x_R = world(-0.4, own=0.1)
  tilt_N = np.random.default_rng(9).normal(scale=3.0, size=80)
  tilted = stats.census(y_RN + x_R[:, None] * (tilt_N - tilt_N.mean()), x_R)
  plain = stats.census(y_RN, x_R)
  assert tilted.slope.value == pytest.approx(plain.slope.value)
  assert tilted.slope.high - tilted.slope.low > 3 * (plain.slope.high - plain.slope.low)


def test_copies_of_directions_in_one_group_add_nothing() -> None:
  y_RN, x_R = world(-0.4, own=1.0)
  once = stats.census(y_RN, x_R).slope
  copies = stats.census(np.repeat(y_RN, 3, axis=0), np.repeat(x_R, 3), np.repeat(np.arange(60), 3))
  assert copies.slope.value == pytest.approx(once.value)
  assert copies.slope.high - copies.slope.low == pytest.approx(once.high - once.low, rel=0.08)


def test_r2_leaves_out_whole_groups_as_scikit_learn_does() -> None:
  y_RN, x_R = world(-0.4)
  y_R, group_R = y_RN.mean(axis=1), np.arange(60) // 4
  predicted_R = cross_val_predict(
    LinearRegression(), x_R[:, None], y_R, groups=group_R, cv=LeaveOneGroupOut()
  )
  rest_R = np.array([y_R[group_R != g].mean() for g in group_R])
  wanted = 1 - ((y_R - predicted_R) ** 2).sum() / ((y_R - rest_R) ** 2).sum()
  assert stats.cross_validated_r2(y_R, x_R, group_R) == pytest.approx(wanted)
  assert stats.census(y_RN, x_R, group_R, draws=200).r2 == pytest.approx(wanted)


def test_alignment_that_owes_nothing_to_effects_predicts_nothing() -> None:
  y_RN, _ = world(-0.4, seed=1)
  x_R = np.random.default_rng(2).normal(size=60)
  assert stats.census(y_RN, x_R, draws=200).r2 < 0.05


def test_the_slope_leaves_the_band_of_random_alignments_only_if_it_is_special() -> None:
  y_RN, x_R = world(-0.4)
  control_KR = np.random.default_rng(3).normal(scale=0.1, size=(256, 60))
  special = stats.census(y_RN, x_R, control_x_KR=control_KR, draws=200)
  assert special.p_specific == 1 / 257
  assert special.slope.value * x_R.std() < special.band[0] < 0 < special.band[1]
  common = stats.census(y_RN, control_KR[0], control_x_KR=control_KR, draws=200)
  assert common.p_specific > 0.05


def test_composites_are_predicted_from_poles() -> None:
  assert stats.predict([-1.0, 0.0, 1.0], [3.0, 1.0, -1.0], [0.5, 2.0]).tolist() == [0.0, -3.0]
  assert np.isnan(stats.predict([1.0, 1.0], [0.0, 1.0], [2.0])).all()


@pytest.mark.parametrize(
  ("x", "groups", "reason"),
  [
    (np.full(60, 0.3), None, "x is constant"),
    (np.arange(60.0), np.zeros(60), "60 directions in 1 groups are too few"),
  ],
)
def test_an_undefined_slope_is_nan_with_a_reason(x: np.ndarray, groups, reason: str) -> None:
  result = stats.census(world(-0.4)[0], x, groups)
  assert math.isnan(result.slope.value) and math.isnan(result.p_negative)
  assert reason in result.reason and reason in result.slope.reason


@pytest.mark.parametrize(
  ("y", "x", "more", "message"),
  [
    (np.zeros((3, 4)), np.zeros(4), {}, r"\[R, N\] and \[R\] fit"),
    (np.full((3, 4), math.nan), np.zeros(3), {}, "missing or infinite"),
    (np.zeros((3, 4)), np.arange(3.0), {"groups_R": [0, 1]}, "groups_R has shape"),
    (np.eye(3), np.arange(3.0), {"control_x_KR": np.zeros((2, 4))}, r"\[K, 3\] fits"),
    (np.eye(3), np.arange(3.0), {"draws": 5}, "draws is 5"),
  ],
)
def test_faulty_arguments_are_named(y, x, more: dict, message: str) -> None:
  with pytest.raises(ValueError, match=message):
    stats.census(y, x, **more)
