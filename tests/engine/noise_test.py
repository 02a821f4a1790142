"""Sampling noise: known answers, independence, and the plain definition in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from persona_jax.engine.noise import CHUNK, arrivals, key_noise, later, threefry2x32
from tests.engine.keys import sampling_keys
from tests.reference.numpy_noise import numpy_exponentials, numpy_threefry


@pytest.mark.parametrize(
  "key,counter,words",
  [
    ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
    ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 2, (0x1CB996FC, 0xBB002BE7)),
    ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
  ],
)
def test_words_are_those_of_random123_s_known_answers(key, counter, words):
  args = [np.uint32(x) for x in (*key, *counter)]
  assert tuple(int(w) for w in threefry2x32(*args)) == words
  assert tuple(int(w) for w in numpy_threefry(key, counter)) == words


def test_noise_is_independent_exponentials():
  e_SV = np.stack([numpy_exponentials(seed, step=7, vocab=256) for seed in range(1500)])
  u_SV = -np.expm1(-e_SV)
  assert scipy.stats.kstest(u_SV.ravel(), "uniform").pvalue > 1e-3
  chunk_SN = u_SV[:, 64:128]
  for apart in (1, 5, 32):
    a, b = chunk_SN[:, :-apart].ravel(), chunk_SN[:, apart:].ravel()
    assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(a.size)
  # The two least of a chunk, what the race sets apart: order statistics of 64 uniforms.
  least_S2 = np.sort(chunk_SN, axis=1)[:, :2]
  for n in range(2):
    assert scipy.stats.kstest(least_S2[:, n], scipy.stats.beta(n + 1, 64 - n).cdf).pvalue > 1e-3
  where = np.argsort(chunk_SN, axis=1)[:, :2]
  assert scipy.stats.chisquare(np.bincount(where[:, 0], minlength=64)).pvalue > 1e-3
  apart_S = (where[:, 1] - where[:, 0]) % 64
  assert scipy.stats.chisquare(np.bincount(apart_S, minlength=64)[1:]).pvalue > 1e-3


def test_arrivals_and_what_comes_later_are_the_definition_s():
  seeds, step_B, chunks = [3, 2**40 + 1, 2**63 - 1], np.asarray([0, 7, 2**31 - 1]), 5
  noise = key_noise(sampling_keys(seeds), jnp.asarray(step_B, jnp.int32))
  found = jax.tree.map(np.asarray, arrivals(noise, chunks))
  ids_N = np.arange(chunks * CHUNK, dtype=np.int32)
  later_BN = np.asarray(later(noise, jnp.tile(ids_N, (len(seeds), 1))))
  for b, (seed, step) in enumerate(zip(seeds, step_B, strict=True)):
    e_CN = numpy_exponentials(seed, step, chunks * CHUNK).reshape(chunks, CHUNK)
    order_CN = np.argsort(e_CN, axis=1)
    np.testing.assert_array_equal(found.place1_BC[b], order_CN[:, 0])
    np.testing.assert_array_equal(found.place2_BC[b], order_CN[:, 1])
    mine_CN = found.second_BC[b][:, None] + later_BN[b].reshape(chunks, CHUNK)
    np.put_along_axis(mine_CN, order_CN[:, :1], found.first_BC[b][:, None], axis=1)
    np.put_along_axis(mine_CN, order_CN[:, 1:2], found.second_BC[b][:, None], axis=1)
    np.testing.assert_allclose(mine_CN, e_CN, rtol=1e-5, atol=1e-9)


def test_a_key_of_another_kind_is_refused():
  keys = jax.vmap(lambda n: jax.random.key(n, impl="rbg"))(jnp.arange(2))
  with pytest.raises(ValueError, match="threefry2x32"):
    key_noise(keys, jnp.int32(0))
