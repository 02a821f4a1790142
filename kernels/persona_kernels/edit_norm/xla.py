"""The edit in plain XLA: h is read once, the Gram matrix carries what earlier slots did.

    a_s = <h, p_s> + sum over r < s of delta_r <p_r, p_s>

The change is formed directly, never as target minus projection: in float32 the difference loses
1e-3 of a small addition to a large projection.
"""

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
  precision = jax.lax.Precision.HIGHEST
  h_BTD = h_BTD.astype(jnp.float32)
  a_BTS = jnp.einsum("BTD,BSD->BTS", h_BTD, p_BSD, precision=precision)
  deltas: list[jax.Array] = []
  for s in range(p_BSD.shape[1]):
    a_BT = a_BTS[..., s]
    for r, delta_BT in enumerate(deltas):
      a_BT = a_BT + delta_BT * gram_BSS[:, r, s, None]
    beta, shift, lo, hi = (x[:, s, None] for x in (beta_BS, shift_BS, lo_BS, hi_BS))
    strength_BT = strength_BTS[..., s]
    delta_BT = strength_BT * jnp.clip(beta * a_BT + shift, lo - a_BT, hi - a_BT)
    on_BT = (strength_BT != 0) & (a_BT >= above_BS[:, s, None]) & (a_BT < below_BS[:, s, None])
    deltas.append(jnp.where(on_BT, delta_BT, 0.0))
  return jnp.einsum("BTS,BSD->BTD", jnp.stack(deltas, axis=-1), p_BSD, precision=precision)
