"""Sampling noise: one exponential for each (key, step, token id), computed where it is needed.

Of each chunk of 64 ids two come first, as in a Poisson race, and the others after them:

    X(w) = -log1p(-min((w + 1/2) / 2^32, 1 - 2^-24))        an exponential of a 32-bit word, float32
    w0, w1 = threefry(key, (step, 2^31 + 2 c))              for chunk c, the ids 64 c ... 64 c + 63
    w2, w3 = threefry(key, (step, 2^31 + 2 c + 1))
    E = X(w0) / 64 at place p1 = w1 >> 26
    E = X(w0) / 64 + X(w2) / 63 at place p2 = (p1 + 1 + (63 (w3 >> 6) >> 26)) mod 64
    E = X(w0) / 64 + X(w2) / 63 + X(first word of threefry(key, (step, id))) elsewhere

The minimum of 64 exponentials has mean 1/64 and is equally likely at each place; by memorylessness
the others, measured from it, are again independent exponentials. So the E are independent, of mean
1. Words are equal on every device and in every version of JAX; logarithms are equal to the device's
rounding.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

CHUNK = 64


class Noise(NamedTuple):
  """Which noise is a row's: the words of its key, uint32 [B, 2], and its step, uint32 [B]."""

  words_B2: jax.Array
  step_B: jax.Array


class Arrivals(NamedTuple):
  """The first two exponentials of every chunk, float32 [B, C], and their places, int32 [B, C]."""

  first_BC: jax.Array
  second_BC: jax.Array
  place1_BC: jax.Array
  place2_BC: jax.Array


def key_noise(key_B: jax.Array, step: jax.Array) -> Noise:
  """Return the noise of keys at a step.

  Args:
    key_B: threefry2x32 keys.
    step: int32, scalar or [B], at least 0.

  Raises:
    ValueError: keys of another kind.
  """
  words_BW = jax.random.key_data(key_B)
  if words_BW.shape[1:] != (2,):
    raise ValueError(f"Sampling takes keys of impl='threefry2x32'; got {key_B.dtype}.")
  return Noise(words_BW, jnp.broadcast_to(step, key_B.shape).astype(jnp.uint32))


def arrivals(noise: Noise, num_chunks: int) -> Arrivals:
  """Return which two ids of every chunk have the least exponentials, and these."""
  even_C = jnp.arange(num_chunks, dtype=jnp.uint32) * 2 + jnp.uint32(2**31)
  time_BE, place_BE = _hash(noise, jnp.concatenate([even_C, even_C + 1])[None])
  first_BC = _exponential(time_BE[:, :num_chunks]) / CHUNK
  second_BC = first_BC + _exponential(time_BE[:, num_chunks:]) / (CHUNK - 1)
  place1_BC = place_BE[:, :num_chunks] >> 26
  beyond_BC = (place_BE[:, num_chunks:] >> 6) * (CHUNK - 1) >> 26
  place2_BC = (place1_BC + 1 + beyond_BC) % CHUNK
  return Arrivals(first_BC, second_BC, place1_BC.astype(jnp.int32), place2_BC.astype(jnp.int32))


def later(noise: Noise, ids_BN: jax.Array) -> jax.Array:
  """Return by how much ids' exponentials exceed the second of their chunk, float32 [B, N].

  It means nothing for the two ids that come first.
  """
  words_BN, _ = _hash(noise, ids_BN)
  return _exponential(words_BN)


def _exponential(word: jax.Array) -> jax.Array:
  """Return X of the module's docstring: from 1.2e-10 to 16.6, mean 1."""
  u = word.astype(jnp.float32) * 2.0**-32 + 2.0**-33
  return -jnp.log1p(-jnp.minimum(u, 1 - 2.0**-24))


def _hash(noise: Noise, count_BN: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Return the two words of each row's key at counters (step, count), [B, N] each."""
  key0_B1, key1_B1 = noise.words_B2[:, :1], noise.words_B2[:, 1:]
  return threefry2x32(key0_B1, key1_B1, noise.step_B[:, None], count_BN)


def threefry2x32(
  key0: jax.Array, key1: jax.Array, count0: jax.Array, count1: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Hash a 64-bit counter with a 64-bit key to two words: Threefry-2x32, 20 rounds.

  Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3". Arguments broadcast; words are
  uint32.
  """
  key0, key1, count0, count1 = (
    jnp.asarray(x).astype(jnp.uint32) for x in (key0, key1, count0, count1)
  )
  shape = jnp.broadcast_shapes(key0.shape, key1.shape, count0.shape, count1.shape)

  # A loop, not 20 rounds in a row: XLA for CPU would compute them anew in every use of a word.
  def four_rounds(i: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    x0, x1, key0, key1, key2, now_4, next_4 = state
    for r in range(4):
      x0 = x0 + x1
      x1 = x0 ^ (x1 << now_4[r] | x1 >> 32 - now_4[r])
    i = i.astype(jnp.uint32)
    return x0 + key1, x1 + key2 + i + 1, key1, key2, key0, next_4, now_4

  state = (
    jnp.broadcast_to(count0 + key0, shape),
    jnp.broadcast_to(count1 + key1, shape),
    key0,
    key1,
    key0 ^ key1 ^ jnp.uint32(0x1BD11BDA),
    jnp.asarray((13, 15, 26, 6), jnp.uint32),
    jnp.asarray((17, 29, 16, 24), jnp.uint32),
  )
  x0, x1, *_ = jax.lax.fori_loop(0, 5, four_rounds, state)
  return x0, x1
