"""What the functions of this package take and give."""

from typing import NamedTuple

import jax


class Slots(NamedTuple):
  """S edits of projections per row, which act one after another.

  For slot s, with a = <h, p_s> after the slots before it and d = clip(beta a + shift, lo - a, hi -
  a): h += strength d p_s where above <= a < below and strength is not 0.

  Attributes:
    p_BSD: unit vectors, float32; zero in unused slots.
    gram_BSS: <p_r, p_s>, float32.
    beta_BS: factor on the projection: 0 to add, -1 to ablate or set, gamma - 1 to scale.
    shift_BS: amount added along p, in the units of h.
    lo_BS, hi_BS: bounds of the projection after the slot.
    above_BS, below_BS: projections on which the slot acts; -inf and inf for all.
    strength_BTS: factor on the slot's change at each token, 0 where it is off.
    keep_norm_B: bool, whether a token's length is restored after all slots; None for nowhere.
  """

  p_BSD: jax.Array
  gram_BSS: jax.Array
  beta_BS: jax.Array
  shift_BS: jax.Array
  lo_BS: jax.Array
  hi_BS: jax.Array
  above_BS: jax.Array
  below_BS: jax.Array
  strength_BTS: jax.Array
  keep_norm_B: jax.Array | None = None


class Out(NamedTuple):
  """What `edit_norm` gives.

  Attributes:
    h_BTD: x + delta, edited, in the dtype of x; rounded once. A token without an edit that is
      switched on has the bits of x + delta.
    y_BTD: its RMSNorm, in the dtype asked for; None without a scale.
    reads_BTR: float32, <h, bank_r> of `h_BTD` as it is stored; None without a bank.
    realised_BT: float32, <h - (x + delta), requested change>.
    requested_BT: float32, ||requested change||^2.
  """

  h_BTD: jax.Array
  y_BTD: jax.Array | None
  reads_BTR: jax.Array | None
  realised_BT: jax.Array
  requested_BT: jax.Array
