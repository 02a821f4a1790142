"""Prefill: keys and values of all but each row's last token, once a distinct prefix.

A prefix is right-aligned in its S slots, so that one slot number serves all rows of a decode step:

      slot     0 … pad-1   pad … S-1   S … S+N-1
      holds    nothing     prefix      last prompt token, then what is generated

Decoding starts from the last prompt token, row by row; so an edit on it ("answer") leaves the
prefix shared, and only edits that reach further back make a prefix of their own.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from persona_jax.edits.apply import TokenInfo
from persona_jax.edits.compile import compile_edits
from persona_jax.edits.table import EditTable
from persona_jax.engine.forward import Pass, run_blocks
from persona_jax.engine.rows import LENGTH_STEP, Row, block_row_bucket, round_up
from persona_jax.models import families
from persona_jax.models.layers import KV

if TYPE_CHECKING:
  from persona_jax.engine.model import Model

# Tokens of one prefill batch; bounds the float32 temporaries (2048 x F) on a small host.
BATCH_TOKENS = 4096


@dataclasses.dataclass(frozen=True, eq=False)
class Prefix:
  """Keys and values of a tile's rows, gathered per row.

  Attributes:
    caches: per block, [B, K, S + room, H]; slots from S on are free.
    pad_B: int32, empty slots before each row's prefix.
    num_slots: S.
    realised_B, requested_B: float32, delivery of edits on the prefix (`edits.apply.Delivery`).
    edited_B: int32, prefix tokens on which an edit was on.
    num_prefixes: distinct prefixes that were computed.
    num_tokens: prefix tokens that were computed, without padding.
  """

  caches: list[KV]
  pad_B: np.ndarray
  num_slots: int
  realised_B: np.ndarray
  requested_B: np.ndarray
  edited_B: np.ndarray
  num_prefixes: int
  num_tokens: int


@functools.partial(jax.jit, static_argnames=("room",))
def _gather(parts: list[KV], index_B: jax.Array, room: int) -> KV:
  """Pick each row's prefix out of the batches of one block and append `room` free slots."""
  pad = [(0, 0), (0, 0), (0, room), (0, 0)]
  k, v = (jnp.concatenate(xs)[index_B] for xs in zip(*parts, strict=True))
  return KV(jnp.pad(k, pad), jnp.pad(v, pad))


def prefill(model: "Model", rows: Sequence[Row], num_rows: int, room: int) -> Prefix:
  """Compute the prefixes of a tile.

  Args:
    model: the model.
    rows: the tile's rows.
    num_rows: B ≥ len(rows); the rows beyond repeat the first and are to be ignored.
    room: free slots to append for what follows the prefix.
  """
  groups: dict[tuple[object, ...], int] = {}
  index = [groups.setdefault(row.prefix_key, len(groups)) for row in rows]
  firsts = [rows[index.index(p)] for p in range(len(groups))]
  index_B = np.asarray(index + [0] * (num_rows - len(rows)), np.int32)
  slots = max(LENGTH_STEP, round_up(max(len(row.ids) - 1 for row in rows), LENGTH_STEP))
  per_batch = max(1, min(block_row_bucket(len(firsts)), BATCH_TOKENS // slots))

  parts: list[list[KV]] = [[] for _ in range(model.arch.num_blocks)]
  realised, requested, edited = [], [], []
  for i in range(0, len(firsts), per_batch):
    batch = firsts[i : i + per_batch]
    size = min(per_batch, block_row_bucket(len(batch)))
    out = _prefill_batch(model, batch + [batch[0]] * (size - len(batch)), slots)
    for block, kv in enumerate(out.caches):
      parts[block].append(kv)
    keep = len(batch)  # only the last batch is padded, at its end: prefix p stays at place p
    realised.append(np.asarray(out.delivery.realised_B)[:keep])
    requested.append(np.asarray(out.delivery.requested_B)[:keep])
    edited.append(np.asarray(out.delivery.edited_BT).sum(axis=1)[:keep])
  caches = [_gather(part, index_B, room=room) for part in parts]
  pad_P = np.asarray([slots - (len(row.ids) - 1) for row in firsts], np.int32)
  return Prefix(
    caches,
    pad_P[index_B],
    slots,
    np.concatenate(realised)[index_B],
    np.concatenate(requested)[index_B],
    np.concatenate(edited)[index_B],
    len(firsts),
    sum(len(row.ids) - 1 for row in firsts),
  )


def _prefill_batch(model: "Model", rows: Sequence[Row], slots: int) -> Pass:
  """Run the prefixes of `rows`, right-aligned in `slots`."""
  ids_BT = np.zeros((len(rows), slots), np.int32)
  roles_BT = np.zeros((len(rows), slots), np.int32)
  pad_B = np.asarray([slots - (len(row.ids) - 1) for row in rows], np.int32)
  end_B = np.asarray([row.prompt_length for row in rows], np.int32)
  for b, row in enumerate(rows):
    ids_BT[b, pad_B[b] :] = row.ids[:-1]
    roles_BT[b, pad_B[b] :] = row.roles[:-1]
  table: EditTable | None = None
  if any(row.edits_reach_prefix for row in rows):
    table = compile_edits(model, [row.edits if row.edits_reach_prefix else () for row in rows])
  positions_BT = np.arange(slots, dtype=np.int32) - pad_B[:, None]
  valid_BT = positions_BT >= 0
  tokens = TokenInfo(
    jnp.asarray(positions_BT - end_B[:, None]), jnp.asarray(roles_BT), jnp.asarray(valid_BT)
  )
  slot_S = np.arange(slots)
  mask_BTS = (slot_S[:, None] >= slot_S)[None] & valid_BT[:, None, :]
  adapter = families.family(model.arch.family)
  return run_blocks(
    model.arch,
    model.params,
    adapter.embed(model.params, jnp.asarray(ids_BT), model.resid_dtype),
    jnp.asarray(np.maximum(positions_BT, 0)),
    jnp.asarray(mask_BTS),
    tokens,
    edits=table,
  )
