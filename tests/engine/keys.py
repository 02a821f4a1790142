"""Keys of sampling noise, as decoding makes them of the words that rows bring."""

from collections.abc import Sequence

import jax

from persona_jax.engine.rows import key_words


def sampling_keys(seeds: Sequence[int]) -> jax.Array:
  """Return one threefry key a seed, [B]."""
  return jax.random.wrap_key_data(key_words(seeds), impl="threefry2x32")
