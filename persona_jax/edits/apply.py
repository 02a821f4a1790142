"""Applies the edits of one site to an activation, and measures what was really delivered."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from persona_jax.edits.table import AddEdit, ProjEdit, Site
from persona_kernels.edit_norm import edit_slots


class TokenInfo(NamedTuple):
  """What a window needs to know of each token.

  Attributes:
    offset_BT: int32, position relative to the end of the prompt (0 = first answer token).
    role_BT: int32, one of `edits.table.ROLES`.
    valid_BT: bool, false at padding and in rows that are done; such tokens are never edited.
  """

  offset_BT: jax.Array
  role_BT: jax.Array
  valid_BT: jax.Array


class Delivery(NamedTuple):
  """What edits did, summed over sites and tokens; the delivered dose is `realised_B / requested_B`.

  Attributes:
    realised_B: float32, sum of <h after - h before, requested change>, after the cast to h's dtype.
    requested_B: float32, sum of ||requested change||^2.
    edited_BT: bool, tokens on which some edit was switched on (also one that asks for no change,
      such as a cap that does not bind).
  """

  realised_B: jax.Array
  requested_B: jax.Array
  edited_BT: jax.Array

  @classmethod
  def none(cls, shape_BT: tuple[int, ...]) -> "Delivery":
    """Return the delivery of no edit."""
    zero_B = jnp.zeros(shape_BT[:1], jnp.float32)
    return cls(zero_B, zero_B, jnp.zeros(shape_BT, bool))

  def plus(self, other: "Delivery") -> "Delivery":
    """Add the delivery of another site on the same tokens."""
    return Delivery(
      self.realised_B + other.realised_B,
      self.requested_B + other.requested_B,
      self.edited_BT | other.edited_BT,
    )


def _switched_on(
  start_BW: jax.Array, stop_BW: jax.Array, roles_BW: jax.Array, tokens: TokenInfo
) -> jax.Array:
  """Return bool [B, T, W]: the tokens inside each window."""
  offset_BT1 = tokens.offset_BT[..., None]
  inside = (offset_BT1 >= start_BW[:, None]) & (offset_BT1 < stop_BW[:, None])
  has_role = (roles_BW[:, None] >> tokens.role_BT[..., None]) & 1
  return inside & (has_role == 1) & tokens.valid_BT[..., None]


def _requested_add(edit: AddEdit, tokens: TokenInfo) -> tuple[jax.Array, jax.Array]:
  on_BTW = _switched_on(edit.start_BW, edit.stop_BW, edit.roles_BW, tokens)
  # -0.0 is the zero of addition: h + -0.0 keeps every bit of h, h + 0.0 turns -0.0 into 0.0.
  change_BTD = jnp.full((*tokens.offset_BT.shape, edit.u_BWD.shape[-1]), -0.0, jnp.float32)
  for w in range(edit.u_BWD.shape[1]):
    change_BTD += jnp.where(on_BTW[..., w, None], edit.u_BWD[:, w, None], -0.0)
  return change_BTD, jnp.any(on_BTW, axis=-1)


def _requested_proj(
  edit: ProjEdit, h_BTD: jax.Array, tokens: TokenInfo
) -> tuple[jax.Array, jax.Array]:
  on_BTS = _switched_on(edit.start_BS, edit.stop_BS, edit.roles_BS, tokens)
  change_BTD = edit_slots(
    h_BTD, edit.p_BSD, edit.gram_BSS, edit.beta_BS, edit.shift_BS, edit.lo_BS, edit.hi_BS, on_BTS
  )
  return change_BTD, jnp.any(on_BTS, axis=-1)


def apply_site(site: Site, h_BTD: jax.Array, tokens: TokenInfo) -> tuple[jax.Array, Delivery]:
  """Edit the activation of one site.

  Args:
    site: its edits for B rows.
    h_BTD: activation in any float dtype.
    tokens: offsets, roles and validity of the T tokens.

  Returns:
    The activation in the same dtype, rounded once, and what was delivered. A token with no edit
    switched on keeps its bits.
  """
  h32_BTD = h_BTD.astype(jnp.float32)
  if site.proj is not None:
    change_BTD, edited_BT = _requested_proj(site.proj, h32_BTD, tokens)
  else:
    assert site.add is not None
    change_BTD, edited_BT = _requested_add(site.add, tokens)
  on_BT1 = edited_BT[..., None]
  out_BTD = jnp.where(on_BT1, (h32_BTD + change_BTD).astype(h_BTD.dtype), h_BTD)
  change_BTD = jnp.where(on_BT1, change_BTD, 0.0)
  realised_BTD = out_BTD.astype(jnp.float32) - h32_BTD
  return out_BTD, Delivery(
    jnp.sum(realised_BTD * change_BTD, axis=(1, 2)),
    jnp.sum(change_BTD * change_BTD, axis=(1, 2)),
    edited_BT,
  )
