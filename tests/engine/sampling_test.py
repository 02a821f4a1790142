"""Sampling against plain definitions: numpy noise for every token, sorted filters, frequencies."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from persona_jax.engine.sampling import Choice, Sampling, choose
from tests.engine.keys import sampling_keys
from tests.reference.numpy_noise import numpy_exponentials

B, V = 16, 641  # one shape for most tests, so that each strategy compiles once
STRATEGIES = [
  Sampling(1.0),
  Sampling(0.7, top_k=3),
  Sampling(1.0, top_p=0.83),
  Sampling(1.3, top_k=40, top_p=0.71, min_p=0.06),
]
KEYS = sampling_keys(range(B))


@functools.partial(jax.jit, static_argnames="sampling")
def jitted(sampling, logits_BV, key_B, step) -> Choice:
  return choose(sampling, logits_BV, key_B, step, with_logprobs=True)


def tokens(sampling, logits_BV, key_B=KEYS, step=0) -> np.ndarray:
  step_B = np.broadcast_to(np.int32(step), len(logits_BV))
  return np.asarray(jitted(sampling, jnp.asarray(logits_BV, jnp.float32), key_B, step_B).token_B)


def random_logits(seed, shape=(B, V), scale=3.0) -> np.ndarray:
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32) * np.float32(scale)


# ---- the definitions in numpy, for whole rows ----------------------------------------------------


def numpy_kept(sampling, logit_V) -> tuple[np.ndarray, float]:
  """Which tokens the filters keep, and how near in mass top-p is to another answer."""
  z_V = logit_V.astype(np.float64) / sampling.temperature
  kept_V, margin = z_V > -np.inf, 1.0
  if sampling.top_k is not None and sampling.top_k < z_V.size:
    kept_V &= z_V >= np.sort(z_V)[-sampling.top_k]
  if sampling.top_p is not None and sampling.top_p < 1:
    p_V = np.where(kept_V, np.exp(z_V - z_V.max()), 0)
    _, level_V = np.unique(-z_V, return_inverse=True)
    p_N = np.bincount(level_V, p_V / p_V.sum())
    above_N = np.cumsum(p_N) - p_N
    margin = np.abs(above_N - sampling.top_p).min()
    kept_V &= above_N[level_V] < sampling.top_p
  if sampling.min_p is not None:
    kept_V &= z_V >= z_V.max() + np.log(sampling.min_p)
  return kept_V, margin


def numpy_token(sampling, logit_V, seed, step) -> int:
  noise_V = -np.log(numpy_exponentials(seed, step, logit_V.size))
  z_V = (logit_V.astype(np.float64) - logit_V.max()) / sampling.temperature
  return int(np.argmax(np.where(numpy_kept(sampling, logit_V)[0], z_V + noise_V, -np.inf)))


# ---- draws ---------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
  st.integers(0, 2**63 - 1),
  st.integers(0, 2**31 - 1),
  st.sampled_from(
    [(sampling, V) for sampling in STRATEGIES]
    + [(Sampling(1.0), 64), (Sampling(1.0, top_k=4, top_p=0.77), 5)]
  ),
  st.sampled_from([0.2, 1.0, 4.0]),
  st.booleans(),
  st.floats(0, 0.9),
)
def test_a_draw_is_the_largest_sum_of_logit_and_noise_in_what_filters_keep(
  seed, step, sampling_vocab, scale, ties, masked
):
  sampling, vocab = sampling_vocab
  rng = np.random.default_rng(seed)
  logits_BV = random_logits(seed, (B, vocab), scale)
  if ties:
    logits_BV = np.round(logits_BV)
  hidden_BV = rng.random(logits_BV.shape) < masked
  hidden_BV[:, rng.integers(vocab)] = False
  logits_BV[hidden_BV] = -np.inf
  assume(all(numpy_kept(sampling, row)[1] > 1e-5 for row in logits_BV))
  seeds = [(seed + n) % 2**63 for n in range(B)]
  want = [numpy_token(sampling, *row, step) for row in zip(logits_BV, seeds, strict=True)]
  assert tokens(sampling, logits_BV, sampling_keys(seeds), step).tolist() == want


def test_a_token_s_noise_is_the_same_in_every_row_and_vocabulary():
  for seed in range(30):
    logits_BV = np.full((B, V), -np.inf)
    for n in range(B):
      logits_BV[n, : 40 * (n + 1)] = n  # as many tokens, all alike
    won_B = tokens(Sampling(1.0), logits_BV, sampling_keys([seed] * B))
    e_V = numpy_exponentials(seed, 0, V)
    assert won_B.tolist() == [int(e_V[: 40 * (n + 1)].argmin()) for n in range(B)]
    if won_B[1] < 64:
      short = tokens(Sampling(1.0), np.zeros((B, 64)), sampling_keys([seed] * B))
      assert (short == won_B[1]).all()


def test_each_step_has_its_own_noise():
  logits_BV, keys = np.zeros((B, V)), sampling_keys([3] * B)
  together = tokens(Sampling(1.0), logits_BV, keys, np.arange(B))
  assert len(set(together.tolist())) > B - 3
  for step in (0, 7):
    assert (tokens(Sampling(1.0), logits_BV, keys, step) == together[step]).all()


# ---- frequencies ---------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", STRATEGIES)
def test_tokens_are_drawn_as_often_as_their_probability_says(sampling):
  num_steps = 300
  logit_V = random_logits(1, V)
  kept_V, _ = numpy_kept(sampling, logit_V)
  p_V = np.where(kept_V, np.exp(logit_V.astype(float) / sampling.temperature), 0)
  p_V /= p_V.sum()
  logits_BV = np.tile(logit_V, (B, 1))
  drawn = np.concatenate([tokens(sampling, logits_BV, KEYS, step) for step in range(num_steps)])
  counts = np.bincount(drawn, minlength=V)
  assert counts[~kept_V].sum() == 0
  often_V = p_V * drawn.size >= 5
  observed = np.append(counts[often_V], counts[~often_V].sum())
  expected = np.append(p_V[often_V], p_V[~often_V].sum()) * drawn.size
  some = expected > 0
  assert scipy.stats.chisquare(observed[some], expected[some]).pvalue > 1e-3


# ---- rows and neutral filters --------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [STRATEGIES[0], STRATEGIES[-1]])
def test_a_row_alone_chooses_as_in_any_batch(sampling):
  logits_BV = random_logits(2)
  logits_BV[3, 17] = np.nan  # a bad neighbour
  together = tokens(sampling, logits_BV, KEYS, 5)
  order = np.random.default_rng(0).permutation(B)
  shuffled = tokens(sampling, logits_BV[order], KEYS[order], 5)
  np.testing.assert_array_equal(shuffled, together[order])
  for n in (0, 3, 11):
    assert tokens(sampling, logits_BV[n : n + 1], KEYS[n : n + 1], 5) == together[n]


def test_filters_that_keep_everything_change_nothing():
  logits_BV, neutral = jnp.asarray(random_logits(3)), Sampling(1.0, 10**6, 1.0, 1e-30)
  for step in range(10):
    plain = jitted(Sampling(1.0), logits_BV, KEYS, jnp.full(B, step))
    filtered = jitted(neutral, logits_BV, KEYS, jnp.full(B, step))
    np.testing.assert_array_equal(filtered.token_B, plain.token_B)
    np.testing.assert_array_equal(filtered.logprob_B, plain.logprob_B)


def test_a_filter_that_keeps_the_winner_keeps_the_choice():
  logits_BV = random_logits(4, scale=1.5)
  sampling = Sampling(1.0, top_p=0.83)
  num_kept = 0
  for step in range(20):
    plain, filtered = (tokens(s, logits_BV, KEYS, step) for s in (Sampling(1.0), sampling))
    rows = zip(logits_BV, plain, strict=True)
    kept_B = np.asarray([numpy_kept(sampling, row)[0][token] for row, token in rows])
    np.testing.assert_array_equal(filtered[kept_B], plain[kept_B])
    assert (filtered[~kept_B] != plain[~kept_B]).all()
    num_kept += kept_B.sum()
  assert 0.75 < num_kept / (20 * B) < 0.9


# ---- edges ---------------------------------------------------------------------------------------


def test_greedy_is_argmax_with_ties_and_values_that_are_no_numbers():
  rng = np.random.default_rng(0)
  for vocab in (V, 64, 5):
    for levels in (1, 3, 1000):
      logits_BV = rng.integers(-levels, levels, (B, vocab)).astype(np.float32)
      logits_BV[4:6, rng.integers(vocab)] = np.nan
      logits_BV[5:8, rng.integers(vocab, size=2)] = np.inf
      logits_BV[8:10] = -np.inf
      logits_BV[9, rng.integers(vocab)] = np.nan
      logits_BV[10, rng.random(vocab) < 0.5] = -np.inf
      want = np.argmax(logits_BV, axis=1)
      np.testing.assert_array_equal(tokens(Sampling(), logits_BV), want)
  # A row with no finite maximum has no distribution: it takes its argmax under any strategy.
  logits_BV = np.pad(logits_BV, ((0, 0), (0, V - vocab)), constant_values=-np.inf)
  for sampling in STRATEGIES:
    np.testing.assert_array_equal(tokens(sampling, logits_BV)[4:10], want[4:10])


@pytest.mark.parametrize(
  "sampling", [Sampling(1e-40), Sampling(5.0, top_k=1), Sampling(5.0, top_p=1e-45, min_p=1.0)]
)
def test_strategies_that_leave_one_token_are_greedy(sampling):
  logits_BV = random_logits(5)
  np.testing.assert_array_equal(tokens(sampling, logits_BV), logits_BV.argmax(1))


def test_a_huge_temperature_draws_as_from_equal_logits():
  equal = tokens(Sampling(1.0), np.zeros((B, V)))
  np.testing.assert_array_equal(tokens(Sampling(1e300), random_logits(6)), equal)


def test_logprobs_are_those_of_the_unfiltered_distribution_at_temperature_1():
  rows = np.arange(B)
  for sampling in (Sampling(), *STRATEGIES):
    for scale in (1.0, 30.0):
      logits_BV = random_logits(7, scale=scale) + 100
      token_B, logprob_B = jitted(sampling, jnp.asarray(logits_BV), KEYS, jnp.zeros(B, int))
      want_BV = scipy.special.log_softmax(logits_BV.astype(float), axis=1)
      np.testing.assert_allclose(logprob_B, want_BV[rows, token_B], rtol=1e-6, atol=1e-6)


def test_logprobs_of_a_long_vocabulary_lose_no_digits():
  logits_BV = random_logits(8, (4, 100_000), 1.0)
  token_B, logprob_B = jitted(Sampling(), jnp.asarray(logits_BV), KEYS[:4], jnp.zeros(4, int))
  want_BV = scipy.special.log_softmax(logits_BV.astype(float), axis=1)
  np.testing.assert_allclose(logprob_B, want_BV[np.arange(4), token_B], rtol=1e-6, atol=1e-6)


def test_logprobs_are_left_out_where_not_asked_for_and_float32_where_asked():
  for with_logprobs in (False, True):
    out = jax.eval_shape(
      functools.partial(choose, Sampling(), with_logprobs=with_logprobs),
      jnp.zeros((B, V), jnp.bfloat16), KEYS, jnp.int32(0),
    )  # fmt: skip
    assert out.token_B.dtype == jnp.int32
    assert out.logprob_B.dtype == jnp.float32 if with_logprobs else out.logprob_B is None


@pytest.mark.parametrize("sampling", STRATEGIES, ids=str)
def test_no_strategy_sorts_the_vocabulary(sampling):
  logits_BV = jax.ShapeDtypeStruct((8, 49_152), jnp.float32)
  lowered = jitted.lower(sampling, logits_BV, sampling_keys(range(8)), np.zeros(8, np.int32))
  text = lowered.as_text()
  assert "stablehlo.sort" not in text
  # The largest are taken of the maxima of chunks of 64, or of some that are looked at.
  sizes = re.findall(r"chlo\.top_k.* : tensor<(?:\d+x)*?(\d+)x[a-z]\w+> ->", text)
  assert len(sizes) == text.count("chlo.top_k") and all(int(n) < 4_096 for n in sizes)
