"""Prefill: every distinct (tokens, edits) of a tile once, block by block, as its tree says.

The nodes of one depth are a *wave*. They go through the blocks in chunks of like length; where
classes of rows part, their common activation is repeated for each, and from there on each goes its
own way. Every node attends to the keys and values of the nodes before it where they lie: they are
never copied to the rows.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from persona_jax.edits.apply import Delivery, TokenInfo
from persona_jax.edits.compile import compile_edits
from persona_jax.edits.table import FOREVER, EditTable, Site, Where
from persona_jax.engine.capture import CaptureSpec
from persona_jax.engine.forward import Layout, Part, run_blocks
from persona_jax.engine.rows import LENGTH_STEP, round_up, row_bucket
from persona_jax.engine.taps import SiteTap
from persona_jax.engine.tree import Group, Tree, body_place, keys_place, stages
from persona_jax.models.layers import KV

if TYPE_CHECKING:
  from persona_jax.engine.model import Model

# Tokens that go through a block together; bounds the float32 temporaries (tokens x F).
BATCH_TOKENS = 4096

Reads = dict[Where, jax.Array]


@dataclasses.dataclass(frozen=True, eq=False)
class Wave:
  """Keys and values of the nodes of one depth.

  Attributes:
    kv: by block, [P, K, S, H] for its P classes.
    class_of: by block, int32 [R]: the class of each row, -1 for rows without a node here.
    position_of: by block, int32 [P, S]: position of the token in each slot, -1 where it is empty.
  """

  kv: list[KV]
  class_of: list[np.ndarray]
  position_of: list[np.ndarray]


@dataclasses.dataclass(frozen=True)
class _Record:
  """What a pass over some blocks noted of the groups it ran; arrays [G, ·], padding behind."""

  groups: tuple[Group, ...]
  delivery: Delivery | None
  changes: dict[Where, jax.Array]
  reads: Reads


@dataclasses.dataclass(frozen=True)
class Chosen:
  """Activations behind the last block at chosen tokens.

  Attributes:
    h_MD: the activations, each distinct one once.
    place: (row, position) → its number.
  """

  h_MD: jax.Array
  place: dict[tuple[int, int], int]


@dataclasses.dataclass(frozen=True, eq=False)
class Prefix:
  """The computed tree of R rows.

  Attributes:
    waves: keys and values, by depth.
    realised_R, requested_R: float32, delivery of the edits (`edits.apply.Delivery`).
    edited_R: int32, tokens on which an edit was on.
    changes: float32 by (site, block) and row, how far each of its tokens was moved, if traced.
    chosen: what was chosen.
    reads: what was read, with the groups that each row of an array stands for.
    passes: times that a token was sent through a block.
    padded_passes: the same with padding.
  """

  waves: list[Wave]
  realised_R: np.ndarray
  requested_R: np.ndarray
  edited_R: np.ndarray
  changes: dict[Where, list[np.ndarray]]
  chosen: list[Chosen]
  reads: list[tuple[tuple[Group, ...], Reads]]
  passes: int
  padded_passes: int


def prefill(
  model: "Model",
  tree: Tree,
  *,
  trace: bool = False,
  spec: CaptureSpec | None = None,
  banks: Mapping[int, jax.Array] | None = None,
  chosen: Sequence[tuple[int, int]] = (),
) -> Prefix:
  """Compute the tree of a tile's rows.

  Args:
    model: the model.
    tree: the rows and what they share.
    trace: whether to note how far each token was moved at each edited place.
    spec, banks: what to read of every node's tokens (`engine.capture.resolve`).
    chosen: (row, position) of tokens whose activation behind the last block is wanted.
  """
  run = _Prefill(model, tree, trace, spec, banks, chosen)
  waves: list[Wave] = []
  for nodes in tree.waves:
    waves.append(run.wave(nodes, waves))
  return run.result(waves)


def rows_layout(
  class_R: np.ndarray,
  position_PS: np.ndarray,
  rows: Sequence[int],
  size: int,
  *,
  copies: bool = False,
) -> tuple[np.ndarray, Layout]:
  """Arrange how a batch of rows reads shared keys and values.

  Args:
    class_R: class of every row of the tree, -1 for none.
    position_PS: positions of the classes' slots.
    rows: the rows of the batch, in its order.
    size: rows of the batch with its padding, which reads nothing.
    copies: whether each row is to have a copy of its own.

  Returns:
    The classes that are read, and the layout for them in this order.
  """
  class_B = class_R[list(rows)]
  if copies:
    class_B = np.append(class_B, np.full(size - len(class_B), -1, np.int32))
    position_BS = np.where(class_B[:, None] < 0, -1, position_PS[class_B])
    return np.maximum(class_B, 0), Layout(jnp.asarray(position_BS), None, None)
  used, first = np.unique(class_B[class_B >= 0], return_index=True)
  used = used[np.argsort(first)] if len(used) else np.zeros(1, np.int32)
  members = [np.flatnonzero(class_B == p) for p in used]
  width = max(1, *map(len, members))
  member_PC = np.zeros((len(used), width), np.int32)
  place_B = np.full(size, len(used) * width, np.int32)
  for p, mine in enumerate(members):
    member_PC[p, : len(mine)] = mine
    place_B[mine] = p * width + np.arange(len(mine))
  position = jnp.asarray(position_PS[used])
  if np.array_equal(place_B, np.arange(size)) and len(used) * width == size:
    return used, Layout(position, None, None)
  return used, Layout(position, jnp.asarray(member_PC), jnp.asarray(place_B))


def shared_parts(
  waves: Sequence[Wave], blocks: range, rows: Sequence[int], size: int, *, copies: bool = False
) -> tuple[dict[int, list[Part]], list[Layout]]:
  """Arrange what a batch of rows reads of the waves before it, by block; see `rows_layout`."""
  layouts: list[Layout] = []
  numbers: dict[tuple[int, bytes, bytes], tuple[np.ndarray, int]] = {}
  shared: dict[int, list[Part]] = {block: [] for block in blocks}
  for w, wave in enumerate(waves):
    for block in blocks:
      class_R, position_PS = wave.class_of[block], wave.position_of[block]
      key = (w, class_R.tobytes(), position_PS.tobytes())
      if key not in numbers:
        used, layout = rows_layout(class_R, position_PS, rows, size, copies=copies)
        layouts.append(layout)
        numbers[key] = used, len(layouts) - 1
      used, number = numbers[key]
      kv = wave.kv[block]
      if not np.array_equal(used, np.arange(kv.k_BKSH.shape[0])):
        kv = _take(kv, jnp.asarray(used))
      shared[block].append(Part(kv, number))
  return shared, layouts


class _Prefill:
  """The work of `prefill`, and its notes."""

  def __init__(
    self,
    model: "Model",
    tree: Tree,
    trace: bool,
    spec: CaptureSpec | None,
    banks: Mapping[int, jax.Array] | None,
    chosen: Sequence[tuple[int, int]],
  ):
    self._model, self._tree, self._trace = model, tree, trace
    self._spec, self._banks = spec, banks
    self._wanted: dict[int, list[int]] = {}
    for row, position in chosen:
      self._wanted.setdefault(row, []).append(position)
    self._records: list[_Record] = []
    self._chosen: list[Chosen] = []
    self._passes = self._padded = 0

  def wave(self, nodes: Sequence[int], before: Sequence[Wave]) -> Wave:
    """Compute the nodes of one depth."""
    tree, num_blocks = self._tree, self._model.arch.num_blocks
    parts: list[list[tuple[list[Group], KV]]] = [[] for _ in range(num_blocks)]
    for chunk in _chunks(tree, nodes):
      for block, part in enumerate(self._chunk(chunk, before)):
        parts[block].append(part)
    slots = max(kv.k_BKSH.shape[2] for _, kv in parts[0])
    classes, positions, caches = [], [], []
    for block in range(num_blocks):
      groups = [group for part, _ in parts[block] for group in part]
      class_R = np.full(len(tree.rows), -1, np.int32)
      position_PS = np.full((len(groups), slots), -1, np.int32)
      for p, group in enumerate(groups):
        node = tree.nodes[group.node]
        class_R[list(group.rows)] = p
        position_PS[p, : node.length] = np.arange(node.start, node.stop)
      classes.append(class_R)
      positions.append(position_PS)
      caches.append(_join([kv for _, kv in parts[block]], slots))
    return Wave(caches, classes, positions)

  def _chunk(self, nodes: list[int], before: Sequence[Wave]) -> list[tuple[list[Group], KV]]:
    """Send some nodes through the blocks; return the classes and their keys, values by block."""
    tree, model = self._tree, self._model
    num_blocks = model.arch.num_blocks
    length = round_up(max(tree.nodes[n].length for n in nodes), LENGTH_STEP)
    cuts = tree.cuts(nodes)
    out: list[tuple[list[Group], KV]] = []
    groups: list[Group] = []
    h_GTD: jax.Array | None = None
    for lo, hi in stages(cuts, num_blocks):
      finer = tree.groups(nodes, body_place(lo))
      batch = _Batch(tree, finer, length)
      h_GTD = self._embed(batch) if h_GTD is None else self._part(h_GTD, groups, batch, lo - 1)
      groups = finer
      wanted = hi < num_blocks or self._needs_end(nodes, cuts)
      deferred = body_place(hi - 1) in cuts
      h_GTD, caches = self._stage(batch, h_GTD, range(lo, hi), before, wanted, deferred)
      for block, kv in zip(range(lo, hi), caches, strict=True):
        keyed = tree.groups(nodes, keys_place(block))
        if len(keyed) < len(groups):  # classes that part inside the block have the same keys
          first = {row: g for g, group in enumerate(groups) for row in group.rows}
          kv = _take(kv, jnp.asarray([first[group.rows[0]] for group in keyed]))
        out.append((keyed if len(keyed) < len(groups) else groups, kv))
      self._passes += (hi - lo) * sum(tree.nodes[g.node].length for g in groups)
    if self._needs_end(nodes, cuts):
      assert h_GTD is not None
      if body_place(num_blocks - 1) in cuts:
        finer = tree.groups(nodes, FOREVER)
        h_GTD = self._part(h_GTD, groups, _Batch(tree, finer, length), num_blocks - 1)
        groups = finer
      self._choose(h_GTD, groups)
    return out

  def _needs_end(self, nodes: Sequence[int], cuts: Sequence[int]) -> bool:
    """Whether more than the keys and values of the last block is asked for."""
    tree, last = self._tree, self._model.arch.num_blocks - 1
    if self._wanted or (self._spec is not None and last in self._spec.blocks):
      return True
    return any(
      last in edit.blocks
      for n in nodes
      for row in tree.nodes[n].rows
      for edit in tree.edits(row, tree.nodes[n].stop)
    )

  def _embed(self, batch: "_Batch") -> jax.Array:
    return self._model.embed(jnp.asarray(batch.ids_GT()))

  def _table(self, batch: "_Batch", blocks: range) -> EditTable | None:
    """Return the edits of a batch's groups, if there are some on its tokens in these blocks."""
    tree = self._tree
    rows = []
    for group in batch.filled:
      node = tree.nodes[group.node]
      rows.append(tree.edits(group.rows[0], node.stop))
    if not any(set(edit.blocks) & set(blocks) for edits in rows for edit in edits):
      return None
    return compile_edits(self._model, rows)

  def _part(
    self, h_GTD: jax.Array, coarse: Sequence[Group], batch: "_Batch", block: int
  ) -> jax.Array:
    """Repeat an activation for the finer classes behind a block, and apply what it left to them."""
    source = {row: g for g, group in enumerate(coarse) for row in group.rows}
    index = jnp.asarray([source[group.rows[0]] for group in batch.filled])
    h_GTD = h_GTD[index]
    where: Where = ("resid_post", block)
    if not self._deferred(batch, block):
      return h_GTD
    table = self._table(batch, range(block, block + 1))
    sites = {} if table is None else {"resid_post": table.sites[where]}
    spec = None if self._spec is None else self._spec.reads(block)
    if spec is not None:
      here = tuple(site for site in spec.sites if site == "resid_post")
      spec = dataclasses.replace(spec, sites=here) if here else None
    h_GTD, delivery, reads, changes = _behind(
      h_GTD,
      sites,
      batch.tokens,
      None if self._banks is None else self._banks.get(block),
      spec=spec,
      trace=self._trace,
    )
    self._records.append(
      _Record(
        tuple(batch.groups),
        delivery,
        {(site, block): x for site, x in changes.items()},
        {(site, block): x for site, x in reads.items()},
      )
    )
    return h_GTD

  def _deferred(self, batch: "_Batch", block: int) -> bool:
    nodes = list(dict.fromkeys(group.node for group in batch.groups))
    return body_place(block) in self._tree.cuts(nodes)

  def _stage(
    self,
    batch: "_Batch",
    h_GTD: jax.Array,
    blocks: range,
    before: Sequence[Wave],
    wanted: bool,
    deferred: bool,
  ) -> tuple[jax.Array | None, list[KV]]:
    """Send the groups of a batch through blocks in which none part."""
    ends: list[jax.Array] = []
    caches: list[list[KV]] = [[] for _ in blocks]
    for piece, part in batch.pieces(BATCH_TOKENS):
      table = self._table(part, blocks)
      if deferred and table is not None:
        left = {w: site for w, site in table.sites.items() if w != ("resid_post", blocks[-1])}
        table = EditTable(left)
      rows = [group.rows[0] for group in part.groups]
      shared, layouts = shared_parts(before, blocks, rows, part.size)
      spec = self._spec
      out = run_blocks(
        self._model.arch,
        self._model.params,
        h_GTD[piece],
        part.position_GT(),
        part.tokens,
        slot_position_BS=part.slot_position_GT(),
        edits=table,
        spec=spec,
        banks=self._banks,
        fused=self._model.fused,
        trace=self._trace,
        blocks=blocks,
        shared=shared,
        layouts=layouts,
        only_kv=not wanted,
      )
      reads = {
        where: x
        for where, x in out.reads.items()
        if not (deferred and where == ("resid_post", blocks[-1]))
      }
      delivery = None if table is None else out.delivery
      self._records.append(_Record(tuple(part.groups), delivery, out.changes, reads))
      self._padded += len(blocks) * part.size * part.length
      ends.append(out.h_BTD)
      for block, kv in enumerate(out.caches):
        caches[block].append(kv)
    count = len(batch.groups)
    h = None if not wanted else ends[0] if len(ends) == 1 else jnp.concatenate(ends)
    return h, [_first(kvs, count) for kvs in caches]

  def _choose(self, h_GTD: jax.Array, groups: Sequence[Group]) -> None:
    """Keep the activations that were asked for."""
    index: list[tuple[int, int]] = []
    number: dict[tuple[int, int], int] = {}
    place = {}
    for g, group in enumerate(groups):
      node = self._tree.nodes[group.node]
      for row in group.rows:
        for position in self._wanted.get(row, ()):
          if node.start <= position < node.stop:
            at = (g, position - node.start)
            if at not in number:
              number[at] = len(index)
              index.append(at)
            place[row, position] = number[at]
    if index:
      at_M2 = np.asarray(index)
      self._chosen.append(Chosen(h_GTD[at_M2[:, 0], at_M2[:, 1]], place))

  def result(self, waves: list[Wave]) -> Prefix:
    """Put the notes together, by row."""
    tree = self._tree
    realised, requested = (np.zeros(len(tree.rows), np.float32) for _ in range(2))
    edited = [np.zeros(stop, bool) for stop in tree.stops]
    changes: dict[Where, list[np.ndarray]] = {}
    for record in self._records:
      if record.delivery is not None:
        done = [np.asarray(x) for x in record.delivery]
        for g, group in enumerate(record.groups):
          node = tree.nodes[group.node]
          for row in group.rows:
            realised[row] += done[0][g]
            requested[row] += done[1][g]
            edited[row][node.start : node.stop] |= done[2][g, : node.length]
      for where, change_GT in record.changes.items():
        by_row = changes.setdefault(where, [np.zeros(stop, np.float32) for stop in tree.stops])
        change = np.asarray(change_GT)
        for g, group in enumerate(record.groups):
          node = tree.nodes[group.node]
          for row in group.rows:
            by_row[row][node.start : node.stop] = change[g, : node.length]
    reads = [(record.groups, record.reads) for record in self._records if record.reads]
    counts = np.asarray([x.sum() for x in edited], np.int32)
    return Prefix(
      waves, realised, requested, counts, changes, self._chosen, reads, self._passes, self._padded
    )


class _Batch:
  """Groups that go through a block together, padded to a shape; the padding repeats the first."""

  def __init__(self, tree: Tree, groups: Sequence[Group], length: int):
    self._tree, self.groups, self.length = tree, list(groups), length
    self.size = row_bucket(len(self.groups))

  @property
  def filled(self) -> list[Group]:
    """The groups, with the padding."""
    return self.groups + self.groups[:1] * (self.size - len(self.groups))

  def pieces(self, tokens: int) -> Iterator[tuple[slice, "_Batch"]]:
    """Cut into batches of at most so many tokens (and at least one row)."""
    most = max(1, tokens // self.length)
    count = -(-self.size // most)
    if count == 1:
      yield slice(0, self.size), self
      return
    step = row_bucket(-(-len(self.groups) // count))
    for i in range(0, len(self.groups), step):
      part = _Batch(self._tree, self.groups[i : i + step], self.length)
      yield slice(i, i + part.size), part

  def _by_token(self, make: Callable[[Group], Sequence[int]], empty: int) -> np.ndarray:
    out = np.full((self.size, self.length), empty, np.int32)
    for g, group in enumerate(self.filled):
      node = self._tree.nodes[group.node]
      out[g, : node.length] = make(group)[node.start : node.stop]
    return out

  def ids_GT(self) -> np.ndarray:
    """Token ids."""
    return self._by_token(lambda group: self._tree.rows[group.rows[0]].ids, 0)

  def position_GT(self) -> jax.Array:
    """Positions, those of the padding behind the tokens going on."""
    start_G = np.asarray([self._tree.nodes[group.node].start for group in self.filled], np.int32)
    return jnp.asarray(start_G[:, None] + np.arange(self.length, dtype=np.int32))

  def slot_position_GT(self) -> jax.Array:
    """Positions of the tokens as slots: -1 for padding."""
    return jnp.where(self.tokens.valid_BT, self.position_GT(), -1)

  @functools.cached_property
  def tokens(self) -> TokenInfo:
    """What edit windows need to know."""
    tree = self._tree
    end_G = [tree.rows[group.rows[0]].prompt_length for group in self.filled]
    length_G = np.asarray([tree.nodes[group.node].length for group in self.filled])
    roles_GT = self._by_token(lambda group: tree.rows[group.rows[0]].roles, 0)
    return TokenInfo(
      self.position_GT() - jnp.asarray(end_G, jnp.int32)[:, None],
      jnp.asarray(roles_GT),
      jnp.asarray(np.arange(self.length) < length_G[:, None]),
    )


def _chunks(tree: Tree, nodes: Sequence[int]) -> Iterator[list[int]]:
  """Cut nodes into runs of like length that go through the first block together."""
  order = sorted(nodes, key=lambda n: tree.nodes[n].length)
  chunk: list[int] = []
  for n in order:
    longest = round_up(tree.nodes[n].length, LENGTH_STEP)
    if chunk and (len(chunk) + 1) * longest > BATCH_TOKENS:
      yield sorted(chunk)
      chunk = []
    chunk.append(n)
  yield sorted(chunk)


@functools.partial(jax.jit, static_argnames=("spec", "trace"))
def _behind(
  h_BTD: jax.Array,
  sites: dict[str, Site],
  tokens: TokenInfo,
  bank_RD: jax.Array | None,
  *,
  spec: CaptureSpec | None,
  trace: bool,
) -> tuple[jax.Array, Delivery | None, dict[str, jax.Array], dict[str, jax.Array]]:
  """Apply and read what stands behind a block, at "resid_post"."""
  tap = SiteTap(sites, tokens, spec, bank_RD, None, trace)
  h_BTD = tap("resid_post", h_BTD)
  return h_BTD, tap.delivery, tap.reads, tap.changes


@jax.jit
def _take(kv: KV, index: jax.Array) -> KV:
  """Pick classes of one block by number."""
  return KV(kv.k_BKSH[index], kv.v_BKSH[index])


@functools.partial(jax.jit, static_argnames=("count",))
def _first(parts: list[KV], count: int) -> KV:
  """Put the pieces of a batch together, without its padding."""
  return KV(*(jnp.concatenate(xs)[:count] for xs in zip(*parts, strict=True)))


@functools.partial(jax.jit, static_argnames=("slots",))
def _join(parts: list[KV], slots: int) -> KV:
  """Put the chunks of one block together, with as many slots each."""

  def whole(xs: Sequence[jax.Array]) -> jax.Array:
    pads = [[(0, 0), (0, 0), (0, slots - x.shape[2]), (0, 0)] for x in xs]
    return jnp.concatenate([jnp.pad(x, pad) for x, pad in zip(xs, pads, strict=True)])

  return KV(*(whole(xs) for xs in zip(*parts, strict=True)))
