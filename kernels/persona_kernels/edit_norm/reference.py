"""The definition, one slot after another, as a chain of hooks would act."""

import jax
import jax.numpy as jnp


def edit_slots(
  h_BTD: jax.Array,
  p_BSD: jax.Array,
  gram_BSS: jax.Array,
  beta_BS: jax.Array,
  shift_BS: jax.Array,
  lo_BS: jax.Array,
  hi_BS: jax.Array,
  above_BS: jax.Array,
  below_BS: jax.Array,
  strength_BTS: jax.Array,
) -> jax.Array:
  """Return the requested change of `h_BTD`; see `persona_kernels.edit_norm.edit_slots`."""
  del gram_BSS  # each slot reads the activation that the slots before it left
  edited = h_BTD
  for s in range(p_BSD.shape[1]):
    p_B1D = p_BSD[:, s, None]
    a_BT = jnp.sum(edited * p_B1D, axis=-1)
    beta, shift, lo, hi = (x[:, s, None] for x in (beta_BS, shift_BS, lo_BS, hi_BS))
    delta_BT = strength_BTS[..., s] * jnp.clip(beta * a_BT + shift, lo - a_BT, hi - a_BT)
    on_BT = (strength_BTS[..., s] != 0) & (a_BT >= above_BS[:, s, None])
    on_BT &= a_BT < below_BS[:, s, None]
    edited = jnp.where(on_BT[..., None], edited + delta_BT[..., None] * p_B1D, edited)
  return edited - h_BTD
