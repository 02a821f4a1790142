"""Parts shared by the families: norm, rotary embedding, masks, keys and values.

All are pure functions of arrays. Products run in the weights' dtype with float32 accumulation;
norms and rotations run in float32. Float32 weights ask for the device's full float32
product, which on GPU and TPU is not the default.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from persona_jax.models.rope import Rope


class KV(NamedTuple):
  """Keys and values of one block: `k_BKHS` and `v_BKSH`, rotary embedding already applied to keys.

  Slots stand inside heads, 6 times faster than [B, S, K, H] on a CPU; and those of the keys stand
  last, as their product with the queries wants them: of 128 rows with 64 slots 0.33 ms instead of
  0.90 (measured, 2 cores).
  """

  k_BKHS: jax.Array
  v_BKSH: jax.Array

  @classmethod
  def of(cls, k_BTKH: jax.Array, v_BTKH: jax.Array, dtype: DTypeLike) -> "KV":
    """Lay out the keys and values of T tokens."""
    return cls(
      jnp.transpose(k_BTKH, (0, 2, 3, 1)).astype(dtype),
      jnp.transpose(v_BTKH, (0, 2, 1, 3)).astype(dtype),
    )

  @classmethod
  def empty(cls, rows: int, heads: int, slots: int, width: int, dtype: DTypeLike) -> "KV":
    """Return a cache of empty slots."""
    return cls(
      jnp.zeros((rows, heads, width, slots), dtype), jnp.zeros((rows, heads, slots, width), dtype)
    )

  @property
  def dtype(self) -> np.dtype:
    """Of both."""
    return self.v_BKSH.dtype

  @property
  def num_rows(self) -> int:
    """B."""
    return self.v_BKSH.shape[0]

  @property
  def num_slots(self) -> int:
    """S."""
    return self.v_BKSH.shape[2]

  def rows(self, index: jax.Array) -> "KV":
    """Return the rows `index`, in that order."""
    return KV(self.k_BKHS[index], self.v_BKSH[index])

  def slots(self, index: jax.Array) -> "KV":
    """Return the slots `index`, in that order."""
    return KV(self.k_BKHS[..., index], self.v_BKSH[:, :, index])

  def padded(self, slots: int) -> "KV":
    """Return it with `slots` slots, empty ones behind."""
    pad = (0, slots - self.num_slots)
    none = (0, 0)
    return KV(
      jnp.pad(self.k_BKHS, (none, none, none, pad)), jnp.pad(self.v_BKSH, (none, none, pad, none))
    )


class Rotation(NamedTuple):
  """Rotary angles of each token: `cos_BTH` and `sin_BTH`, float32, over half the head width."""

  cos_BTH: jax.Array
  sin_BTH: jax.Array


def dot(x: jax.Array, w: jax.Array, equation: str) -> jax.Array:
  """Multiply activations by weights as `equation` says; float32 out, `w.dtype` in."""
  precision = jax.lax.Precision.HIGHEST if w.dtype == jnp.float32 else None
  return jnp.einsum(
    equation, x.astype(w.dtype), w, precision=precision, preferred_element_type=jnp.float32
  )


def rms_norm(
  h_BTD: jax.Array, scale_D: jax.Array, eps: float, dtype: DTypeLike, offset: float = 0.0
) -> jax.Array:
  """Normalise by the root mean square (Zhang & Sennrich 2019), in float32; return `dtype`.

  The scale is `offset` + `scale_D`: Gemma stores what is to be added to 1.
  """
  h = h_BTD.astype(jnp.float32)
  h = h * jax.lax.rsqrt(jnp.mean(h * h, axis=-1, keepdims=True) + eps)
  return (h * (offset + scale_D.astype(jnp.float32))).astype(dtype)


def rotation(position_BT: jax.Array, rope: Rope, head_dim: int) -> Rotation:
  """Compute rotary angles of 0-based positions, int32 [B, T]."""
  angle_BTH = position_BT[..., None].astype(jnp.float32) * rope.frequencies(head_dim)
  factor = np.float32(rope.attention_factor)
  return Rotation(jnp.cos(angle_BTH) * factor, jnp.sin(angle_BTH) * factor)


def visible(
  position_BT: jax.Array, slot_position_BS: jax.Array, window: int | None = None
) -> jax.Array:
  """Return, bool [B, T, S], the slots that each token may attend to.

  Those of positions up to its own, and within `window` tokens of it if there is one. Slots of
  negative positions are empty.
  """
  distance_BTS = position_BT[:, :, None] - slot_position_BS[:, None, :]
  seen_BTS = (distance_BTS >= 0) & (slot_position_BS >= 0)[:, None, :]
  return seen_BTS if window is None else seen_BTS & (distance_BTS < window)


def rotate(x_BTNH: jax.Array, rope: Rotation) -> jax.Array:
  """Rotate pairs (j, j + H/2), the half-split layout of Hugging Face checkpoints; float32.

  The halves change places before the multiplication: put together after it, they keep a CPU from
  working on several numbers at once (0.25 ms a block of 128 rows, measured).
  """
  x_BTNH = x_BTNH.astype(jnp.float32)
  cos, sin = rope.cos_BTH[:, :, None], rope.sin_BTH[:, :, None]
  turned_BTNH = jnp.roll(x_BTNH, x_BTNH.shape[-1] // 2, axis=-1)
  return x_BTNH * jnp.concatenate([cos, cos], -1) + turned_BTNH * jnp.concatenate([-sin, sin], -1)


def write_cache(cache: KV, new: KV, cursor: jax.Array | np.int32) -> KV:
  """Write T new slots at `cursor` into a cache of S slots; one slot number serves all rows."""
  return KV(
    jax.lax.dynamic_update_slice(cache.k_BKHS, new.k_BKHS, (0, 0, 0, cursor)),
    jax.lax.dynamic_update_slice(cache.v_BKSH, new.v_BKSH, (0, 0, cursor, 0)),
  )


def softcap(x: jax.Array, cap: float | None) -> jax.Array:
  """Bound smoothly to (-cap, cap): cap · tanh(x / cap); x itself if cap is None."""
  return x if cap is None else cap * jnp.tanh(x / cap)
