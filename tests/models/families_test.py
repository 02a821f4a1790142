"""Every family on random tiny configurations, against numbers that `make parity` wrote."""

import pytest

import persona_jax as pj
from tests.parity import family_numbers
from tests.parity.reading import our_reading
from tests.reference.checkpoint_writer import write_checkpoint
from tests.reference.random_families import CONFIGS, random_tensors, rows
from tests.reference.random_llama import vocabulary

KEPT = family_numbers.load()


def make(title, directory, **changes):
  config = CONFIGS[title] | changes
  tensors = random_tensors(CONFIGS[title], KEPT[title]["shapes"])
  write_checkpoint(directory, config, tensors, vocabulary(config))
  return pj.load(directory)


def test_every_configuration_has_numbers():
  assert list(KEPT) == list(CONFIGS)


@pytest.mark.parametrize("title", CONFIGS)
def test_logits_and_every_residual_are_those_of_transformers(title, tmp_path):
  reading = our_reading(make(title, tmp_path), rows())[0]
  errors = family_numbers.errors(KEPT[title], reading)
  assert len(errors) == 1 + CONFIGS[title]["num_hidden_layers"]
  assert max(errors.values()) <= 1e-5, errors
