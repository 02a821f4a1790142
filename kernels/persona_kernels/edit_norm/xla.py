"""The edit in plain XLA: h is read once, the Gram matrix carries what earlier slots did.

    a_s = <h, p_s> + sum over r < s of d_r <p_r, p_s>

The change is formed directly, never as target minus projection: in float32 the difference loses
1e-3 of a small addition to a large projection.
"""

import jax
import jax.numpy as jnp

from persona_kernels.edit_norm.types import Out, Slots

_HIGHEST = jax.lax.Precision.HIGHEST


def edit_slots(h_BTD: jax.Array, slots: Slots) -> jax.Array:
  """Return the requested change of `h_BTD`; see `persona_kernels.edit_norm.edit_slots`."""
  h_BTD = h_BTD.astype(jnp.float32)
  a_BTS = jnp.einsum("BTD,BSD->BTS", h_BTD, slots.p_BSD, precision=_HIGHEST)
  moved_BTS = moves(a_BTS, slots)
  change_BTD = jnp.einsum("BTS,BSD->BTD", moved_BTS, slots.p_BSD, precision=_HIGHEST)
  if slots.keep_norm_B is not None:
    edited_BTD = h_BTD + change_BTD
    before, after = (jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (h_BTD, edited_BTD))
    ratio = before / jnp.where(after > 0, after, 1.0)
    kept_BTD = (ratio - 1) * h_BTD + ratio * change_BTD
    change_BTD = jnp.where(slots.keep_norm_B[:, None, None], kept_BTD, change_BTD)
  return change_BTD


def moves(a_BTS: jax.Array, slots: Slots) -> jax.Array:
  """Return how far each slot moves h along its vector, from the projections before all of them."""
  moved: list[jax.Array] = []
  for s in range(a_BTS.shape[-1]):
    a_BT = a_BTS[..., s]
    for r, earlier_BT in enumerate(moved):
      a_BT = a_BT + earlier_BT * slots.gram_BSS[:, r, s, None]
    numbers = (
      slots.beta_BS, slots.shift_BS, slots.lo_BS, slots.hi_BS, slots.above_BS, slots.below_BS,
    )  # fmt: skip
    beta, shift, lo, hi, above, below = (number[:, s, None] for number in numbers)
    strength_BT = slots.strength_BTS[..., s]
    delta_BT = strength_BT * jnp.clip(beta * a_BT + shift, lo - a_BT, hi - a_BT)
    on_BT = (strength_BT != 0) & (a_BT >= above) & (a_BT < below)
    moved.append(jnp.where(on_BT, delta_BT, 0.0))
  return jnp.stack(moved, axis=-1)


def edit_norm(
  x_BTD: jax.Array,
  delta_BTD: jax.Array,
  slots: Slots,
  scale_D: jax.Array | None,
  bank_RD: jax.Array | None,
  *,
  eps: float,
  offset: float,
  dtype: jnp.dtype,
) -> Out:
  """See `persona_kernels.edit_norm.edit_norm`."""
  plain_BTD = x_BTD + delta_BTD
  # XLA would leave the rounding of the sum to the stream's dtype out of a fusion.
  kind = jnp.finfo(x_BTD.dtype)
  plain = jax.lax.reduce_precision(plain_BTD.astype(jnp.float32), kind.nexp, kind.nmant)
  on_BT1 = jnp.any(slots.strength_BTS != 0, axis=-1, keepdims=True)
  change_BTD = jnp.where(on_BT1, edit_slots(plain, slots), 0.0)
  h_BTD = jnp.where(on_BT1, (plain + change_BTD).astype(x_BTD.dtype), plain_BTD)
  h = h_BTD.astype(jnp.float32)
  y_BTD = None
  if scale_D is not None:
    inverse = jax.lax.rsqrt(jnp.mean(h * h, axis=-1, keepdims=True) + eps)
    y_BTD = (h * inverse * (offset + scale_D.astype(jnp.float32))).astype(dtype)
  reads_BTR = None
  if bank_RD is not None:
    reads_BTR = jnp.einsum("BTD,RD->BTR", h, bank_RD, precision=_HIGHEST)
  realised_BT = jnp.sum((h - plain) * change_BTD, axis=-1)
  return Out(h_BTD, y_BTD, reads_BTR, realised_BT, jnp.sum(change_BTD * change_BTD, axis=-1))
