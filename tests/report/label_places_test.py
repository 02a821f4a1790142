"""Places of names: apart, in order, and as near as can be."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from persona_jax.report.label_places import spread_out


@pytest.mark.parametrize(
  ("places", "expected"),
  [
    ([0.5], [0.5]),
    ([0.9, 0.1], [0.9, 0.1]),
    ([0.5, 0.5], [0.55, 0.45]),
    ([0.5, 0.52, 0.9], [0.46, 0.56, 0.9]),
    ([1.0, 1.0], [1.0, 0.9]),
    ([0.0, 0.0, 0.02], [0.0, 0.1, 0.2]),
  ],
)
def test_places_move_as_little_as_they_can(places: list[float], expected: list[float]) -> None:
  assert sorted(spread_out(places, 0.1)) == pytest.approx(sorted(expected))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.floats(0.01, 0.3))
def test_places_are_apart_in_order_and_inside(places: list[float], gap: float) -> None:
  found = np.asarray(spread_out(places, gap))
  order = np.argsort(places, kind="stable")
  least = min(gap, 1 / max(len(places) - 1, 1))
  assert (np.diff(found[order]) >= least - 1e-9).all()
  assert found.min() >= -1e-9 and found.max() <= 1 + 1e-9
