"""Prefill: the keys and values of all but each row's last token, once a distinct prefix.

Where many prefixes of a tile begin alike (one persona's system message, many questions), the common
stem is computed once and only the tails per prefix. Both are right-aligned, so that one slot number
serves all rows of a decode step:

      slot     0 …        … S1 - 1   S1 …     … S - 1   S … S + room - 1
      holds    nothing, then stem    nothing, then tail   last prompt token, then the answer

Decoding starts from the last prompt token, row by row; so an edit on it ("answer") leaves the
prefix shared, and only edits that reach further back make a prefix of their own.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from persona_jax.edits.apply import TokenInfo
from persona_jax.edits.compile import compile_edits
from persona_jax.edits.table import Where
from persona_jax.engine.forward import Pass, run_blocks
from persona_jax.engine.rows import LENGTH_STEP, Row, round_up, row_bucket
from persona_jax.models.layers import KV

if TYPE_CHECKING:
  from persona_jax.engine.model import Model

# Tokens of one batch; bounds the float32 temporaries (tokens x F) on a small host.
BATCH_TOKENS = 4096
# A stem must have this many tokens, and stems must save this share of a tile's tokens.
MIN_STEM = 16
MIN_SAVING = 0.25
# Prefixes are of one stem if they share this much of what their neighbours, sorted, share.
SAME_STEM = 0.75


@dataclasses.dataclass(frozen=True, eq=False)
class Prefix:
  """Keys and values of a tile's rows, gathered per row.

  Attributes:
    caches: per block, [B, K, S + room, H]; slots from S on are free.
    position_BS: int32 [B, S], position of the token in each slot; negative where a slot is empty.
    num_slots: S.
    realised_B, requested_B: float32, delivery of edits on the prefix (`edits.apply.Delivery`).
    edited_B: int32, prefix tokens on which an edit was on.
    changes: float32 [B, S] by (site, block), how far each token was moved, if traced.
    num_prefixes: distinct prefixes.
    num_tokens: tokens that were computed, without padding.
  """

  caches: list[KV]
  position_BS: np.ndarray
  num_slots: int
  realised_B: np.ndarray
  requested_B: np.ndarray
  edited_B: np.ndarray
  changes: dict[Where, np.ndarray]
  num_prefixes: int
  num_tokens: int


@dataclasses.dataclass(frozen=True)
class _Computed:
  """Keys and values of P distinct token runs, with their positions and the delivery of edits."""

  caches: list[KV]
  position_PS: np.ndarray
  realised_P: np.ndarray
  requested_P: np.ndarray
  edited_P: np.ndarray
  changes: dict[Where, np.ndarray]


def prefill(
  model: "Model", rows: Sequence[Row], num_rows: int, room: int, *, trace: bool = False
) -> Prefix:
  """Compute the prefixes of a tile.

  Args:
    model: the model.
    rows: the tile's rows.
    num_rows: B ≥ len(rows); the rows beyond repeat the first and are to be ignored.
    room: free slots to append for what follows the prefix.
    trace: whether to note how far each token was moved at each edited place.
  """
  groups: dict[tuple[object, ...], int] = {}
  index = [groups.setdefault(row.prefix_key, len(groups)) for row in rows]
  index_B = np.asarray(index + [0] * (num_rows - len(rows)), np.int32)
  firsts = [rows[index.index(p)] for p in range(len(groups))]
  stems, stem_P = find_stems(firsts)
  stem_length_P = [len(stems[s]) for s in stem_P]
  num_tokens = sum(map(len, stems)) + sum(
    len(row.ids) - 1 - n for row, n in zip(firsts, stem_length_P, strict=True)
  )
  shared: _Computed | None = None
  if any(stems):
    stem_rows = [Row((*stem, 0), len(stem), (0,) * (len(stem) + 1)) for stem in stems]
    shared = _compute(model, stem_rows, [0] * len(stems), None, None, trace)
  done = _compute(model, firsts, stem_length_P, shared, np.asarray(stem_P, np.int32), trace)
  return Prefix(
    [_gather(kv, jnp.asarray(index_B), room=room) for kv in done.caches],
    done.position_PS[index_B],
    done.position_PS.shape[1],
    done.realised_P[index_B],
    done.requested_P[index_B],
    done.edited_P[index_B],
    {place: change_PS[index_B] for place, change_PS in done.changes.items()},
    len(firsts),
    num_tokens,
  )


def find_stems(firsts: Sequence[Row]) -> tuple[list[tuple[int, ...]], list[int]]:
  """Cluster prefixes by how they begin.

  Returns:
    (stems, stem of each prefix): one empty stem for all if sharing does not pay, or if an edit
    reaches into some prefix, whose keys and values then are its own.
  """
  alone: tuple[list[tuple[int, ...]], list[int]] = ([()], [0] * len(firsts))
  if any(row.edits_reach_prefix for row in firsts):
    return alone
  prefixes = [row.ids[:-1] for row in firsts]
  order = sorted(range(len(prefixes)), key=lambda p: prefixes[p])
  common = [_common(prefixes[a], prefixes[b]) for a, b in itertools.pairwise(order)]
  members = [order[:1]]
  for n, p in enumerate(order[1:]):
    # Neighbours that share much less than those beside them belong to different stems: a template's
    # opening words are common to all, a persona's text to some.
    beside = max(common[max(n - 1, 0) : n + 2])
    if common[n] < MIN_STEM or common[n] < SAME_STEM * beside:
      members.append([])
    members[-1].append(p)
  stems = [
    functools.reduce(lambda stem, p: stem[: _common(stem, prefixes[p])], mine, prefixes[mine[0]])
    for mine in members
  ]
  saved = sum(len(stem) * (len(mine) - 1) for stem, mine in zip(stems, members, strict=True))
  if saved < MIN_SAVING * sum(map(len, prefixes)):
    return alone
  # A prefix that shares with no other is all tail: its stem is empty.
  stems = [stem if len(mine) > 1 else () for stem, mine in zip(stems, members, strict=True)]
  stem_P = [0] * len(prefixes)
  for s, mine in enumerate(members):
    for p in mine:
      stem_P[p] = s
  return stems, stem_P


def _common(a: Sequence[int], b: Sequence[int]) -> int:
  """Return how many tokens two runs have in common at their beginning."""
  for n, (x, y) in enumerate(zip(a, b, strict=False)):
    if x != y:
      return n
  return min(len(a), len(b))


@functools.partial(jax.jit, static_argnames=("room",))
def _gather(kv: KV, index_B: jax.Array, room: int) -> KV:
  """Pick runs of one block by number and append `room` free slots."""
  pad = [(0, 0), (0, 0), (0, room), (0, 0)]
  return KV(jnp.pad(kv.k_BKSH[index_B], pad), jnp.pad(kv.v_BKSH[index_B], pad))


@jax.jit
def _join(parts: list[KV]) -> KV:
  """Put the batches of one block together."""
  return KV(*(jnp.concatenate(xs) for xs in zip(*parts, strict=True)))


def _compute(
  model: "Model",
  rows: Sequence[Row],
  skip: Sequence[int],
  shared: _Computed | None,
  stem_P: np.ndarray | None,
  trace: bool,
) -> _Computed:
  """Compute tokens [skip, -1) of every row, batch by batch, after the shared stems."""
  longest = max(len(row.ids) - 1 - n for row, n in zip(rows, skip, strict=True))
  slots = max(LENGTH_STEP, round_up(longest, LENGTH_STEP))
  size = max(1, min(row_bucket(len(rows)), BATCH_TOKENS // slots))
  parts: list[list[KV]] = [[] for _ in range(model.arch.num_blocks)]
  positions, realised, requested, edited = [], [], [], []
  changes: dict[Where, np.ndarray] = {}
  for i in range(0, len(rows), size):
    batch, offsets = list(rows[i : i + size]), list(skip[i : i + size])
    keep = len(batch)  # only the last batch is padded, at its end: run p stays at place p
    missing = min(size, row_bucket(keep)) - keep
    stems = None
    if shared is not None and stem_P is not None:
      stems = np.append(stem_P[i : i + size], np.zeros(missing, np.int32))
    batch += [batch[0]] * missing
    offsets += offsets[:1] * missing
    out, position_BS = _run(model, batch, offsets, slots, shared, stems, trace)
    for block, kv in enumerate(out.caches):
      parts[block].append(kv)
    positions.append(position_BS[:keep])
    realised.append(np.asarray(out.delivery.realised_B)[:keep])
    requested.append(np.asarray(out.delivery.requested_B)[:keep])
    edited.append(np.asarray(out.delivery.edited_BT).sum(axis=1)[:keep])
    for place, change_BT in out.changes.items():
      whole_PS = changes.setdefault(place, np.zeros((len(rows), position_BS.shape[1]), np.float32))
      whole_PS[i : i + keep, -slots:] = np.asarray(change_BT)[:keep]
  return _Computed(
    [part[0] if len(part) == 1 else _join(part) for part in parts],
    np.concatenate(positions),
    np.concatenate(realised),
    np.concatenate(requested),
    np.concatenate(edited),
    changes,
  )


def _run(
  model: "Model",
  rows: Sequence[Row],
  skip: Sequence[int],
  slots: int,
  shared: _Computed | None,
  stem_B: np.ndarray | None,
  trace: bool,
) -> tuple[Pass, np.ndarray]:
  """Run one batch, right-aligned in `slots`, after the slots of its stems; return also [B, S]."""
  num_rows = len(rows)
  ids_BT, roles_BT = (np.zeros((num_rows, slots), np.int32) for _ in range(2))
  position_BT = np.zeros((num_rows, slots), np.int32)
  end_B = np.asarray([row.prompt_length for row in rows], np.int32)
  for b, (row, n) in enumerate(zip(rows, skip, strict=True)):
    pad = slots - (len(row.ids) - 1 - n)
    ids_BT[b, pad:] = row.ids[n:-1]
    roles_BT[b, pad:] = row.roles[n:-1]
    position_BT[b] = n + np.arange(slots) - pad
  valid_BT = position_BT >= np.asarray(skip)[:, None]
  table = None
  if any(row.edits_reach_prefix for row in rows):
    table = compile_edits(model, [row.edits if row.edits_reach_prefix else () for row in rows])
  tokens = TokenInfo(
    jnp.asarray(position_BT - end_B[:, None]), jnp.asarray(roles_BT), jnp.asarray(valid_BT)
  )
  slot_position_BS, caches, before = np.where(valid_BT, position_BT, -1), None, 0
  if shared is not None and stem_B is not None:
    before = shared.position_PS.shape[1]
    slot_position_BS = np.concatenate([shared.position_PS[stem_B], slot_position_BS], axis=1)
    caches = [_gather(kv, jnp.asarray(stem_B), room=slots) for kv in shared.caches]
  out = run_blocks(
    model.arch,
    model.params,
    model.embed(jnp.asarray(ids_BT)),
    jnp.asarray(np.maximum(position_BT, 0)),
    tokens,
    slot_position_BS=jnp.asarray(slot_position_BS),
    caches=caches,
    cursor=before,
    edits=table,
    fused=model.fused,
    trace=trace,
  )
  return out, slot_position_BS
