"""Lanes: classes of few and of many rows attend apart where that saves more than it costs."""

import hypothesis
import numpy as np
from hypothesis import strategies as st

from persona_jax.engine import lanes
from persona_jax.engine.lanes import LANE_SLOTS, split


def cost(rows_P, slots_P, parts, batch):
  rows_P, slots_P = np.asarray(rows_P), np.asarray(slots_P)
  places = sum(len(p) * rows_P[p].max() * slots_P[p].max() for p in parts)
  return places + (len(parts) - 1) * LANE_SLOTS * batch


def test_personas_and_steered_prompts_have_lanes_of_their_own():
  # 8 questions of 512 tokens: under 12 system texts, and bare under 13 steered conditions.
  rows_P = [1] * 96 + [13] * 8
  parts = split(rows_P, [512] * 104, 200)
  assert [part.tolist() for part in parts] == [list(range(96)), list(range(96, 104))]
  assert cost(rows_P, [512] * 104, parts, 200) == 200 * 512 * 2
  # Of 32 tokens, one lane of 104 x 13 costs less than a lane more.
  assert len(split(rows_P, [32] * 104, 200)) == 1


def test_long_and_short_prompts_have_lanes_of_their_own():
  parts = split([8] * 16, [64] * 12 + [2048] * 4, 128)
  assert [part.tolist() for part in parts] == [list(range(12)), list(range(12, 16))]
  assert len(split([8] * 16, [512] * 16, 128)) == 1


@hypothesis.settings(deadline=None, max_examples=200)
@hypothesis.given(
  st.lists(st.tuples(st.integers(1, 40), st.sampled_from([8, 64, 512, 4096])), min_size=1)
)
def test_lanes_divide_the_classes_and_cost_no_more_than_one(classes):
  rows_P, slots_P = zip(*classes, strict=True)
  batch = sum(rows_P)
  parts = split(rows_P, slots_P, batch)
  assert sorted(np.concatenate(parts).tolist()) == list(range(len(classes)))
  assert all((np.diff(part) > 0).all() for part in parts) and len(parts) <= lanes._MOST
  one = [np.arange(len(classes))]
  assert cost(rows_P, slots_P, parts, batch) <= cost(rows_P, slots_P, one, batch)
