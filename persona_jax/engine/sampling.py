"""How the next token is chosen from logits, in few passes over the vocabulary.

The token chosen is that of the largest (logit - max) / temperature - log E, where the E of a row
are independent exponentials of mean 1, each a function of (key, step, token id) alone (Gumbel-max:
-log E is a Gumbel). `engine.noise` gives them chunk by chunk in the order of a Poisson race, so
that the second arrival and the largest logit bound what the rest of a chunk can reach (as in A*
sampling, Maddison et al. 2014), and a draw computes the noise of a few chunks, not of the
vocabulary.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from persona_jax.engine.checks import as_int, as_number
from persona_jax.engine.noise import CHUNK, Noise, arrivals, key_noise, later

# Logarithms needn't be monotone in the last bits; a chunk within this of the best is looked at too.
_SLACK = 1e-5
# Chunks of a row that a draw looks at in one go.
_LOOK = 8


@dataclasses.dataclass(frozen=True)
class Sampling:
  """Decoding strategy; filters apply in the order temperature, top-k, top-p, min-p.

  Attributes:
    temperature: 0 is greedy (the filters then change nothing and are refused).
    top_k: keep the k likeliest tokens.
    top_p: keep the smallest set of likeliest tokens with at least this mass (Holtzman et al. 2020).
    min_p: keep tokens at least this fraction as likely as the likeliest (Nguyen et al. 2024).

  Raises:
    ValueError: a value that is no number or out of range, or a filter at temperature 0.
  """

  temperature: float = 0.0
  top_k: int | None = None
  top_p: float | None = None
  min_p: float | None = None

  def __post_init__(self) -> None:
    for name in ("temperature", "top_p", "min_p"):
      if name == "temperature" or getattr(self, name) is not None:
        object.__setattr__(self, name, as_number(name, getattr(self, name)))
    if not 0 <= self.temperature < float("inf"):
      raise ValueError(f"temperature={self.temperature!r}: give 0 (greedy) or a positive number.")
    if self.top_k is not None:
      object.__setattr__(self, "top_k", as_int("top_k", self.top_k, 1))
    for name, value in (("top_p", self.top_p), ("min_p", self.min_p)):
      if value is not None and not 0 < value <= 1:
        raise ValueError(f"{name}={value!r}: give a number in (0, 1].")
    filters = [n for n in ("top_k", "top_p", "min_p") if getattr(self, n) is not None]
    if self.temperature == 0 and filters:
      raise ValueError(f"{filters} change nothing at temperature=0 (greedy); set a temperature.")


class Choice(NamedTuple):
  """What was chosen for each row.

  Attributes:
    token_B: int32, the tokens.
    logprob_B: float32, their log-probabilities under the logits as given (temperature 1, no
      filter), or None.
  """

  token_B: jax.Array
  logprob_B: jax.Array | None


def choose(
  sampling: Sampling,
  logits_BV: jax.Array,
  key_B: jax.Array,
  step: jax.Array,
  *,
  with_logprobs: bool,
) -> Choice:
  """Choose a token for each row.

  A row's choice depends on its logits, its key and its step, on no other row; rows that share a key
  share their noise token by token. A row that has a NaN or no finite maximum takes `jnp.argmax` of
  its logits.

  Args:
    sampling: how to choose.
    logits_BV: logits of any float dtype.
    key_B: threefry2x32 keys; not read at temperature 0.
    step: int32, scalar or [B], at least 0: which of a key's draws this is.
    with_logprobs: whether to return log-probabilities (one more pass over the vocabulary).
  """
  logits_BV = logits_BV.astype(jnp.float32)
  peak_BC = _by_chunk(jnp.max, logits_BV)
  top_B1 = jnp.argmax(peak_BC, axis=1, keepdims=True).astype(jnp.int32)
  # Not jnp.max(peak_BC): XLA merges the two maxima and reads the logits once more.
  max_B = _take(peak_BC, top_B1)[:, 0]
  mass_B = _mass(logits_BV, max_B, 1.0) if with_logprobs else None
  # XLA for CPU (JAX 0.10.2) drops NaN from a maximum; a sum shows it, in 0.4 ms at 128 x 49,152.
  sum_B = jnp.sum(logits_BV, axis=1) if mass_B is None else mass_B
  usual_B = jnp.isfinite(max_B) & ~jnp.isnan(sum_B)
  if sampling.temperature == 0:
    ids_BN = _ids(top_B1)
    place_B1 = jnp.argmax(_at(logits_BV, ids_BN), axis=1, keepdims=True)
    token_B = _take(ids_BN, place_B1)[:, 0]
  else:
    none_B = jnp.full_like(max_B, -jnp.inf)
    rows = _Rows(logits_BV, peak_BC, max_B, none_B, usual_B, key_noise(key_B, step))
    token_B = _sample(sampling, rows, mass_B if sampling.temperature == 1 else None)

  token_B = jax.lax.cond(
    jnp.all(usual_B),
    lambda: token_B,
    lambda: jnp.where(usual_B, token_B, jnp.argmax(logits_BV, axis=1).astype(jnp.int32)),
  )
  if mass_B is None:
    return Choice(token_B, None)
  logit_B = _at(logits_BV, token_B[:, None])[:, 0]
  return Choice(token_B, logit_B - max_B - jnp.log(mass_B))


class _Rows(NamedTuple):
  """Rows to draw for: logits, their maximum by chunk and in all, the least allowed, their noise.

  `usual_B` says which have a finite maximum and no NaN; others are not waited for.
  """

  logits_BV: jax.Array
  peak_BC: jax.Array
  max_B: jax.Array
  floor_B: jax.Array
  usual_B: jax.Array
  noise: Noise


def _sample(sampling: Sampling, rows: _Rows, mass_B: jax.Array | None) -> jax.Array:
  """Draw a token for each row with a finite maximum; for others the result means nothing.

  Each filter keeps the tokens whose logit reaches a bound. Those of top-k and min-p are computed;
  that of top-p is left to `_nucleus_draw`.

  Args:
    sampling: temperature above 0, and filters.
    rows: the rows, every token allowed.
    mass_B: sum of exp((logit - max) / temperature), if it is at hand.
  """
  inverse = min(1 / sampling.temperature, float(jnp.finfo(jnp.float32).max))
  if sampling.top_k is not None and sampling.top_k < rows.logits_BV.shape[1]:
    rows = rows._replace(floor_B=_kth_largest(rows, sampling.top_k))
    mass_B = None
  nucleus_B = None
  if sampling.top_p is not None and sampling.top_p < 1:
    if mass_B is None:
      mass_B = _mass(rows.logits_BV, rows.max_B, inverse, least_B=rows.floor_B)
    nucleus_B = sampling.top_p * mass_B
  if sampling.min_p is not None:
    least_B = rows.max_B + sampling.temperature * math.log(sampling.min_p)
    rows = rows._replace(floor_B=jnp.maximum(rows.floor_B, least_B))
  if nucleus_B is not None:
    return _nucleus_draw(rows, inverse, nucleus_B)
  return _draw(rows, inverse, jnp.full_like(rows.max_B, -jnp.inf))


def _nucleus_draw(rows: _Rows, inverse: float, nucleus_B: jax.Array) -> jax.Array:
  """Draw from the smallest set of likeliest tokens whose mass is at least `nucleus_B`.

  The winner among all tokens is the winner in every set that holds it too, so it stands where the
  mass above it is less than the nucleus's. Where it isn't, the next draw is among the tokens above
  it. So no sort is needed: a row takes 1 + (1 - p) + ... draws, and as many passes.
  """
  num_rows = rows.max_B.size
  few = min(num_rows, max(8, num_rows // 4))

  def some_rows(state: _Search) -> _Search:
    _, row_F = jax.lax.top_k(state.open_B.astype(jnp.int32), few)
    some, nucleus_F, before = jax.tree.map(
      lambda x: x.at[row_F].get(mode="promise_in_bounds"), (rows, nucleus_B, state)
    )
    token_F = _draw(some, inverse, before.above_B)
    logit_F = _at(some.logits_BV, token_F[:, None])[:, 0]
    mass_F = _mass(some.logits_BV, some.max_B, inverse, above_B=logit_F)
    outside_F = before.open_B & (mass_F >= nucleus_F) & (logit_F < some.max_B)
    after = _Search(
      jnp.where(before.open_B, token_F, before.token_B),
      jnp.where(outside_F, logit_F, before.above_B),
      outside_F,
    )
    return jax.tree.map(lambda x, new: x.at[row_F].set(new), state, after)

  state = _Search(
    jnp.zeros((num_rows,), jnp.int32),
    jnp.full_like(rows.max_B, -jnp.inf),
    rows.usual_B,
  )
  return jax.lax.while_loop(lambda s: jnp.any(s.open_B), some_rows, state).token_B


class _Search(NamedTuple):
  """The latest winners, the largest logit known to be outside the nucleus, who isn't done."""

  token_B: jax.Array
  above_B: jax.Array
  open_B: jax.Array


def _draw(rows: _Rows, inverse: float, above_B: jax.Array) -> jax.Array:
  """Return the winner among logits of at least `floor_B` and above `above_B`.

  The first arrivals of all chunks are looked at, then the chunks that may hold the most, until no
  other can hold the winner (of 768 chunks of real logits 5 on average, 39 at most in 128 rows).

  Args:
    rows: the rows.
    inverse: 1 / temperature.
    above_B: float32, what the winner's logit must exceed.
  """
  num_rows, num_chunks = rows.peak_BC.shape
  first_BC, second_BC, place1_BC, place2_BC = arrivals(rows.noise, num_chunks)
  start_C = jnp.arange(num_chunks) * CHUNK

  def value(logit_BN: jax.Array, exponential_BN: jax.Array) -> jax.Array:
    allowed_BN = (logit_BN >= rows.floor_B[:, None]) & (logit_BN > above_B[:, None])
    z_BN = (logit_BN - rows.max_B[:, None]) * inverse
    return jnp.where(allowed_BN, z_BN - jnp.log(exponential_BN), -jnp.inf)

  def better(best: _Best, ids_BN: jax.Array, exponential_BN: jax.Array) -> _Best:
    value_BN = value(_at(rows.logits_BV, ids_BN), exponential_BN)
    value_B = jnp.max(value_BN, axis=1)
    # The least id of those, because an argmax takes XLA for CPU four times as long.
    winner_BN = value_BN == value_B[:, None]
    id_B = jnp.min(jnp.where(winner_BN, ids_BN, jnp.iinfo(jnp.int32).max), axis=1)
    return _Best(
      jnp.maximum(value_B, best.value_B), jnp.where(value_B > best.value_B, id_B, best.token_B)
    )

  def look(state: tuple[jax.Array, _Best]) -> tuple[jax.Array, _Best]:
    bound_BC, best = state
    _, chunk_BK = jax.lax.top_k(bound_BC, min(_LOOK, num_chunks))
    ids_BN = _ids(chunk_BK)
    since_BN = _spread(_take(second_BC, chunk_BK))
    is_second_BN = ids_BN == _spread(chunk_BK * CHUNK + _take(place2_BC, chunk_BK))
    # The first arrival gets too much here; it has been looked at, with what is its own.
    rest_BN = jnp.where(is_second_BN, 0, later(rows.noise, ids_BN))
    best = better(best, ids_BN, since_BN + rest_BN)
    return bound_BC.at[jnp.arange(num_rows)[:, None], chunk_BK].set(-jnp.inf), best

  def unsure(state: tuple[jax.Array, _Best]) -> jax.Array:
    maybe_B = jnp.max(state[0], axis=1) > state[1].value_B - _SLACK
    return jnp.any(maybe_B & rows.usual_B)

  best = _Best(jnp.full_like(rows.max_B, -jnp.inf), jnp.zeros((num_rows,), jnp.int32))
  best = better(best, start_C + place1_BC, first_BC)
  state = (value(rows.peak_BC, second_BC), best)
  return jax.lax.while_loop(unsure, look, state)[1].token_B


class _Best(NamedTuple):
  """The best so far: logit with noise, and token."""

  value_B: jax.Array
  token_B: jax.Array


def _kth_largest(rows: _Rows, k: int) -> jax.Array:
  """Return the k-th largest logit of each row."""
  vocab = rows.logits_BV.shape[1]
  logits_BN = rows.logits_BV
  if 2 * k * CHUNK <= vocab:
    # The k chunks of the largest maxima hold k logits at least as large as any elsewhere.
    _, chunk_BK = jax.lax.top_k(rows.peak_BC, k)
    logits_BN = _at(rows.logits_BV, _ids(chunk_BK))
  # Not the last column: XLA for CPU then sorts the logits (100 times slower).
  return jnp.min(jax.lax.top_k(logits_BN, k)[0], axis=1)


def _mass(
  logits_BV: jax.Array,
  max_B: jax.Array,
  inverse: float,
  *,
  least_B: jax.Array | None = None,
  above_B: jax.Array | None = None,
) -> jax.Array:
  """Return the sum of exp((logit - max) / temperature) over the logits that count."""

  # Masks go before the exponential: XLA would keep one shared by two sums as an array [B, V].
  def terms(logits_BCN: jax.Array) -> jax.Array:
    z_BCN = (logits_BCN - max_B[:, None, None]) * inverse
    if least_B is not None:
      z_BCN = jnp.where(logits_BCN >= least_B[:, None, None], z_BCN, -jnp.inf)
    if above_B is not None:
      z_BCN = jnp.where(logits_BCN > above_B[:, None, None], z_BCN, -jnp.inf)
    return jnp.exp(z_BCN)

  return jnp.sum(_by_chunk(jnp.sum, logits_BV, terms), axis=1)


def _by_chunk(
  reduce: Callable[..., jax.Array],
  logits_BV: jax.Array,
  of: Callable[[jax.Array], jax.Array] = lambda x: x,
) -> jax.Array:
  """Reduce each chunk of 64 logits to one number, [B, C]; the last chunk may be short."""
  num_rows, vocab = logits_BV.shape
  whole = vocab - vocab % CHUNK
  # Two pieces, because XLA would copy the logits to pad them.
  pieces = [logits_BV[:, :whole].reshape(num_rows, -1, CHUNK), logits_BV[:, None, whole:]]
  return jnp.concatenate([reduce(of(x), axis=2) for x in pieces if x.size], axis=1)


def _take(x_BN: jax.Array, at_BK: jax.Array) -> jax.Array:
  """Return what stands at the given places of each row, [B, K]."""
  return jnp.take_along_axis(x_BN, at_BK, axis=1, mode="promise_in_bounds")


def _spread(x_BK: jax.Array) -> jax.Array:
  """Return what chunks have, once for each of their ids, [B, 64 K]."""
  shape = (*x_BK.shape, CHUNK)
  return jnp.broadcast_to(x_BK[..., None], shape).reshape(x_BK.shape[0], -1)


def _ids(chunk_BK: jax.Array) -> jax.Array:
  """Return the token ids of chunks, [B, 64 K]."""
  return _spread(chunk_BK * CHUNK) + jnp.tile(jnp.arange(CHUNK, dtype=jnp.int32), chunk_BK.shape[1])


def _at(logits_BV: jax.Array, ids_BN: jax.Array) -> jax.Array:
  """Return the logits of ids; -inf where the last chunk is short of some."""
  vocab = logits_BV.shape[1]
  logits_BN = _take(logits_BV, jnp.minimum(ids_BN, vocab - 1))
  return jnp.where(ids_BN < vocab, logits_BN, -jnp.inf) if vocab % CHUNK else logits_BN
