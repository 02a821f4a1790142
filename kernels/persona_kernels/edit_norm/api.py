"""Public entry of the edit; picks an implementation."""

from typing import Literal

import jax

from persona_kernels.edit_norm import reference, xla

_IMPLEMENTATIONS = {"reference": reference.edit_slots, "xla": xla.edit_slots}


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
  *,
  implementation: Literal["reference", "xla"] = "xla",
) -> jax.Array:
  """Compute the change that S edits per row, one after another, ask of an activation.

  For slot s, with a = <h, p_s> after the slots before it: delta = clip(beta a + shift, lo - a, hi -
  a) and, where above <= a < below, h += strength delta p_s.

  Args:
    h_BTD: activation [B, T, D]; the sums run in float32 ("reference": in its own dtype).
    p_BSD: unit vectors [B, S, D].
    gram_BSS: <p_r, p_s>, [B, S, S].
    beta_BS: factor on the projection: 0 to add, -1 to ablate or set, gamma - 1 to scale.
    shift_BS: amount added along p, in the units of h.
    lo_BS: lower bound of the projection after the slot.
    hi_BS: upper bound.
    above_BS, below_BS: projections on which the slot acts; -inf and inf for all.
    strength_BTS: factor on the slot's change at each token, 0 where it is off, [B, T, S].
    implementation: "xla", or "reference" (the definition, slow).

  Returns:
    The sum of delta p over the slots, [B, T, D].

  Raises:
    ValueError: the implementation is unknown.
  """
  if implementation not in _IMPLEMENTATIONS:
    raise ValueError(f"implementation={implementation!r}; there are {sorted(_IMPLEMENTATIONS)}.")
  run = _IMPLEMENTATIONS[implementation]
  return run(
    h_BTD, p_BSD, gram_BSS, beta_BS, shift_BS, lo_BS, hi_BS, above_BS, below_BS, strength_BTS
  )
