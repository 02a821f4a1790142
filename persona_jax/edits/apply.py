"""Applies the edits of one site to an activation, and measures what was really delivered."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from persona_jax.edits import ramp
from persona_jax.edits.table import (
  AFTER_THOUGHT,
  AddEdit,
  AffineEdit,
  CustomEdit,
  FeatureEdit,
  ProjEdit,
  RotateEdit,
  Site,
  Stage,
  When,
)
from persona_kernels.edit_norm import Slots, edit_slots

_HIGHEST = jax.lax.Precision.HIGHEST


class TokenInfo(NamedTuple):
  """What a window needs to know of each token.

  Attributes:
    offset_BT: int32, position relative to the end of the prompt (0 = first answer token).
    role_BT: int32, one of `edits.table.ROLES`.
    valid_BT: bool, false at padding and in rows that are done; such tokens are never edited.
    after_BT: int32, position relative to the end of the thought before the token
      (`edits.window.after_thought`); None where no row has a thought.
  """

  offset_BT: jax.Array
  role_BT: jax.Array
  valid_BT: jax.Array
  after_BT: jax.Array | None = None


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


def _inside(
  start_BW: jax.Array, stop_BW: jax.Array, roles_BW: jax.Array, tokens: TokenInfo
) -> jax.Array:
  """Return bool [B, T, W]: the tokens inside each window."""
  offset_BT1 = tokens.offset_BT[..., None]
  if tokens.after_BT is None:
    roles_BW = jnp.where(roles_BW & AFTER_THOUGHT, 0, roles_BW)  # such a window holds no token
  else:
    from_thought = (roles_BW[:, None] & AFTER_THOUGHT) != 0
    offset_BT1 = jnp.where(from_thought, tokens.after_BT[..., None], offset_BT1)
  inside = (offset_BT1 >= start_BW[:, None]) & (offset_BT1 < stop_BW[:, None])
  has_role = (roles_BW[:, None] >> tokens.role_BT[..., None]) & 1
  return inside & (has_role == 1) & tokens.valid_BT[..., None]


def _strength(when: When, tokens: TokenInfo) -> jax.Array:
  """Return float32 [B, T, S]: the factor on each slot's change, 0 where it is off."""
  inside_BTS = _inside(when.start_BS, when.stop_BS, when.roles_BS, tokens)
  strength_BTS = jnp.where(inside_BTS, when.gate_BS[:, None], 0.0)
  if when.ramp_BSR is not None:
    strength_BTS = strength_BTS * ramp.factor(when.ramp_BSR, tokens.offset_BT)
  return strength_BTS


def _add(stage: AddEdit, h_BTD: jax.Array, tokens: TokenInfo) -> tuple[jax.Array, jax.Array]:
  on_BTW = _inside(stage.start_BW, stage.stop_BW, stage.roles_BW, tokens)
  # -0.0 is the zero of addition: h + -0.0 keeps every bit of h, h + 0.0 turns -0.0 into 0.0.
  change_BTD = jnp.full_like(h_BTD, -0.0)
  for w in range(stage.u_BWD.shape[1]):
    change_BTD += jnp.where(on_BTW[..., w, None], stage.u_BWD[:, w, None], -0.0)
  return change_BTD, jnp.any(on_BTW, axis=-1)


def slots_of(stage: ProjEdit, tokens: TokenInfo) -> Slots:
  """Return the edits of a stage as `persona_kernels` takes them."""
  return _slots(stage, _strength(stage.when, tokens))


def _slots(stage: ProjEdit, strength_BTS: jax.Array) -> Slots:
  return Slots(
    stage.p_BSD,
    stage.gram_BSS,
    stage.beta_BS,
    stage.shift_BS,
    stage.lo_BS,
    stage.hi_BS,
    stage.above_BS,
    stage.below_BS,
    strength_BTS,
    stage.keep_norm_B,
  )


def _rotate(stage: RotateEdit, h_BTD: jax.Array, strength_BTS: jax.Array) -> jax.Array:
  total_BTD = jnp.zeros_like(h_BTD)
  for s in range(stage.angle_BS.shape[1]):
    pair_B2D, angle_B1 = stage.pair_BS2D[:, s], stage.angle_BS[:, s, None]
    now_BTD = h_BTD + total_BTD
    a_BT2 = jnp.einsum("BTD,BPD->BTP", now_BTD, pair_B2D, precision=_HIGHEST)
    x_BT, y_BT = a_BT2[..., 0], a_BT2[..., 1]
    cos, sin = jnp.cos(angle_B1), jnp.sin(angle_B1)
    square_BT = x_BT * x_BT + y_BT * y_BT
    # The inner `where` keeps the gradient finite at 0.
    radius_BT = jnp.where(square_BT > 0, jnp.sqrt(jnp.where(square_BT > 0, square_BT, 1.0)), 0.0)
    by = jnp.stack([(cos - 1) * x_BT - sin * y_BT, sin * x_BT + (cos - 1) * y_BT], axis=-1)
    to = jnp.stack([radius_BT * cos - x_BT, radius_BT * sin - y_BT], axis=-1)
    turn_BT2 = jnp.where(stage.to_BS[:, s, None, None], to, by)
    strength_BT = jnp.where(x_BT > stage.above_BS[:, s, None], strength_BTS[..., s], 0.0)
    turn_BT2 = turn_BT2 * strength_BT[..., None]
    total_BTD += jnp.einsum("BTP,BPD->BTD", turn_BT2, pair_B2D, precision=_HIGHEST)
  return total_BTD


def _features(stage: FeatureEdit, h_BTD: jax.Array, strength_BTS: jax.Array) -> jax.Array:
  total_BTD = jnp.zeros_like(h_BTD)
  for s in range(stage.beta_BS.shape[1]):
    x_BT = jnp.einsum("BTD,BD->BT", h_BTD + total_BTD, stage.encode_BSD[:, s], precision=_HIGHEST)
    numbers = (
      stage.bias_BS, stage.threshold_BS, stage.beta_BS, stage.shift_BS, stage.lo_BS, stage.hi_BS,
    )  # fmt: skip
    bias, threshold, beta, shift, lo, hi = (number[:, s, None] for number in numbers)
    x_BT = x_BT + bias
    z_BT = jnp.where(x_BT > threshold, x_BT, 0.0)
    delta_BT = strength_BTS[..., s] * jnp.clip(beta * z_BT + shift, lo - z_BT, hi - z_BT)
    total_BTD += delta_BT[..., None] * stage.decode_BSD[:, s, None]
  return total_BTD


def _affine(stage: AffineEdit, h_BTD: jax.Array, strength_BTS: jax.Array) -> jax.Array:
  inner_BTR = jnp.einsum("BTD,DR->BTR", h_BTD, stage.in_DR, precision=_HIGHEST) + stage.bias_R
  change_BTD = jnp.einsum("BTR,RD->BTD", inner_BTR, stage.out_RD, precision=_HIGHEST)
  return strength_BTS * change_BTD


def _custom(
  stage: CustomEdit, h: jax.Array, tokens: TokenInfo, strength_BTS: jax.Array
) -> jax.Array:
  """Call the user's function on [B, T, D] or, at "head_out", [B, T, N, H]."""
  out = stage.fn(h, stage.params, tokens.offset_BT)
  if jnp.shape(out) != h.shape:
    raise ValueError(f"a custom edit turned shape {h.shape} into {jnp.shape(out)}; it must stay.")
  strength = strength_BTS.reshape(*strength_BTS.shape[:2], *(1,) * (h.ndim - 2))
  # Tokens that are not edited take no part, whatever the function makes of them.
  return jnp.where(strength != 0, strength * (out.astype(jnp.float32) - h), 0.0)


def _keeping_norm(h: jax.Array, change: jax.Array, keep_norm_B: jax.Array) -> jax.Array:
  """Return the change after which h has its old length again, in the rows that ask for it."""
  before, after = (jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (h, h + change))
  ratio = before / jnp.where(after > 0, after, 1.0)
  kept = (ratio - 1) * h + ratio * change
  return jnp.where(keep_norm_B.reshape(-1, *(1,) * (h.ndim - 1)), kept, change)


def _run_stage(stage: Stage, h: jax.Array, tokens: TokenInfo) -> tuple[jax.Array, jax.Array]:
  """Return the change that a stage asks for, and the tokens [B, T] that it acts on."""
  if isinstance(stage, AddEdit):
    return _add(stage, h, tokens)
  strength_BTS = _strength(stage.when, tokens)
  if isinstance(stage, CustomEdit):
    change = _custom(stage, h, tokens, strength_BTS)
  elif isinstance(stage, AffineEdit):
    change = _affine(stage, h, strength_BTS)
  elif isinstance(stage, RotateEdit):
    change = _rotate(stage, h, strength_BTS)
  elif isinstance(stage, FeatureEdit):
    change = _features(stage, h, strength_BTS)
  else:
    # The norm is kept below, as in the other stages.
    change = edit_slots(h, _slots(stage, strength_BTS)._replace(keep_norm_B=None))
  on_BT = jnp.any(strength_BTS != 0, axis=-1)
  if stage.keep_norm_B is not None:
    change = _keeping_norm(h, change, stage.keep_norm_B)
  return change, on_BT


def _run_heads(stage: Stage, h_BTNH: jax.Array, tokens: TokenInfo) -> tuple[jax.Array, jax.Array]:
  """Return the change of every head, each edited by itself, and the tokens [B, T, N] of each."""
  if isinstance(stage, CustomEdit):
    change_BTNH, on_BT = _run_stage(stage, h_BTNH, tokens)
    return change_BTNH, jnp.broadcast_to(on_BT[..., None], h_BTNH.shape[:3])
  run = jax.vmap(_run_stage, in_axes=(1, 2, None), out_axes=2)
  change_BTNH, on_BTN = run(stage, h_BTNH, tokens)
  return change_BTNH, on_BTN


def rounded(x: jax.Array) -> jax.Array:
  """Return x in float32, with the rounding to its own dtype.

  A bare cast does not promise it: XLA may leave out the rounding of a sum that is widened again.
  """
  if x.dtype == jnp.float32:
    return x
  kind = jnp.finfo(x.dtype)
  return jax.lax.reduce_precision(x.astype(jnp.float32), kind.nexp, kind.nmant)


def apply_site(site: Site, h: jax.Array, tokens: TokenInfo) -> tuple[jax.Array, Delivery]:
  """Edit the activation of one site.

  Args:
    site: its edits for B rows.
    h: activation [B, T, D] in any float dtype; at "head_out" [B, T, N, H].
    tokens: offsets, roles and validity of the T tokens.

  Returns:
    The activation in the same dtype, rounded once, and what was delivered. A token with no edit
    switched on keeps its bits.
  """
  run = _run_heads if h.ndim == 4 else _run_stage
  before = rounded(h)
  total: jax.Array | None = None
  on = jnp.zeros(h.shape[:-1], bool)
  for stage in site.stages:
    # The change is kept beside h, never as h after minus before: that would lose a small one.
    change, on_here = run(stage, before if total is None else before + total, tokens)
    total = change if total is None else total + jnp.where(on_here[..., None], change, 0.0)
    on |= on_here
  assert total is not None
  out = jnp.where(on[..., None], (before + total).astype(h.dtype), h)
  total = jnp.where(on[..., None], total, 0.0)
  realised = rounded(out) - before
  axes = tuple(range(1, h.ndim))
  return out, Delivery(
    jnp.sum(realised * total, axis=axes),
    jnp.sum(total * total, axis=axes),
    on if h.ndim == 3 else jnp.any(on, axis=-1),
  )
