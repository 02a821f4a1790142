"""Many planted worlds: how often the study finds what is there, and what is not there.

A world of another seed has another basis, other tokens and other noise. Prompts, steering, exact
probabilities and the test of inversions are the product's; the coefficient is the planted one. Five
seeds run with every test, `make planted` runs the numbers that a claim would rest on.
"""

from pathlib import Path

import pytest

from tests.planted import seeds

PROMPTS, NOISE = 60, 0.5


@pytest.mark.parametrize("name", ["N0", "N1"])
def test_no_inversion_is_confirmed_in_five_worlds_without_one(name: str, tmp_path: Path) -> None:
  found = [
    seeds.one(name, tmp_path / str(seed), seed, prompts=PROMPTS, noise=NOISE) for seed in range(5)
  ]
  assert all(world.true == {} for world in found)
  assert sum(len(world.confirmed) for world in found) == 0


def test_p12_is_found_in_five_worlds_of_w1_and_inversions_are_confirmed(tmp_path: Path) -> None:
  found = [
    seeds.one("W1", tmp_path / str(seed), seed, prompts=PROMPTS, noise=NOISE) for seed in range(5)
  ]
  assert all(world.true["P12"] == "AS" for world in found)
  assert all(world.is_named_found and world.found_by_law for world in found)
  assert all(world.is_free_of_false for world in found)
  # At this size, that of the worlds without an inversion, they are confirmed where they are.
  assert all(world.confirmed for world in found)
  assert any(world.confirmed.get("P12") == "AS" for world in found)


def test_p12_is_predicted_from_poles_that_are_noisy(tmp_path: Path) -> None:
  line = seeds.prediction(tmp_path, 0, noise=NOISE, prompts=20)
  assert line.is_right, line
