"""What a prefill leaves: keys and values by depth of the tree, and how rows read them."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from persona_jax.engine.delivered import Delivered
from persona_jax.engine.forward import Layout, Part
from persona_jax.engine.lanes import split
from persona_jax.engine.programs import Runner
from persona_jax.engine.reads import NodeReads
from persona_jax.engine.rows import length_bucket, row_bucket
from persona_jax.models.layers import KV


@dataclasses.dataclass(frozen=True, eq=False)
class Wave:
  """Keys and values of the nodes of one depth.

  Attributes:
    kv: by block, of its P classes.
    class_of: by block, int32 [R]: the class of each row, -1 for rows without a node here.
    position_of: by block, int32 [P, S]: position of the token in each slot, -1 where it is empty.
  """

  kv: list[KV]
  class_of: list[np.ndarray]
  position_of: list[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Chosen:
  """Activations behind the last block at chosen tokens.

  Attributes:
    h_MD: the activations, each distinct one once; padding behind.
    count: how many are no padding.
    place: (row, position) → its number.
  """

  h_MD: jax.Array
  count: int
  place: dict[tuple[int, int], int]


@dataclasses.dataclass(frozen=True, eq=False)
class Prefix:
  """The computed tree of R rows.

  Attributes:
    waves: keys and values, by depth.
    deliver: waits for the device and says what the edits did; see `delivered`.
    chosen: what was chosen.
    reads: what was read, pass by pass.
    passes: times that a token was sent through a block.
    padded_passes: the same with padding.
  """

  waves: list[Wave]
  deliver: Callable[[], Delivered]
  chosen: list[Chosen]
  reads: list[NodeReads]
  passes: int
  padded_passes: int

  @functools.cached_property
  def delivered(self) -> Delivered:
    """What the edits did; waits for the device, which until then computes by itself."""
    return self.deliver()


def merged(waves: list[Wave], spare_slots: int, order: Sequence[int], *, run: Runner) -> list[Wave]:
  """Put successive waves together where that copies few slots.

  A decoding step pays for every wave that it attends to: 128 rows on 2 CPU cores 1 ms a block
  (measured), more than the attention itself for prompts of some hundred tokens. So the keys and
  values of a node are put before those of its children, unless a long one has many.

  Args:
    waves: the waves; emptied, so that a block's arrays can go as soon as they were copied.
    spare_slots: how many slots a block may get more.
    order: the rows as they will stand in the batch; classes come in the same order.
    run: calls the device.
  """
  out: list[Wave] = []
  while waves:
    wave = waves.pop(0)
    if not out:
      out.append(wave)
      continue
    pairs = [_pairs(out[-1].class_of[b], wave.class_of[b], order) for b in range(len(wave.kv))]
    more = [
      len(pair_N2) * (a.shape[1] + b.shape[1]) - a.size - b.size
      for (pair_N2, _), a, b in zip(pairs, out[-1].position_of, wave.position_of, strict=True)
    ]
    if max(more) > spare_slots:
      out.append(wave)
      continue
    spare_slots -= max(0, max(more))
    before = out.pop()
    position_of = list(zip(before.position_of, wave.position_of, strict=True))
    kvs = list(zip(before.kv, wave.kv, strict=True))
    del before, wave
    kv, positions = [], []
    for (pair_N2, _), parts in zip(pairs, position_of, strict=True):
      index_N2 = np.maximum(pair_N2, 0).astype(np.int32)
      kv.append(run("merge waves", _merge, *kvs.pop(0), index_N2))
      positions.append(
        np.concatenate(
          [
            np.where(pair_N2[:, i, None] < 0, np.int32(-1), part[index_N2[:, i]])
            for i, part in enumerate(parts)
          ],
          axis=1,
        )
      )
    out.append(Wave(kv, [class_R for _, class_R in pairs], positions))
  return out


def _pairs(a_R: np.ndarray, b_R: np.ndarray, order: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
  """Return the pairs of classes that rows have, int [N, 2], and the pair of each row, -1 for none.

  Pairs stand in the order of their first rows, which is `order`.
  """
  both_R2 = np.stack([a_R, b_R], axis=1)[list(order)]
  pair_N2, first, pair_R = np.unique(both_R2, axis=0, return_index=True, return_inverse=True)
  pair_R = pair_R.reshape(-1)[np.argsort(order)]
  kept = [n for n in np.argsort(first) if not (pair_N2[n] < 0).all()]
  number = np.full(len(pair_N2), -1, np.int32)
  number[kept] = np.arange(len(kept))
  return pair_N2[kept], number[pair_R]


@jax.jit
def _merge(a: KV, b: KV, index_N2: jax.Array) -> KV:
  """Put classes of one wave before those of another."""
  a, b = a.rows(index_N2[:, 0]), b.rows(index_N2[:, 1])
  return KV(
    jnp.concatenate([a.k_BKHS, b.k_BKHS], axis=3), jnp.concatenate([a.v_BKSH, b.v_BKSH], axis=2)
  )


@dataclasses.dataclass(frozen=True)
class Read:
  """How a batch of rows reads some classes of a wave.

  Attributes:
    used: the classes.
    slots: which of their slots are read, None for all.
    layout: how rows read them, in this order.
  """

  used: np.ndarray
  slots: np.ndarray | None
  layout: Layout


def rows_reads(
  class_R: np.ndarray,
  position_PS: np.ndarray,
  rows: Sequence[int],
  size: int,
  *,
  copies: bool = False,
  few_shapes: bool = False,
) -> list[Read]:
  """Arrange how a batch of rows reads shared keys and values, lane by lane.

  Args:
    class_R: class of every row of the tree, -1 for none.
    position_PS: positions of the classes' slots.
    rows: the rows of the batch, in its order.
    size: rows of the batch with its padding, which reads nothing.
    copies: whether each row is to have a copy of its own.
    few_shapes: whether to have one lane, and to round the most rows of a class up, so that few
      programs serve.
  """
  class_B = class_R[list(rows)]
  used, first = np.unique(class_B[class_B >= 0], return_index=True)
  used = used[np.argsort(first)] if len(used) else np.zeros(1, np.int32)
  members = [np.flatnonzero(class_B == p) for p in used]
  if copies:
    return [Read(*_one_a_row(class_B, position_PS, size))]
  lanes = [np.arange(len(used))]
  if not few_shapes:
    filled_P = (position_PS[used] >= 0).sum(axis=1)
    slots_P = [min(length_bucket(int(n)), position_PS.shape[1]) for n in filled_P]
    lanes = split([len(mine) for mine in members], slots_P, size)
  reads = []
  for lane in lanes:
    mine = [members[p] for p in lane]
    slots, lane_position_PS = None, position_PS
    if len(lanes) > 1:
      slots, lane_position_PS = _filled_slots(position_PS, used[lane])
    width = max(1, *map(len, mine))
    if width == 1 and 2 * len(mine) > size:
      lane_B = np.where(np.isin(class_B, used[lane]), class_B, np.int32(-1))
      found, _, layout = _one_a_row(lane_B, lane_position_PS, size)
      reads.append(Read(found, slots, layout))
      continue
    if few_shapes and len(mine) * width != size:
      width = min(row_bucket(width), size)
    layout = _grouped(mine, lane_position_PS[used[lane]], width, size)
    reads.append(Read(used[lane], slots, layout))
  return reads


def _filled_slots(
  position_PS: np.ndarray, lane: np.ndarray
) -> tuple[np.ndarray | None, np.ndarray]:
  """Return the slots that a lane's classes fill, None for all, and the positions in them.

  They are padded to few sizes with a slot that stands empty.
  """
  filled = np.flatnonzero((position_PS[lane] >= 0).any(axis=0))
  size = length_bucket(max(1, len(filled)))
  if size >= position_PS.shape[1]:
    return None, position_PS
  slots = np.append(filled, np.zeros(size - len(filled), int)).astype(np.int32)
  taken_PS = position_PS[:, slots]
  taken_PS[:, len(filled) :] = -1
  return slots, taken_PS


def _one_a_row(
  class_B: np.ndarray, position_PS: np.ndarray, size: int
) -> tuple[np.ndarray, None, Layout]:
  """Arrange that each row of a batch reads a copy of its own."""
  class_B = np.append(class_B, np.full(size - len(class_B), -1, np.int32))
  position_BS = np.where(class_B[:, None] < 0, np.int32(-1), position_PS[class_B])
  return np.maximum(class_B, 0), None, Layout(position_BS, None, None)


def _grouped(
  members: Sequence[np.ndarray], position_PS: np.ndarray, width: int, size: int
) -> Layout:
  """Arrange that groups of at most `width` rows read one class each."""
  member_PC = np.zeros((len(members), width), np.int32)
  place_B = np.full(size, len(members) * width, np.int32)
  for p, mine in enumerate(members):
    member_PC[p, : len(mine)] = mine
    place_B[mine] = p * width + np.arange(len(mine), dtype=np.int32)
  if np.array_equal(place_B, np.arange(size)) and len(members) * width == size:
    return Layout(position_PS, None, None)
  return Layout(position_PS, member_PC, place_B)


def shared_parts(
  waves: list[Wave],
  blocks: range,
  rows: Sequence[int],
  size: int,
  *,
  copies: bool = False,
  few_shapes: bool = False,
  run: Runner,
) -> tuple[dict[int, list[Part]], list[Layout]]:
  """Arrange what a batch of rows reads of the waves before it, by block; see `rows_reads`.

  Empties `waves`, so that what no row reads can go.
  """
  layouts: list[Layout] = []
  known: dict[tuple[int, bytes, bytes], list[tuple[Read, int]]] = {}
  shared: dict[int, list[Part]] = {block: [] for block in blocks}
  for w in range(len(waves)):
    wave = waves.pop(0)
    kvs, class_of, position_of = dict(enumerate(wave.kv)), wave.class_of, wave.position_of
    del wave
    for block in blocks:
      class_R, position_PS = class_of[block], position_of[block]
      key = (w, class_R.tobytes(), position_PS.tobytes())
      if key not in known:
        reads = rows_reads(class_R, position_PS, rows, size, copies=copies, few_shapes=few_shapes)
        known[key] = [(read, len(layouts) + n) for n, read in enumerate(reads)]
        layouts += [read.layout for read in reads]
      kv = kvs.pop(block)
      for read, number in known[key]:
        whole = read.slots is None and np.array_equal(read.used, np.arange(kv.num_rows))
        mine = (
          kv if whole else run("take classes", take, kv, read.used.astype(np.int32), read.slots)
        )
        shared[block].append(Part(mine, number))
  return shared, layouts


def fewer_parts(
  shared: dict[int, list[Part]],
  layouts: Sequence[Layout],
  old_size: int,
  index_B: np.ndarray,
  num_rows: int,
  *,
  run: Runner,
) -> tuple[dict[int, list[Part]], list[Layout]]:
  """Arrange what is left of `shared_parts` for fewer of its rows.

  The shapes depend on the numbers of rows alone, so that the program for a smaller batch can be
  compiled before it is known which rows it will hold.

  Args:
    shared, layouts: what the batch reads; `shared` is emptied, so that its memory can go.
    old_size: rows of the batch, with its padding.
    index_B: those that are kept, with the padding of the new batch.
    num_rows: how many of them are no padding.
    run: calls the device.
  """
  size, kept = len(index_B), []
  new_layouts = []
  for layout in layouts:
    position_PS = layout.position_PS
    classes = len(position_PS)
    if layout.member_PC is None:
      width, place_B = old_size // classes, np.arange(old_size)
    else:
      width, place_B = np.shape(layout.member_PC)[1], np.asarray(layout.place_B)
    class_B = np.where(place_B < classes * width, place_B // width, -1)[index_B].astype(np.int32)
    class_B[num_rows:] = -1
    classes, width = min(classes, size), min(width, size)
    if width == 1 and classes == size:
      used, _, new = _one_a_row(class_B, position_PS, size)
    else:
      used = np.unique(class_B[class_B >= 0])
      members = [np.flatnonzero(class_B == p) for p in used]
      members += [used[:0]] * (classes - len(used))
      used = np.append(used, np.zeros(classes - len(used), used.dtype))
      new = _grouped(members, position_PS[used], width, size)
      if new.member_PC is None:  # in order by chance; keep the shape that was announced
        order = np.arange(size, dtype=np.int32)
        new = Layout(new.position_PS, order.reshape(classes, width), order)
    kept.append(used.astype(np.int32))
    new_layouts.append(new)
  out: dict[int, list[Part]] = {}
  for block in list(shared):
    parts = shared.pop(block)
    out[block] = [
      Part(
        part.kv
        if np.array_equal(kept[part.layout], np.arange(part.kv.num_rows))
        else run("take classes", take, part.kv, kept[part.layout], None),
        part.layout,
      )
      for part in parts
    ]
  return out, new_layouts


@jax.jit
def take(kv: KV, index: jax.Array, slots: jax.Array | None) -> KV:
  """Pick classes of one block by number, and some of their slots."""
  kv = kv.rows(index)
  return kv if slots is None else kv.slots(slots)
