"""Points of a census and the line through poles, on effects that are made up."""

import numpy as np
import pytest

import persona_jax as pj
from configs.persona_non_grata import get_config
from persona_jax.geometry.census import Census
from persona_jax.geometry.gradients import Gradients
from persona_jax.geometry.metrics import EUCLIDEAN
from persona_jax.studies import persona_non_grata as product
from persona_jax.studies.persona_non_grata import effects
from tests.planted.study import MODEL_FIELDS

BLOCK, KAPPA = 1, 0.2
ANGLES = {"P1": 0.2, "P3": 1.2, "P5": 2.0, "P12": 0.7, "P11": 0.7 + np.pi}


def vector(angle: float, concept: str) -> pj.Direction:
  v_LD = np.zeros((2, 3))
  v_LD[BLOCK] = np.cos(angle), np.sin(angle), 0
  return pj.Direction(v_LD[None], concept)


R = vector(0.0, "refusal")
OWN = [vector(angle, name) for name, angle in ANGLES.items()]


def taken(names: list[str], slope: float, damage: float) -> list[Census]:
  """Returns both signs' effects: an odd part along refusal and an even one, over two prompts."""
  kept = [d for d in OWN if d.concept in names]
  found = []
  for sign in (1, -1):
    odd_R = sign * slope * np.cos([ANGLES[d.concept] for d in kept])
    delta_RN = (odd_R + damage)[:, None] + [0.1, -0.1]
    found.append(
      Census(
        tuple(d.concept for d in kept), ("persona",) * len(kept), tuple(kept), BLOCK,
        sign * KAPPA, "resid", delta_RN, np.asarray([1.0, 2.0]),
      )
    )  # fmt: skip
  return found


def test_damage_that_both_signs_do_moves_the_line_and_is_not_taken_for_alignment() -> None:
  people = taken(["P1", "P3", "P5", "P12"], slope=3.0, damage=-0.7)
  table = effects.predicted(people, OWN, ["P11", "P12"], R).set_index(["outcome", "persona"])
  assert list(table.loc["log_odds"].index) == ["P12", "P11"]
  for name in ("P12", "P11"):  # the one is the other's negative, so the opposite dose is its effect
    row = table.loc["log_odds", name]
    truth = 3.0 * np.cos(ANGLES[name]) - 0.7
    assert row["alignment"] == pytest.approx(np.cos(ANGLES[name]), abs=1e-6)
    assert row["effect"] == pytest.approx(truth, abs=1e-6)
    assert row["predicted"] == pytest.approx(truth, abs=1e-6)
    assert row["slope"] == pytest.approx(3.0, abs=1e-6)
    assert row["intercept"] == pytest.approx(-0.7, abs=1e-6)
    assert (row["points"], row["reason"]) == (6, "")
  odds_N = 3.0 * np.cos(0.7) - 0.7 + np.asarray([0.1, -0.1])
  p = (1 / (1 + np.exp(np.asarray([1.0, 2.0]) + odds_N)) - 1 / (1 + np.exp([1.0, 2.0]))).mean()
  assert table.loc["p_bypass", "P12"]["effect"] == pytest.approx(p, abs=1e-6)


def test_a_composite_without_enough_poles_has_an_effect_and_a_reason() -> None:
  table = effects.predicted(taken(["P1", "P12"], 1.0, 0.0), OWN, ["P12"], R)
  assert list(table["reason"]) == ["a line needs 3 poles; 1 are measured"] * 2
  assert table["predicted"].isna().all() and table["effect"].notna().all()
  assert effects.predicted((), OWN, ["P12"], R).empty


def test_points_have_intervals_and_the_predictors_of_the_direction_that_was_added() -> None:
  settings = product.Settings.of(
    {k: v for k, v in get_config().to_dict().items() if k not in MODEL_FIELDS} | {"draws": 400}
  )
  slope_PLD = np.zeros((2, 2, 3), np.float32)
  slope_PLD[:, BLOCK] = [[2.0, 0.0, 5.0], [4.0, 0.0, 5.0]]  # along R, and where nothing lies
  zeros = np.zeros((1, 2, 3))
  slopes = Gradients(
    (0, 1), (1,), OWN[0].site, slope_PLD, zeros, np.zeros(2), np.zeros((1, 2)), R.hash
  )
  people = taken(["P1", "P3"], 1.0, 0.0)
  table = effects.points(settings, people, R, [EUCLIDEAN], slopes, ["a", "b"])
  assert list(table.columns) == [
    "direction", "kind", "outcome", "delta", "low", "high", "block", "coef", "cos_euclidean",
    "coupling",
  ]  # fmt: skip
  assert len(table) == 8
  mine = table[(table["direction"] == "P1") & (table["outcome"] == "log_odds")]
  assert mine["coef"].tolist() == [KAPPA, -KAPPA]
  np.testing.assert_allclose(mine["delta"], [np.cos(0.2), -np.cos(0.2)], atol=1e-6)
  # Two prompts at ± 0.1 of the mean: draws of two are one of them, both, or the other.
  np.testing.assert_allclose(mine["low"], mine["delta"] - 0.1, atol=1e-6)
  np.testing.assert_allclose(mine["high"], mine["delta"] + 0.1, atol=1e-6)
  np.testing.assert_allclose(mine["cos_euclidean"], [np.cos(0.2), -np.cos(0.2)], atol=1e-6)
  np.testing.assert_allclose(mine["coupling"], [3 * np.cos(0.2), -3 * np.cos(0.2)], atol=1e-6)


def test_of_directions_that_are_one_or_opposite_the_first_is_kept() -> None:
  near = vector(0.3, "near P1")
  assert [d.concept for d in effects.distinct([*OWN, near], BLOCK)] == ["P1", "P3", "P5", "P12"]
  exact = effects.distinct([*OWN, near], BLOCK, 0.9999)
  assert [d.concept for d in exact] == ["P1", "P3", "P5", "P12", "near P1"]
