"""The fused kernel for TPU: x and delta are read once, h and y written once.

One program handles a block of tokens of one row, so that the row's vectors stay in VMEM while its
tokens stream by; arithmetic is float32. For rows of few tokens (decoding) XLA is no worse: what
they need lies in VMEM as it is.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from persona_kernels.edit_norm.types import Out, Slots

_HIGHEST = jax.lax.Precision.HIGHEST
_BLOCK_TOKENS = 128
_VMEM_BYTES = 64 * 2**20
# Rows of the array of a slot's numbers.
_BETA, _SHIFT, _LO, _HI, _ABOVE, _BELOW, _KEEP = range(7)
_NUM = 8  # one of them unused: sublanes come by eight


def _kernel(
  *refs: jax.Array,
  eps: float,
  offset: float,
  keeps: bool,
  with_norm: bool,
  with_bank: bool,
  interpret: bool,
) -> None:
  remaining = iter(refs)
  x_ref, delta_ref, p_ref, gram_ref, numbers_ref, strength_ref = (next(remaining) for _ in range(6))
  scale_ref = next(remaining) if with_norm else None
  bank_ref = next(remaining) if with_bank else None
  h_ref, dose_ref = next(remaining), next(remaining)
  y_ref = next(remaining) if with_norm else None
  reads_ref = next(remaining) if with_bank else None
  plain_TD = x_ref[0] + delta_ref[0]
  plain = plain_TD.astype(jnp.float32)
  if interpret:  # the host's compiler would leave the rounding of the sum out
    kind = jnp.finfo(plain_TD.dtype)
    plain = jax.lax.reduce_precision(plain, kind.nexp, kind.nmant)
  p_SD = p_ref[0]
  contract_last = (((1,), (1,)), ((), ()))
  a_TS = jax.lax.dot_general(
    plain, p_SD, contract_last, precision=_HIGHEST, preferred_element_type=jnp.float32
  )
  strength_TS = strength_ref[0]
  change_TD = jnp.zeros_like(plain)
  on_T1 = jnp.zeros((plain.shape[0], 1), jnp.float32)
  moved: list[jax.Array] = []
  for s in range(p_SD.shape[0]):
    column = slice(s, s + 1)
    a_T1 = a_TS[:, column]
    for r, earlier_T1 in enumerate(moved):
      a_T1 = a_T1 + earlier_T1 * gram_ref[0, r : r + 1, column]
    beta, shift, lo, hi, above, below = (
      numbers_ref[0, row : row + 1, column] for row in (_BETA, _SHIFT, _LO, _HI, _ABOVE, _BELOW)
    )
    strength_T1 = strength_TS[:, column]
    wanted_T1 = jnp.minimum(jnp.maximum(beta * a_T1 + shift, lo - a_T1), hi - a_T1)
    acts_T1 = (strength_T1 != 0) & (a_T1 >= above) & (a_T1 < below)
    moved.append(jnp.where(acts_T1, strength_T1 * wanted_T1, 0.0))
    change_TD = change_TD + moved[-1] * p_SD[column]
    on_T1 = jnp.where(strength_T1 != 0, 1.0, on_T1)
  if keeps:
    edited = plain + change_TD
    before, after = (jnp.sqrt(jnp.sum(z * z, axis=-1, keepdims=True)) for z in (plain, edited))
    ratio = before / jnp.where(after > 0, after, 1.0)
    kept_TD = (ratio - 1) * plain + ratio * change_TD
    change_TD = jnp.where(numbers_ref[0, _KEEP : _KEEP + 1, 0:1] != 0, kept_TD, change_TD)
  change_TD = jnp.where(on_T1 != 0, change_TD, 0.0)
  h_TD = jnp.where(on_T1 != 0, (plain + change_TD).astype(plain_TD.dtype), plain_TD)
  h_ref[0] = h_TD
  h = h_TD.astype(jnp.float32)
  if y_ref is not None and scale_ref is not None:
    inverse = jax.lax.rsqrt(jnp.mean(h * h, axis=-1, keepdims=True) + eps)
    y_ref[0] = (h * inverse * (offset + scale_ref[...].astype(jnp.float32))).astype(y_ref.dtype)
  realised_T1 = jnp.sum((h - plain) * change_TD, axis=-1, keepdims=True)
  requested_T1 = jnp.sum(change_TD * change_TD, axis=-1, keepdims=True)
  lane = jax.lax.broadcasted_iota(jnp.int32, dose_ref.shape[1:], 1)
  dose_ref[0] = jnp.where(lane == 0, realised_T1, requested_T1)
  if reads_ref is not None and bank_ref is not None:
    reads_ref[0] = jax.lax.dot_general(
      h, bank_ref[...], contract_last, precision=_HIGHEST, preferred_element_type=jnp.float32
    )


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
  interpret: bool = False,
) -> Out:
  """See `persona_kernels.edit_norm.edit_norm`; `interpret` simulates a TPU on the host."""
  given = x_BTD.shape[1]
  rounded = -(-given // 16) * 16
  # The longest blocks that leave nothing over: what is padded is copied.
  block = rounded if rounded <= _BLOCK_TOKENS else math.gcd(rounded, _BLOCK_TOKENS)
  if given % block:  # whole blocks, so that h may take the place of x
    pad = ((0, 0), (0, -given % block), (0, 0))
    x_BTD, delta_BTD, strength_BTS = (
      jnp.pad(z, pad) for z in (x_BTD, delta_BTD, slots.strength_BTS)
    )
    slots = slots._replace(strength_BTS=strength_BTS)
  b, t, d = x_BTD.shape
  s = slots.p_BSD.shape[1]
  keep_B = jnp.zeros((b,)) if slots.keep_norm_B is None else slots.keep_norm_B
  rows = [
    slots.beta_BS, slots.shift_BS, slots.lo_BS, slots.hi_BS, slots.above_BS, slots.below_BS,
    jnp.broadcast_to(keep_B[:, None], (b, s)), jnp.zeros((b, s)),
  ]  # fmt: skip
  numbers = jnp.stack([jnp.asarray(row, jnp.float32) for row in rows], axis=1)

  def tokens(width: int) -> pl.BlockSpec:
    return pl.BlockSpec((1, block, width), lambda i, j: (i, j, 0))

  def row(*shape: int) -> pl.BlockSpec:
    return pl.BlockSpec((1, *shape), lambda i, j: (i, 0, 0))

  def whole(*shape: int) -> pl.BlockSpec:
    return pl.BlockSpec(shape, lambda i, j: (0, 0))

  inputs = [x_BTD, delta_BTD, slots.p_BSD, slots.gram_BSS, numbers, slots.strength_BTS]
  in_specs = [tokens(d), tokens(d), row(s, d), row(s, s), row(_NUM, s), tokens(s)]
  shapes = [((b, t, d), x_BTD.dtype), ((b, t, 2), jnp.float32)]
  out_specs = [tokens(d), tokens(2)]
  if scale_D is not None:
    inputs.append(scale_D[None])
    in_specs.append(whole(1, d))
    shapes.append(((b, t, d), dtype))
    out_specs.append(tokens(d))
  r = 0
  if bank_RD is not None:
    r = bank_RD.shape[0]
    inputs.append(bank_RD)
    in_specs.append(whole(r, d))
    shapes.append(((b, t, r), jnp.float32))
    out_specs.append(tokens(r))
  out = pl.pallas_call(
    functools.partial(
      _kernel,
      eps=eps,
      offset=offset,
      keeps=slots.keep_norm_B is not None,
      with_norm=scale_D is not None,
      with_bank=r > 0,
      interpret=interpret,
    ),
    grid=(b, t // block),
    in_specs=in_specs,
    out_specs=out_specs,
    out_shape=[jax.ShapeDtypeStruct(shape, kind) for shape, kind in shapes],
    input_output_aliases={0: 0},
    cost_estimate=pl.CostEstimate(
      flops=b * t * d * (4 * s + 2 * r + 10),
      transcendentals=b * t,
      bytes_accessed=bytes_moved(x_BTD, slots, bank_RD, None if scale_D is None else dtype),
    ),
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=_VMEM_BYTES
    ),
    interpret=pltpu.InterpretParams() if interpret else False,
    name="edit_norm",
  )(*inputs)
  h_BTD, dose_BT2, *more = (array[:, :given] for array in out)
  y_BTD = more.pop(0) if scale_D is not None else None
  return Out(h_BTD, y_BTD, more[0] if more else None, dose_BT2[..., 0], dose_BT2[..., 1])


def bytes_moved(
  x_BTD: jax.Array, slots: Slots, bank_RD: jax.Array | None, dtype: jnp.dtype | None
) -> int:
  """Return the bytes between HBM and VMEM, from the block specs; `dtype` None: without the norm."""
  b, t, d = x_BTD.shape
  s = slots.p_BSD.shape[1]
  normed = 0 if dtype is None else jnp.dtype(dtype).itemsize
  stream = b * t * d * (3 * x_BTD.dtype.itemsize + normed)
  per_row = b * (s * d + s * s + _NUM * s) * 4
  per_token = b * t * 2 * 128 * 4  # strengths and doses, whose last axis fills whole lanes
  bank = 0 if bank_RD is None else bank_RD.size * 4 + b * t * bank_RD.shape[0] * 4
  return stream + per_row + per_token + bank
