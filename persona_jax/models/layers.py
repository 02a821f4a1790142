"""Parts shared by the families: norm, rotary embedding, attention, gated feed-forward.

All are pure functions of arrays. Products run in the weights' dtype with float32 accumulation;
norms, rotations and softmax run in float32. Float32 weights ask for the device's full float32
product, which on GPU and TPU is not the default.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

_MASKED = -1e30  # finite, so that a row that may see nothing (a pad) gives no NaN


class KV(NamedTuple):
  """Keys and values of one block: `k_BKSH` and `v_BKSH`, rotary embedding already applied to keys.

  [B, K, S, H] rather than [B, S, K, H]: attention reads it 6 times faster on a CPU (measured, 2
  cores).
  """

  k_BKSH: jax.Array
  v_BKSH: jax.Array


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


def rms_norm(h_BTD: jax.Array, scale_D: jax.Array, eps: float, dtype: DTypeLike) -> jax.Array:
  """Normalise by the root mean square (Zhang & Sennrich 2019), in float32; return `dtype`."""
  h = h_BTD.astype(jnp.float32)
  h = h * jax.lax.rsqrt(jnp.mean(h * h, axis=-1, keepdims=True) + eps)
  return (h * scale_D.astype(jnp.float32)).astype(dtype)


def rotation(positions_BT: jax.Array, head_dim: int, theta: float) -> Rotation:
  """Compute rotary angles (Su et al. 2021) of 0-based positions, int32 [B, T]."""
  exponent = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
  angle_BTH = positions_BT[..., None].astype(jnp.float32) / theta**exponent
  return Rotation(jnp.cos(angle_BTH), jnp.sin(angle_BTH))


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


def attend(q_BTNH: jax.Array, kv: KV, mask_BTS: jax.Array, dtype: DTypeLike) -> jax.Array:
  """Attend, in groups of queries; `mask_BTS` is true where a query may see a slot; [B, T, N, H]."""
  b, t, n, h = q_BTNH.shape
  k = kv.k_BKSH.shape[1]
  q_BTKGH = (q_BTNH * h**-0.5).astype(dtype).reshape(b, t, k, n // k, h)
  score_BKGTS = dot(q_BTKGH, kv.k_BKSH, "BTKGH,BKSH->BKGTS")
  score_BKGTS = jnp.where(mask_BTS[:, None, None], score_BKGTS, _MASKED)
  weight_BKGTS = jax.nn.softmax(score_BKGTS, axis=-1)
  # Asked for as BKGTH and moved after: asked for as BTKGH, a CPU took 2.4 times as long (measured).
  out_BKGTH = dot(weight_BKGTS, kv.v_BKSH, "BKGTS,BKSH->BKGTH")
  return jnp.moveaxis(out_BKGTH, 3, 1).reshape(b, t, n, h).astype(dtype)


def gated_ffw(
  x_BTD: jax.Array, gate_DF: jax.Array, up_DF: jax.Array, down_FD: jax.Array
) -> jax.Array:
  """Apply SwiGLU (Shazeer 2020): down(silu(gate(x)) * up(x)); float32 [B, T, D]."""
  gate = dot(x_BTD, gate_DF, "BTD,DF->BTF")
  up = dot(x_BTD, up_DF, "BTD,DF->BTF")
  return dot(jax.nn.silu(gate) * up, down_FD, "BTF,FD->BTD")
