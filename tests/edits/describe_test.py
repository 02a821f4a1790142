"""What an edit says of itself is plain, whatever kind of numbers it was given."""

import json

import numpy as np
import pytest

import persona_jax as pj

D = pj.Direction(np.random.default_rng(0).normal(size=(2, 6, 8)), "v")

EDITS = {
  "add": lambda number, whole: pj.add(D, number(0.5), unit="unit", blocks=whole(2)),
  "where": lambda number, whole: pj.set_to(D, number(0.5), unit="unit", blocks=2).where(
    above=number(-2.0), below=number(2.0)
  ),
  "probe": lambda number, whole: pj.add(D, 1.0, unit="unit", blocks=2).when(
    pj.Probe(D, whole(1), above=number(-1.5), below=number(1.5), replicate=whole(1))
  ),
  "linear ramp": lambda number, whole: pj.add(D, 1.0, unit="unit", blocks=2).ramped(
    pj.Ramp(
      steps=whole(3), first=number(0.25), last=number(2.0), start=whole(1),
      dead_band=number(0.5), cap=number(4.0),
    )
  ),
  "exponential ramp": lambda number, whole: pj.add(D, 1.0, unit="unit", blocks=2).ramped(
    pj.Ramp(rate=number(0.5))
  ),
}  # fmt: skip


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("number", [np.float32, np.float64, np.float16])
def test_numbers_of_numpy_are_described_as_plain_ones(name, number):
  plain, mine = EDITS[name](float, int), EDITS[name](number, np.int32)
  assert json.dumps(mine.describe()) == json.dumps(plain.describe())
