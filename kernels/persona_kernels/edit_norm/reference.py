"""The definition, one slot after another, as a chain of hooks would act; in the dtype of h."""

import jax
import jax.numpy as jnp

from persona_kernels.edit_norm.types import Out, Slots


def edit_slots(h_BTD: jax.Array, slots: Slots) -> jax.Array:
  """Return the requested change of `h_BTD`; see `persona_kernels.edit_norm.edit_slots`."""
  edited = h_BTD
  for s in range(slots.p_BSD.shape[1]):
    p_B1D = slots.p_BSD[:, s, None]
    a_BT = jnp.sum(edited * p_B1D, axis=-1)
    numbers = (
      slots.beta_BS, slots.shift_BS, slots.lo_BS, slots.hi_BS, slots.above_BS, slots.below_BS,
    )  # fmt: skip
    beta, shift, lo, hi, above, below = (number[:, s, None] for number in numbers)
    strength_BT = slots.strength_BTS[..., s]
    delta_BT = strength_BT * jnp.clip(beta * a_BT + shift, lo - a_BT, hi - a_BT)
    on_BT = (strength_BT != 0) & (a_BT >= above) & (a_BT < below)
    edited = jnp.where(on_BT[..., None], edited + delta_BT[..., None] * p_B1D, edited)
  if slots.keep_norm_B is not None:
    before, after = (jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (h_BTD, edited))
    kept = edited * before / jnp.where(after > 0, after, 1)
    edited = jnp.where(slots.keep_norm_B[:, None, None], kept, edited)
  return edited - h_BTD


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
  wide = jnp.promote_types(slots.p_BSD.dtype, jnp.float32)
  kind = jnp.finfo(x_BTD.dtype)
  plain_BTD = (x_BTD + delta_BTD).astype(wide)
  if kind.bits < 64:  # XLA would leave the rounding of the sum out of a fusion
    plain_BTD = jax.lax.reduce_precision(plain_BTD, kind.nexp, kind.nmant)
  change_BTD = edit_slots(plain_BTD, slots)
  on_BT1 = jnp.any(slots.strength_BTS != 0, axis=-1, keepdims=True)
  change_BTD = jnp.where(on_BT1, change_BTD, 0)
  h_BTD = jnp.where(on_BT1, (plain_BTD + change_BTD).astype(x_BTD.dtype), x_BTD + delta_BTD)
  h = h_BTD.astype(wide)
  y_BTD = None
  if scale_D is not None:
    unit = h / jnp.sqrt(jnp.mean(h * h, axis=-1, keepdims=True) + eps)
    y_BTD = (unit * (offset + scale_D.astype(wide))).astype(dtype)
  reads = None
  if bank_RD is not None:
    reads = jnp.einsum("BTD,RD->BTR", h, bank_RD, precision=jax.lax.Precision.HIGHEST)
  realised_BT = jnp.sum((h - plain_BTD) * change_BTD, axis=-1)
  return Out(h_BTD, y_BTD, reads, realised_BT, jnp.sum(change_BTD**2, axis=-1))
