"""Parts shared by the families: norm, rotary embedding, masks, attention.

All are pure functions of arrays. Products run in the weights' dtype with float32 accumulation;
norms, rotations and softmax run in float32. Float32 weights ask for the device's full float32
product, which on GPU and TPU is not the default.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from persona_jax.models.rope import Rope

_MASKED = -1e30  # finite, so that a row that may see nothing (a pad) gives no NaN


class KV(NamedTuple):
  """Keys and values of one block: `k_BKSH` and `v_BKSH`, rotary embedding already applied to keys.

  [B, K, S, H] rather than [B, S, K, H]: attention reads it 6 times faster on a CPU (measured, 2
  cores).
  """

  k_BKSH: jax.Array
  v_BKSH: jax.Array


class Slots(NamedTuple):
  """Where a block's T tokens stand, and what they may attend to.

  Attributes:
    position_BT: int32, position of each token in its row.
    slot_position_BS: int32, position of the token in each slot, the T tokens' own included;
      negative where a slot is empty.
    rope: rotation of the T tokens for this kind of block.
    mask_BTS: bool, the slots each token may attend to in this kind of block.
    kv: keys and values of S slots, into which the tokens are written from slot `cursor` on; None
      if the T tokens are the slots.
    cursor: int32.
  """

  position_BT: jax.Array
  slot_position_BS: jax.Array
  rope: "Rotation"
  mask_BTS: jax.Array
  kv: KV | None
  cursor: jax.Array | int


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
  """Rotate pairs (j, j + H/2), the half-split layout of Hugging Face checkpoints; float32."""
  a, b = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
  cos, sin = rope.cos_BTH[:, :, None], rope.sin_BTH[:, :, None]
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def write_cache(cache: KV, new: KV, cursor: jax.Array | int) -> KV:
  """Write T new slots at `cursor` into a cache of S slots; one slot number serves all rows."""
  start = (0, 0, cursor, 0)
  return KV(
    jax.lax.dynamic_update_slice(cache.k_BKSH, new.k_BKSH, start),
    jax.lax.dynamic_update_slice(cache.v_BKSH, new.v_BKSH, start),
  )


def softcap(x: jax.Array, cap: float | None) -> jax.Array:
  """Bound smoothly to (-cap, cap): cap · tanh(x / cap); x itself if cap is None."""
  return x if cap is None else cap * jnp.tanh(x / cap)


def attend(
  q_BTNH: jax.Array,
  kv: KV,
  mask_BTS: jax.Array,
  dtype: DTypeLike,
  *,
  scale: float | None = None,
  cap: float | None = None,
) -> jax.Array:
  """Attend, in groups of queries; `mask_BTS` is true where a query may see a slot; [B, T, N, H].

  Scores are multiplied by `scale` (None: H ** -0.5) and soft-capped by `cap`.
  """
  b, t, n, h = q_BTNH.shape
  k = kv.k_BKSH.shape[1]
  scale = h**-0.5 if scale is None else scale
  q_BTKGH = (q_BTNH * scale).astype(dtype).reshape(b, t, k, n // k, h)
  score_BKGTS = softcap(dot(q_BTKGH, kv.k_BKSH, "BTKGH,BKSH->BKGTS"), cap)
  score_BKGTS = jnp.where(mask_BTS[:, None, None], score_BKGTS, _MASKED)
  weight_BKGTS = jax.nn.softmax(score_BKGTS, axis=-1)
  # Asked for as BKGTH and moved after: asked for as BTKGH, a CPU took 2.4 times as long (measured).
  out_BKGTH = dot(weight_BKGTS, kv.v_BKSH, "BKGTS,BKSH->BKGTH")
  return jnp.moveaxis(out_BKGTH, 3, 1).reshape(b, t, n, h).astype(dtype)
