"""Mediation through refusal, in W1 where it is planted; fractions against formulas."""

import math

import numpy as np
import pytest

import persona_jax as pj
from persona_jax.directions.refusal_scores import log_odds
from persona_jax.directions.space import Floors
from persona_jax.engine.encode import encode_rows
from persona_jax.engine.next_tokens import next_logits
from persona_jax.geometry.gradients import refusal_mask
from persona_jax.geometry.mediation import (
  floors_above,
  kept_fraction,
  mediation_edits,
  ratio_of_means,
  restored_fraction,
)
from tests.planted import world as planted

BLOCK = 2
USERS = [planted.user_text("harm19", n) for n in range(6)]  # of one intensity: one baseline


def everywhere(v_D: np.ndarray, concept: str) -> pj.Direction:
  return pj.Direction(np.broadcast_to(v_D, (1, planted.BLOCKS, len(v_D))), concept)


@pytest.fixture(scope="module")
def w1(tmp_path_factory: pytest.TempPathFactory) -> tuple[planted.World, pj.Model]:
  world = planted.build(planted.W1)
  return world, pj.load(world.write(tmp_path_factory.mktemp("mediation")), dtype="float32")


def test_in_w1_the_effect_of_c_goes_through_refusal(w1: tuple[planted.World, pj.Model]) -> None:
  world, model = w1
  d, r = everywhere(world.trait_TD[1], "C"), everywhere(world.refusal_D, "refusal")
  random = pj.controls(d, "floor", against=r, seed=1)["floor"][1]
  arms = mediation_edits(
    d,
    r,
    BLOCK,
    2.0,
    unit="unit",
    floors_r=floors_above(model, USERS, r, BLOCK),
    floors_random=floors_above(model, USERS, random, BLOCK),
  )
  refusal_V = refusal_mask(model, world.ids("sorry"))

  def outcome(edits: list[pj.Edit]) -> np.ndarray:
    rows = encode_rows(model, USERS, [edits] * len(USERS))
    return log_odds(next_logits(model, rows), np.flatnonzero(refusal_V))

  base_N = outcome([])
  y = {name: outcome(edits) for name, edits in arms.items()}
  assert (y["v"] < base_N - 1).all()
  assert kept_fraction(y["v_perp_r"], y["v"], base_N).value == pytest.approx(0, abs=0.1)
  assert kept_fraction(y["v_par_r"], y["v"], base_N).value == pytest.approx(1, abs=0.1)
  assert restored_fraction(y["v"], y["v+floor_r"], base_N).value > 0.9
  assert abs(restored_fraction(y["v"], y["v+floor_random"], base_N).value) < 0.25


def test_arms_have_the_doses_of_their_parts() -> None:
  v, r = np.zeros((2, 1, 3, 4))
  v[:], r[:] = [3, 4, 0, 0], [-2, 0, 0, 0]
  d, refusal = pj.Direction(v, "v"), pj.Direction(r, "r")
  above = Floors(refusal, {1: 0.5, 2: 0.25}, 25.0)
  arms = mediation_edits(
    d, refusal, 0, 10.0, unit="unit", floors_r=above, floors_random=above, tokens="all"
  )
  np.testing.assert_allclose(arms["v"][0].delta_LD, [[6, 8, 0, 0]], atol=1e-6)
  np.testing.assert_allclose(arms["v_perp_r"][0].delta_LD, [[0, 10, 0, 0]], atol=1e-6)
  np.testing.assert_allclose(arms["v_par_r"][0].delta_LD, [[6, 0, 0, 0]], atol=1e-6)
  assert [(e.op, e.blocks) for e in arms["v+floor_r"]] == [
    ("add", (0,)),
    ("floor", (1,)),
    ("floor", (2,)),
  ]
  assert {str(e.window) for edits in arms.values() for e in edits} == {"[:]"}


def test_a_part_that_is_not_there_is_no_edit() -> None:
  d, r = (pj.Direction(np.tile(x, (1, 3, 1)), "x") for x in ([0.0, 2], [5.0, 0]))
  above = Floors(r, {1: 0.0}, 25.0)
  arms = mediation_edits(d, r, 0, 1.0, unit="raw", floors_r=above, floors_random=above)
  assert arms["v_par_r"] == [] and len(arms["v_perp_r"]) == 1


def test_floors_stand_above_the_edit_and_along_r(w1: tuple[planted.World, pj.Model]) -> None:
  world, model = w1
  r, other = everywhere(world.refusal_D, "refusal"), everywhere(world.trait_TD[0], "O")
  found = floors_above(model, USERS, r, BLOCK)
  assert sorted(found.floor) == [3, 4, 5]
  reads = model.capture(USERS, pj.Capture(reduce="last", bank=r))
  for block, low in found.floor.items():
    expected = np.percentile(reads["resid_post", block][:, 0], 25)
    assert low == pytest.approx(expected, abs=1e-5)
  with pytest.raises(ValueError, match="no vector above block 5"):
    floors_above(model, USERS, r, 5)
  with pytest.raises(ValueError, match=r"floors at blocks \[3\]"):
    mediation_edits(other, r, 3, 1.0, unit="raw", floors_r=found, floors_random=found)
  with pytest.raises(ValueError, match="not of 'O'"):
    mediation_edits(r, other, 2, 1.0, unit="raw", floors_r=found, floors_random=found)


def test_fractions_are_ratios_of_means() -> None:
  y_0, y_v, y_floor = np.asarray([4.0, 6, 5]), np.asarray([1.0, 2, 3]), np.asarray([2.0, 3, 5])
  assert restored_fraction(y_v, y_floor, y_0).value == pytest.approx(4 / 9)
  assert kept_fraction(y_floor, y_v, y_0).value == pytest.approx(5 / 9)


def test_the_interval_is_that_of_the_delta_method_for_many_prompts() -> None:
  rng = np.random.default_rng(0)
  b_N = rng.normal(3, 1, size=400)
  a_N = 0.5 * b_N + rng.normal(0, 1, size=400)
  found = ratio_of_means(a_N, b_N)
  ratio = a_N.mean() / b_N.mean()
  error = np.std(a_N - ratio * b_N) / np.sqrt(400) / b_N.mean()
  assert found.value == pytest.approx(ratio)
  assert found.low == pytest.approx(ratio - 1.96 * error, abs=0.1 * error)
  assert found.high == pytest.approx(ratio + 1.96 * error, abs=0.1 * error)


def test_prompts_of_a_cluster_are_drawn_together() -> None:
  rng = np.random.default_rng(0)
  a_K, b_K = rng.normal(1, 1, 30), rng.normal(3, 1, 30)
  one = ratio_of_means(a_K, b_K)
  many = ratio_of_means(np.repeat(a_K, 4), np.repeat(b_K, 4), np.repeat(np.arange(30), 4))
  assert (many.low, many.high) == pytest.approx((one.low, one.high))
  assert many.n == 120


def test_fractions_of_no_effect_have_a_reason() -> None:
  rng = np.random.default_rng(0)
  noise = ratio_of_means(rng.normal(size=50), rng.normal(size=50))
  assert math.isnan(noise.low) and noise.reason == "the interval of the effect holds 0"
  zero = ratio_of_means([1.0, 2], [1.0, -1])
  assert math.isnan(zero.value) and zero.reason == "the effect is 0"
  lost = ratio_of_means([1.0, np.nan], [1.0, 1])
  assert math.isnan(lost.value) and lost.reason == "1 of 2 values are missing"
  same = ratio_of_means([1.0, 1], [2.0, 2])
  assert same.value == 0.5 and math.isnan(same.low)
  with pytest.raises(ValueError, match="of one length"):
    restored_fraction([1.0], [1.0, 2], [1.0, 2])
