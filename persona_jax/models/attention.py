"""Attention: to a row's own slots and to those it shares, joined by one softmax.

A few tokens are done at once. A prompt goes through in chunks of queries, with masks made from the
positions inside the chunk, so that nothing of size T x T is ever there; and where the tokens are
the slots, a chunk reads no keys that none of its queries may see. On a TPU or GPU that part is left
to the platform's fused kernel (`models.fused_attention`), if it was chosen and can do it.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from persona_jax.models import fused_attention
from persona_jax.models.fused_attention import FusedAttention
from persona_jax.models.layers import KV, Rotation, dot, softcap, visible

# Up to so many tokens go through at once, with the masks that all blocks of a kind share. Of 128,
# chunks would save a CPU 8 of 217 ms a block (B=16, measured) and cost two programs' compiling.
WHOLE_TOKENS = 128
# Queries of a chunk, of longer ones: attention of 2048 tokens took a CPU 237 ms, with 128 of them
# 409, with 256 660, whole 1330 (9 heads of 64, measured).
CHUNK_TOKENS = 64
# Runs of chunks with the same keys that are unrolled; the chunks of a run go through a loop. Four
# do 62 % of the scores of T x T where 50 % are seen; with eight, compiling takes twice as long and
# the program is no faster.
_MOST_RUNS = 4
_LANES = 128  # where a slice of keys begins

_MASKED = -1e30  # finite, so that a row that may see nothing (a pad) gives no NaN


class Shared(NamedTuple):
  """Keys and values that several rows read and none writes, such as those of a common prompt.

  Attributes:
    kv: of P groups of rows.
    position_PS: int32, position of the token in each slot; negative where it is empty.
    mask_PCTS: bool, the slots that each token of a group's C members may attend to; None with
      `Slots.mask_BTS`.
    member_PC: int32, row of each member; any row where a group has fewer. None: rows in order,
      B = P C.
    place_B: int32, each row's place in the P C members, one after another; P C for a row that reads
      none of them. None with `member_PC`.
  """

  kv: KV
  position_PS: jax.Array
  mask_PCTS: jax.Array | None
  member_PC: jax.Array | None
  place_B: jax.Array | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Slots:
  """Where a block's T tokens stand, and what they may attend to.

  Attributes:
    position_BT: int32, position of each token in its row.
    slot_position_BS: int32, position of the token in each slot, the T tokens' own included;
      negative where a slot is empty.
    rope: rotation of the T tokens for this kind of block.
    mask_BTS: bool, the slots each token may attend to in this kind of block; None to make it from
      the positions (see `masks_are_whole`).
    kv: keys and values of S slots, into which the tokens are written from slot `cursor` on; None
      if the T tokens are the slots. Their positions then ascend, and empty slots stand behind.
    cursor: int32.
    shared: what the rows see beside their own slots.
    window: of this kind of block; static.
    fused: kernel for the tokens' own slots, None for plain XLA; static.
  """

  position_BT: jax.Array
  slot_position_BS: jax.Array
  rope: Rotation
  mask_BTS: jax.Array | None
  kv: KV | None = None
  cursor: jax.Array | np.int32 = np.int32(0)
  shared: tuple[Shared, ...] = ()
  window: int | None = dataclasses.field(default=None, metadata={"static": True})
  fused: FusedAttention | None = dataclasses.field(default=None, metadata={"static": True})


def masks_are_whole(tokens: int) -> bool:
  """Whether a pass over T tokens wants its masks made beforehand, once for all blocks of a kind."""
  return tokens <= WHOLE_TOKENS


def shared_mask(
  position_BT: jax.Array,
  position_PS: jax.Array,
  member_PC: jax.Array | None,
  window: int | None = None,
) -> jax.Array:
  """Return bool [P, C, T, S]: the shared slots that each token of each member may attend to."""
  p, s = position_PS.shape
  t = position_BT.shape[1]
  if member_PC is not None:
    position_BT = position_BT[member_PC.reshape(-1)]
  seen_PXS = visible(position_BT.reshape(p, -1), position_PS, window)
  return seen_PXS.reshape(p, -1, t, s)


def attend(
  q_BTNH: jax.Array,
  kv: KV,
  slots: Slots,
  dtype: DTypeLike,
  *,
  scale: float | None = None,
  cap: float | None = None,
) -> jax.Array:
  """Attend, in groups of queries, to the slots that `slots` says; [B, T, N, H].

  Scores are multiplied by `scale` (None: H ** -0.5) and soft-capped by `cap`. One softmax goes over
  a row's own slots and those it shares. A padding token gives something finite.

  Args:
    q_BTNH: queries, rotated.
    kv: keys and values of the S slots, with the T tokens' own written.
    slots: who sees what.
    dtype: of what is returned; products are in that of the keys and values.
    scale, cap: of the scores.
  """
  b, t, n, h = q_BTNH.shape
  k = kv.v_BKSH.shape[1]
  scale = h**-0.5 if scale is None else scale
  q_BTKGH = (q_BTNH * scale).astype(kv.dtype).reshape(b, t, k, n // k, h)
  if slots.mask_BTS is not None:
    out_BKGTH = _attend_whole(q_BTKGH, kv, slots.mask_BTS, slots.shared, cap)
    return jnp.moveaxis(out_BKGTH, 3, 1).reshape(b, t, n, h).astype(dtype)

  own: _Part | None = None
  if slots.kv is None and slots.fused is not None:
    fused = fused_attention.attend(
      slots.fused, q_BTKGH, kv, window=slots.window, cap=cap, to_join=bool(slots.shared)
    )
    if fused is not None and not slots.shared:
      return jnp.moveaxis(fused.out_BKGTH, 3, 1).reshape(b, t, n, h).astype(dtype)
    if fused is not None:
      assert fused.lse_BKGT is not None
      own = _Part(fused.out_BKGTH, jnp.ones_like(fused.lse_BKGT), fused.lse_BKGT)
  runs = [_attend_run(q_BTKGH, kv, slots, own, run, cap, dtype) for run in _runs(t)]
  return jnp.concatenate(runs, axis=1).reshape(b, t, n, h)


def _runs(tokens: int) -> list[tuple[int, int]]:
  """Cut tokens into [start, stop): at most `_MOST_RUNS` runs of whole chunks, and what is left."""
  chunks = tokens // CHUNK_TOKENS
  step = -(-chunks // _MOST_RUNS) * CHUNK_TOKENS
  cuts = [*range(0, chunks * CHUNK_TOKENS, step), chunks * CHUNK_TOKENS, tokens]
  return [(start, stop) for start, stop in itertools.pairwise(cuts) if start < stop]


def _attend_run(
  q_BTKGH: jax.Array,
  kv: KV,
  slots: Slots,
  own: "_Part | None",
  run: tuple[int, int],
  cap: float | None,
  dtype: DTypeLike,
) -> jax.Array:
  """Attend with the queries of a run, chunk by chunk; [B, those, K, G, H].

  `own` is the attention to the rows' own slots of all T tokens, if that is done already.
  """
  start, stop = run
  size = min(CHUNK_TOKENS, stop - start)
  first, last = 0, kv.num_slots
  if slots.kv is None:
    # Of tokens in order nobody sees a later one, nor one that is a window away.
    last = stop
    if slots.window is not None:
      first = max(0, start - slots.window + 1) // _LANES * _LANES
  seen = KV(kv.k_BKHS[..., first:last], kv.v_BKSH[:, :, first:last])
  slot_position_BS = slots.slot_position_BS[:, first:last]

  def chunk(at: jax.Array | int) -> jax.Array:
    cut = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=at, slice_size=size)
    q = cut(q_BTKGH, axis=1)
    position = cut(slots.position_BT, axis=1)
    if own is None:
      mask = visible(position, slot_position_BS, slots.window)
    shared = [
      part._replace(mask_PCTS=shared_mask(position, part.position_PS, part.member_PC, slots.window))
      for part in slots.shared
    ]
    if own is None:
      out = _attend_whole(q, seen, mask, shared, cap)
    else:
      part = _Part(*(cut(x, axis=3) for x in own))
      out = _join_parts([part, *(_attend_shared(q, x, cap) for x in shared)])
    return jnp.moveaxis(out, 3, 1).astype(dtype)

  if stop - start == size:
    return chunk(start)
  out = jax.lax.map(chunk, jnp.arange(start, stop, size))
  out = jnp.moveaxis(out, 0, 1)
  return out.reshape(out.shape[0], stop - start, *out.shape[3:])


def _attend_whole(
  q_BTKGH: jax.Array,
  kv: KV,
  mask_BTS: jax.Array,
  shared: Sequence[Shared],
  cap: float | None,
) -> jax.Array:
  """Attend at once to slots that masks say; [B, K, G, T, H], float32."""
  if shared:
    parts = [_attend_part(q_BTKGH, kv, mask_BTS, cap)]
    parts += [_attend_shared(q_BTKGH, part, cap) for part in shared]
    return _join_parts(parts)
  score_BKGTS = _scores(q_BTKGH, kv, cap)
  score_BKGTS = jnp.where(mask_BTS[:, None, None], score_BKGTS, _MASKED)
  weight_BKGTS = jax.nn.softmax(score_BKGTS, axis=-1)
  # Asked for as BKGTH and moved after: as BTKGH, a CPU took 2.4 times as long (measured).
  return dot(weight_BKGTS, kv.v_BKSH, "BKGTS,BKSH->BKGTH")


class _Part(NamedTuple):
  """Attention to some of the slots: values summed by exp(score - top), and that sum of weights."""

  out_BKGTH: jax.Array
  total_BKGT: jax.Array
  top_BKGT: jax.Array


def _scores(q_BTKGH: jax.Array, kv: KV, cap: float | None) -> jax.Array:
  """Return the scores of every slot, [B, K, G, T, S].

  Tokens are moved behind the queries of a group first: the product keeps its operands' order, and
  to reorder the scores instead takes an eighth of a decoding step (128 rows, 2 CPU cores,
  measured).
  """
  q_BKGTH = jnp.moveaxis(q_BTKGH, 1, 3)
  return softcap(dot(q_BKGTH, kv.k_BKHS, "BKGTH,BKHS->BKGTS"), cap)


def _attend_part(q_BTKGH: jax.Array, kv: KV, mask_BTS: jax.Array, cap: float | None) -> _Part:
  score_BKGTS = _scores(q_BTKGH, kv, cap)
  score_BKGTS = jnp.where(mask_BTS[:, None, None], score_BKGTS, _MASKED)
  top_BKGT = jnp.max(score_BKGTS, axis=-1)
  weight_BKGTS = jnp.exp(score_BKGTS - top_BKGT[..., None])
  out_BKGTH = dot(weight_BKGTS, kv.v_BKSH, "BKGTS,BKSH->BKGTH")
  return _Part(out_BKGTH, jnp.sum(weight_BKGTS, axis=-1), top_BKGT)


def _attend_shared(q_BTKGH: jax.Array, part: Shared, cap: float | None) -> _Part:
  """Attend to shared slots: the members of a group are as many more queries of one product."""
  assert part.mask_PCTS is not None
  p, c, t, s = part.mask_PCTS.shape
  q = q_BTKGH if part.member_PC is None else q_BTKGH[part.member_PC.reshape(-1)]
  q = q.reshape(p, c * t, *q.shape[2:])
  by_group = _attend_part(q, part.kv, part.mask_PCTS.reshape(p, c * t, s), cap)

  def by_row(x: jax.Array, none: float) -> jax.Array:
    kgt = x.shape[1:3]
    x = jnp.moveaxis(x.reshape(p, *kgt, c, t, *x.shape[4:]), 3, 1)
    x = x.reshape(p * c, *kgt, t, *x.shape[5:])
    if part.place_B is None:
      return x
    x = jnp.concatenate([x, jnp.full((1, *x.shape[1:]), none, x.dtype)])
    return x[part.place_B]

  return _Part(
    by_row(by_group.out_BKGTH, 0.0),
    by_row(by_group.total_BKGT, 0.0),
    by_row(by_group.top_BKGT, _MASKED),
  )


def _join_parts(parts: Sequence[_Part]) -> jax.Array:
  """Join the softmaxes of several parts into one; [B, K, G, T, H]."""
  top_BKGT = functools.reduce(jnp.maximum, [part.top_BKGT for part in parts])
  factors = [jnp.exp(part.top_BKGT - top_BKGT) for part in parts]
  total_BKGT, out_BKGTH = jnp.zeros_like(top_BKGT), jnp.zeros_like(parts[0].out_BKGTH)
  for factor_BKGT, part in zip(factors, parts, strict=True):
    total_BKGT += factor_BKGT * part.total_BKGT
    out_BKGTH += factor_BKGT[..., None] * part.out_BKGTH
  return out_BKGTH / total_BKGT[..., None]
