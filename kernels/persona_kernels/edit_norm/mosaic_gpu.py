"""The fused kernel for Hopper and later GPUs: x and delta are read once, h and y written once.

A program (one warpgroup) takes a run of tokens of one row. It copies the row's vectors into shared
memory, then lets its tokens stream through: TMA fetches the next ones while one is edited in
registers. Slots act one after another on the float32 activation. The read-out is left to XLA, which
makes a matrix product of it.
"""

import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from persona_kernels.edit_norm.types import Out, Slots

# JAX 0.10 asks for an index beside the reference, 0.11 warns of one, 0.12 refuses it.
_index = inspect.signature(plgpu.load).parameters.get("idx")
_LOAD_NEEDS_AN_INDEX = _index is not None and _index.default is inspect.Parameter.empty
_HIGHEST = jax.lax.Precision.HIGHEST
_LANES = 128  # threads of a warpgroup
_TMA_BOX = 256  # the most elements that one TMA copy takes along an axis
_IN_FLIGHT = 4  # tokens that are being fetched
_SHARED_BYTES = 200 * 2**10
_TOKENS_A_PROGRAM = 64
# Rows of the array of a slot's numbers.
_BETA, _SHIFT, _LO, _HI, _ABOVE, _BELOW, _KEEP = range(7)
_NUM = 7


def _folded(width: int) -> tuple[int, int]:
  """Return the two axes that a token's vector is folded into for TMA.

  Raises:
    ValueError: the lanes of a warpgroup cannot share a vector of this width evenly.
  """
  if width % _LANES:
    raise ValueError(
      f"mosaic_gpu needs a width that {_LANES} divides; got {width}: use implementation='xla'."
    )
  columns = next(n for n in range(_TMA_BOX, 0, -_LANES) if width % n == 0)
  if width // columns > _TMA_BOX:
    raise ValueError(f"mosaic_gpu takes widths up to {_TMA_BOX * columns}; got {width}.")
  return width // columns, columns


def _vector_elements(width: int) -> int:
  """Return how many neighbouring elements a thread takes: up to the 16 bytes of one access."""
  return next(n for n in (8, 4, 2, 1) if width % (_LANES * n) == 0)


def _kernel(
  *refs: Any,
  slots: int,
  width: int,
  given: int,
  run_tokens: int,
  eps: float,
  offset: float,
  keeps: bool,
  with_norm: bool,
  resident: int,
  interpret: bool,
) -> None:
  remaining = iter(refs)
  x_gmem, delta_gmem, p_gmem, numbers_gmem, strength_gmem = (next(remaining) for _ in range(5))
  scale_gmem = next(remaining) if with_norm else None
  h_gmem, dose_gmem = next(remaining), next(remaining)
  y_gmem = next(remaining) if with_norm else None
  x_smem, delta_smem, arrived = next(remaining), next(remaining), next(remaining)
  p_smem: Any = next(remaining) if resident else None
  row, run = jax.lax.axis_index("row"), jax.lax.axis_index("run")
  first = run * run_tokens
  tokens = jnp.minimum(run_tokens, given - first)
  layout = plgpu.Layout.WG_STRIDED(_folded(width), vec_size=_vector_elements(width))

  def load(ref: Any) -> jax.Array:
    whole = ((),) if _LOAD_NEEDS_AN_INDEX else ()
    return plgpu.load(ref, *whole, layout=layout, optimized=False)

  def fetch(n: Any) -> None:
    place = jax.lax.rem(n, _IN_FLIGHT)
    for gmem, smem in ((x_gmem, x_smem), (delta_gmem, delta_smem)):
      plgpu.copy_gmem_to_smem(gmem.at[row, first + n], smem.at[place], arrived.at[place])

  def vector(s: int) -> jax.Array:
    return load(p_smem.at[s]) if s < resident else load(p_gmem.at[row, s])

  for n in range(min(_IN_FLIGHT, run_tokens)):
    pl.when(n < tokens)(functools.partial(fetch, jnp.int32(n)))
  for s in range(resident):
    p_smem[s] = load(p_gmem.at[row, s])
  if resident:
    plgpu.commit_smem()

  def edit(n: jax.Array, carry: None) -> None:
    place, t = jax.lax.rem(n, _IN_FLIGHT), first + n
    plgpu.barrier_wait(arrived.at[place])
    plain_D = load(x_smem.at[place]) + load(delta_smem.at[place])
    plain = plain_D.astype(jnp.float32)
    if interpret:  # the host's compiler would leave the rounding of the sum out
      kind = jnp.finfo(plain_D.dtype)
      plain = jax.lax.reduce_precision(plain, kind.nexp, kind.nmant)
    change = jnp.zeros_like(plain)
    on = jnp.float32(0)
    for s in range(slots):
      strength = strength_gmem[row, t, s]
      p_D = vector(s)
      a = jnp.sum((plain + change) * p_D)
      beta, shift, lo, hi, above, below = (
        numbers_gmem[row, number, s] for number in (_BETA, _SHIFT, _LO, _HI, _ABOVE, _BELOW)
      )
      wanted = jnp.minimum(jnp.maximum(beta * a + shift, lo - a), hi - a)
      acts = (strength != 0) & (a >= above) & (a < below)
      change = change + jnp.where(acts, strength * wanted, 0.0) * p_D
      on = jnp.where(strength != 0, 1.0, on)
    if keeps:
      edited = plain + change
      before, after = jnp.sum(plain * plain), jnp.sum(edited * edited)
      # There is no square root to call but this one; a vector of length 0 stays one.
      some = after > 0
      ratio = jax.lax.rsqrt(jnp.where(some, after, 1.0) / jnp.where(some, before, 1.0))
      kept = (numbers_gmem[row, _KEEP, 0] != 0) & (on != 0)
      change = jnp.where(kept, ratio - 1, 0.0) * plain + jnp.where(kept, ratio, 1.0) * change
    on_D = jnp.broadcast_to(on != 0, plain.shape)
    h_D = jnp.where(on_D, (plain + change).astype(plain_D.dtype), plain_D)
    h_gmem[row, t] = h_D
    h = h_D.astype(jnp.float32)
    if scale_gmem is not None and y_gmem is not None:
      inverse = jax.lax.rsqrt(jnp.sum(h * h) * (1.0 / width) + eps)
      scale = load(scale_gmem).astype(jnp.float32)
      y_gmem[row, t] = (h * inverse * (offset + scale)).astype(y_gmem.dtype)
    dose_gmem[row, t, 0] = jnp.sum((h - plain) * change)
    dose_gmem[row, t, 1] = jnp.sum(change * change)
    # The sums above have brought all threads here: the place may be written again.
    pl.when(n + _IN_FLIGHT < tokens)(lambda: fetch(n + _IN_FLIGHT))
    return carry

  jax.lax.fori_loop(0, tokens, edit, None)


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
  """See `persona_kernels.edit_norm.edit_norm`; `interpret` simulates a GPU on the host.

  Raises:
    ValueError: 128 does not divide D.
    NotImplementedError: `interpret` on a JAX before 0.11, which cannot simulate GPUs.
  """
  b, t, d = x_BTD.shape
  s = slots.p_BSD.shape[1]
  folded = _folded(d)
  keep_B = jnp.zeros((b,)) if slots.keep_norm_B is None else slots.keep_norm_B
  rows = [
    slots.beta_BS, slots.shift_BS, slots.lo_BS, slots.hi_BS, slots.above_BS, slots.below_BS,
    jnp.broadcast_to(keep_B[:, None], (b, s)),
  ]  # fmt: skip
  numbers = jnp.stack([jnp.asarray(row, jnp.float32) for row in rows], axis=1)
  inputs = [
    x_BTD.reshape(b, t, *folded),
    delta_BTD.reshape(b, t, *folded),
    slots.p_BSD.reshape(b, s, *folded),
    numbers,
    slots.strength_BTS,
  ]
  outputs = [
    jax.ShapeDtypeStruct((b, t, *folded), x_BTD.dtype),
    jax.ShapeDtypeStruct((b, t, 2), jnp.float32),
  ]
  if scale_D is not None:
    inputs.append(scale_D.reshape(folded))
    outputs.append(jax.ShapeDtypeStruct((b, t, *folded), dtype))
  run_tokens = min(t, _TOKENS_A_PROGRAM)
  in_flight = plgpu.SMEM((_IN_FLIGHT, *folded), x_BTD.dtype)
  arrived = plgpu.Barrier(num_arrivals=2, num_barriers=_IN_FLIGHT)
  scratch: list[Any] = [in_flight, in_flight, arrived]
  # A single token has no use for a copy of its row's vectors.
  room = (_SHARED_BYTES - 2 * _IN_FLIGHT * d * x_BTD.dtype.itemsize) // (4 * d)
  resident = min(s, max(room, 0)) if run_tokens > 1 else 0
  if resident:
    scratch.append(plgpu.SMEM((resident, *folded), jnp.float32))
  out = plgpu.kernel(
    functools.partial(
      _kernel,
      slots=s,
      width=d,
      given=t,
      run_tokens=run_tokens,
      eps=eps,
      offset=offset,
      keeps=slots.keep_norm_B is not None,
      with_norm=scale_D is not None,
      resident=resident,
      interpret=interpret,
    ),
    out_type=outputs,
    scratch_types=scratch,
    grid=(b, pl.cdiv(t, run_tokens)),
    grid_names=("row", "run"),
    interpret=_simulated() if interpret else None,
  )(*inputs)
  h_BTD, dose_BT2 = out[0].reshape(b, t, d), out[1]
  y_BTD = out[2].reshape(b, t, d) if scale_D is not None else None
  reads_BTR = None
  if bank_RD is not None:
    reads_BTR = jnp.einsum("BTD,RD->BTR", h_BTD.astype(jnp.float32), bank_RD, precision=_HIGHEST)
  return Out(h_BTD, y_BTD, reads_BTR, dose_BT2[..., 0], dose_BT2[..., 1])


def _simulated() -> Any:
  if not hasattr(plgpu, "InterpretGPUParams"):
    raise NotImplementedError(f"JAX {jax.__version__} cannot simulate a GPU; 0.11 and later can.")
  return plgpu.InterpretGPUParams()
