"""How the next token is chosen from logits."""

import dataclasses

import jax
import jax.numpy as jnp

_NEVER = -jnp.inf


@dataclasses.dataclass(frozen=True)
class Sampling:
  """Decoding strategy; filters apply in the order temperature, top-k, top-p, min-p.

  Attributes:
    temperature: 0 is greedy (the filters then change nothing and are refused).
    top_k: keep the k likeliest tokens.
    top_p: keep the smallest set of likeliest tokens with at least this mass (Holtzman et al. 2020).
    min_p: keep tokens at least this fraction as likely as the likeliest (Nguyen et al. 2024).

  Raises:
    ValueError: a value out of range, or a filter at temperature 0.
  """

  temperature: float = 0.0
  top_k: int | None = None
  top_p: float | None = None
  min_p: float | None = None

  def __post_init__(self) -> None:
    if not 0 <= self.temperature < float("inf"):
      raise ValueError(f"temperature={self.temperature!r}: give 0 (greedy) or a positive number.")
    if self.top_k is not None and (not isinstance(self.top_k, int) or self.top_k < 1):
      raise ValueError(f"top_k={self.top_k!r}: give an int of at least 1.")
    for name, value in (("top_p", self.top_p), ("min_p", self.min_p)):
      if value is not None and not 0 < value <= 1:
        raise ValueError(f"{name}={value!r}: give a number in (0, 1].")
    filters = [n for n in ("top_k", "top_p", "min_p") if getattr(self, n) is not None]
    if self.temperature == 0 and filters:
      raise ValueError(f"{filters} change nothing at temperature=0 (greedy); set a temperature.")


def next_token(
  sampling: Sampling, logits_BV: jax.Array, key_B: jax.Array, step: jax.Array
) -> jax.Array:
  """Choose a token for each row, int32 [B].

  Row b draws Gumbel noise from its own key folded with the step, one number a token of the
  vocabulary: its choice depends on no other row, and rows that share a key share their noise.
  """
  if sampling.temperature == 0:
    return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
  z_BV = logits_BV.astype(jnp.float32) / sampling.temperature
  vocab = z_BV.shape[-1]
  if sampling.top_k is not None and sampling.top_k < vocab:
    kth_B1 = jax.lax.top_k(z_BV, sampling.top_k)[0][:, -1:]
    z_BV = jnp.where(z_BV < kth_B1, _NEVER, z_BV)
  if sampling.top_p is not None:
    sorted_BV = jnp.sort(z_BV, axis=-1, descending=True)
    p_BV = jax.nn.softmax(sorted_BV, axis=-1)
    before_BV = jnp.cumsum(p_BV, axis=-1) - p_BV
    last_B1 = jnp.sum(before_BV < sampling.top_p, axis=-1, keepdims=True) - 1
    z_BV = jnp.where(z_BV < jnp.take_along_axis(sorted_BV, last_B1, axis=-1), _NEVER, z_BV)
  if sampling.min_p is not None:
    floor_B1 = jnp.max(z_BV, axis=-1, keepdims=True) + jnp.log(sampling.min_p)
    z_BV = jnp.where(z_BV < floor_B1, _NEVER, z_BV)

  def noise(key: jax.Array) -> jax.Array:
    return jax.random.gumbel(jax.random.fold_in(key, step), (vocab,), jnp.float32)

  return jnp.argmax(z_BV + jax.vmap(noise)(key_B), axis=-1).astype(jnp.int32)
