"""Sizes and random arguments of `edit_norm`, shared by tests and benchmarks."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from persona_kernels.edit_norm.types import Slots


@dataclasses.dataclass(frozen=True)
class ArgSpec:
  """One set of sizes.

  Attributes:
    name: what it is for.
    rows, tokens, width, slots, directions: B, T, D, S and R (0: no bank).
    dtype: of the stream.
    offset: of the norm's scale, 1 as in Gemma.
    keep_norm: whether some rows keep their length.
  """

  name: str
  rows: int
  tokens: int
  width: int
  slots: int
  directions: int = 0
  dtype: str = "bfloat16"
  offset: float = 0.0
  keep_norm: bool = False


# Small and odd sizes, for every implementation against float64.
TESTED = (
  ArgSpec("one token", 3, 1, 128, 1),
  ArgSpec("one slot", 2, 32, 256, 1, dtype="float32"),
  ArgSpec("bank", 2, 48, 128, 2, 5, dtype="float32"),
  ArgSpec("ragged tokens", 2, 150, 128, 4, 3, dtype="float32"),
  ArgSpec("Gemma's scale", 2, 32, 256, 2, 2, dtype="float32", offset=1.0),
  ArgSpec("norm kept", 3, 16, 128, 4, 2, dtype="float32", keep_norm=True),
  ArgSpec("eight slots", 2, 32, 384, 8, 1, dtype="float32"),
  ArgSpec("bfloat16", 2, 160, 256, 4, 8),
)
# Sizes of Llama-3.1-8B: a prefill of 16 prompts, and a step of decoding.
MEASURED = (
  ArgSpec("prefill, 1 slot", 16, 1024, 4096, 1),
  ArgSpec("prefill, 8 slots", 16, 1024, 4096, 8),
  ArgSpec("prefill, 4 slots, 300 directions", 16, 1024, 4096, 4, 300),
  ArgSpec("decode, 1 slot", 256, 1, 4096, 1),
  ArgSpec("decode, 8 slots", 256, 1, 4096, 8),
)


def shapes(spec: ArgSpec) -> tuple[tuple[Any, ...], dict[str, Any]]:
  """Return arguments of `edit_norm` as `jax.ShapeDtypeStruct`, and its keywords."""
  b, t, d, s, r = spec.rows, spec.tokens, spec.width, spec.slots, spec.directions

  def array(*shape: int, dtype: Any = jnp.float32) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)

  stream = array(b, t, d, dtype=jnp.dtype(spec.dtype))
  numbers: list[Any] = [array(b, s) for _ in range(6)]
  keep = array(b, dtype=jnp.bool_) if spec.keep_norm else None
  slots = Slots(*(array(b, s, d), array(b, s, s), *numbers, array(b, t, s), keep))
  bank = array(r, d) if r else None
  return (stream, stream, slots, array(d), bank), {"eps": 1e-5, "offset": spec.offset}


def arguments(spec: ArgSpec, seed: int = 0) -> tuple[tuple[Any, ...], dict[str, Any]]:
  """Draw arguments of `edit_norm`: every operation, neutral slots, rows and tokens among them."""
  rng = np.random.default_rng(seed)
  b, t, d, s, r = spec.rows, spec.tokens, spec.width, spec.slots, spec.directions
  p = rng.normal(size=(b, s, d))
  p /= np.linalg.norm(p, axis=-1, keepdims=True)
  p = p.astype(np.float32)

  def pick(share: float, inside: Any, outside: float) -> np.ndarray:
    return np.where(rng.random((b, s)) < share, inside, outside)

  def stream() -> jax.Array:
    return jnp.asarray(3 * rng.normal(size=(b, t, d)), jnp.dtype(spec.dtype))

  def single(x: np.ndarray) -> jax.Array:
    return jnp.asarray(x, jnp.float32)

  strength = rng.choice([0.0, 0.5, 1.0], (b, t, s)) * (rng.random((b, t, 1)) < 0.7)
  strength[0] = 0.0  # a row without edits
  slots = Slots(
    single(p),
    single(np.einsum("brd,bsd->brs", p.astype(np.float64), p)),
    single(rng.choice([0.0, -1.0, 0.5], (b, s))),
    single(4 * rng.normal(size=(b, s))),
    single(pick(0.3, rng.normal(size=(b, s)) - 2, -np.inf)),
    single(pick(0.3, rng.normal(size=(b, s)) + 2, np.inf)),
    single(pick(0.2, -3.0, -np.inf)),
    single(pick(0.2, 3.0, np.inf)),
    single(strength),
    jnp.asarray(np.arange(b) % 2 == 1) if spec.keep_norm else None,
  )
  scale = single(rng.normal(size=d) * 0.2 + (0 if spec.offset else 1))
  bank = single(rng.normal(size=(r, d)) / d**0.5) if r else None
  return (stream(), stream(), slots, scale, bank), {"eps": 1e-5, "offset": spec.offset}
