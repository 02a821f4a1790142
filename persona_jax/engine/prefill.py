"""Prefill: every distinct (tokens, edits) of a tile once, block by block, as its tree says.

The nodes of one depth are a *wave*. They go through the blocks in chunks of like length; where
classes of rows part, their common activation is repeated for each, and from there on each goes its
own way. Every node attends to the keys and values of the nodes before it where they lie: they are
never copied to the rows.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from persona_jax.edits.apply import Delivery, TokenInfo
from persona_jax.edits.compile import compile_edits
from persona_jax.edits.table import FOREVER, EditTable, Site, Where
from persona_jax.engine.capture import CaptureSpec
from persona_jax.engine.delivered import delivered_by_row
from persona_jax.engine.forward import run_blocks
from persona_jax.engine.group_batch import GroupBatch, runs
from persona_jax.engine.prefix import Chosen, Prefix, Wave, shared_parts, take
from persona_jax.engine.programs import PROGRAMS, Runner
from persona_jax.engine.reads import NodeReads, Reading, Reads, Sets
from persona_jax.engine.rows import round_up
from persona_jax.engine.taps import SiteTap
from persona_jax.engine.tree import Group, Tree, body_place, keys_place, stages
from persona_jax.models.layers import KV

if TYPE_CHECKING:
  from persona_jax.engine.model import Model

# Tokens that go through a block together; bounds the float32 temporaries (tokens x F).
BATCH_TOKENS = 4096
_CHOSEN_STEP = 32


@dataclasses.dataclass(frozen=True)
class _Record:
  """What a pass over some blocks noted of the groups it ran; arrays [G, ·], padding behind.

  `sets` says what rows read of them.
  """

  groups: tuple[Group, ...]
  deliveries: tuple[Delivery, ...]
  changes: dict[Where, jax.Array]
  reads: Reads
  sets: Sets | None


def prefill(
  model: "Model",
  tree: Tree,
  *,
  trace: bool = False,
  reading: Reading | None = None,
  chosen: Sequence[tuple[int, int]] = (),
  run: Runner = PROGRAMS,
) -> Prefix:
  """Compute the tree of a tile's rows.

  Args:
    model: the model.
    tree: the rows and what they share.
    trace: whether to note how far each token was moved at each edited place.
    reading: what to read of the rows' tokens.
    chosen: (row, position) of tokens whose activation behind the last block is wanted.
    run: calls the device; a dry one gives shapes, and nothing that was delivered.
  """
  work = _Prefill(model, tree, trace, reading, chosen, run)
  waves: list[Wave] = []
  for nodes in tree.waves:
    waves.append(work.wave(nodes, waves))
  return work.result(waves)


class _Prefill:
  """The work of `prefill`, and its notes."""

  def __init__(
    self,
    model: "Model",
    tree: Tree,
    trace: bool,
    reading: Reading | None,
    chosen: Sequence[tuple[int, int]],
    run: Runner,
  ):
    self._model, self._tree, self._trace = model, tree, trace
    self._run = model.runner(run)
    self._reading = reading
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
    for nodes_alike, length in runs(tree, nodes, BATCH_TOKENS):
      for block, part in enumerate(self._chunk(nodes_alike, length, before)):
        parts[block].append(part)
    slots = max(kv.num_slots for _, kv in parts[0])
    classes, positions, caches = [], [], []
    before_this: list[Group] | None = None
    for block in range(num_blocks):
      groups = [group for part, _ in parts[block] for group in part]
      if groups != before_this:
        class_R = np.full(len(tree.rows), -1, np.int32)
        position_PS = np.full((len(groups), slots), -1, np.int32)
        for p, group in enumerate(groups):
          node = tree.nodes[group.node]
          class_R[list(group.rows)] = p
          position_PS[p, : node.length] = np.arange(node.start, node.stop)
      before_this = groups
      classes.append(class_R)
      positions.append(position_PS)
      caches.append([kv for _, kv in parts[block]])
    if all(len(kvs) == 1 for kvs in caches):
      return Wave([kvs[0] for kvs in caches], classes, positions)
    return Wave(self._run("join chunks", _join, caches, slots=slots), classes, positions)

  def _chunk(
    self, nodes: list[int], length: int, before: Sequence[Wave]
  ) -> list[tuple[list[Group], KV]]:
    """Send some nodes through the blocks; return the classes and their keys, values by block."""
    tree, model = self._tree, self._model
    num_blocks = model.arch.num_blocks
    cuts = tree.cuts(nodes)
    out: list[tuple[list[Group], KV]] = []
    groups: list[Group] = []
    h_GTD: jax.Array | None = None
    for lo, hi in stages(cuts, num_blocks):
      finer = tree.groups(nodes, body_place(lo))
      batch = GroupBatch(tree, finer, length)
      if h_GTD is None:
        h_GTD = model.embed(batch.ids_GT(), run=self._run)
      else:
        h_GTD = self._part(h_GTD, groups, batch, lo - 1, body_place(lo - 1) in cuts)
      groups = finer
      wanted = hi < num_blocks or self._needs_end(nodes)
      deferred = body_place(hi - 1) in cuts
      h_GTD, caches = self._stage(batch, h_GTD, range(lo, hi), before, wanted, deferred)
      for block, kv in zip(range(lo, hi), caches, strict=True):
        keyed = tree.groups(nodes, keys_place(block))
        if len(keyed) < len(groups):  # classes that part inside the block have the same keys
          first = {row: g for g, group in enumerate(groups) for row in group.rows}
          index = np.asarray([first[group.rows[0]] for group in keyed], np.int32)
          kv = self._run("take classes", take, kv, index, None)
        out.append((keyed if len(keyed) < len(groups) else groups, kv))
      self._passes += (hi - lo) * sum(tree.nodes[g.node].length for g in groups)
    if self._needs_end(nodes):
      assert h_GTD is not None
      if body_place(num_blocks - 1) in cuts:
        finer = tree.groups(nodes, FOREVER)
        h_GTD = self._part(h_GTD, groups, GroupBatch(tree, finer, length), num_blocks - 1, True)
        groups = finer
      self._choose(h_GTD, groups)
    return out

  def _needs_end(self, nodes: Sequence[int]) -> bool:
    """Whether more than the keys and values of the last block is asked for."""
    tree, last = self._tree, self._model.arch.num_blocks - 1
    reading = self._reading
    if reading is not None and last in reading.spec.blocks:
      if any(reading.touches(tree, n) for n in nodes):
        return True
    return any(
      any(node.start <= position < node.stop for position in self._wanted.get(row, ()))
      or any(last in edit.blocks for edit in tree.edits(row, node.stop))
      for node in (tree.nodes[n] for n in nodes)
      for row in node.rows
    )

  def _table(self, batch: GroupBatch, blocks: range) -> EditTable | None:
    """Return the edits of a batch's groups, if there are some on its tokens in these blocks."""
    tree = self._tree
    rows = []
    for group in batch.filled:
      node = tree.nodes[group.node]
      rows.append(tree.edits(group.rows[0], node.stop))
    if not any(set(edit.blocks) & set(blocks) for edits in rows for edit in edits):
      return None
    return compile_edits(self._model, rows, blocks=blocks)

  def _what(
    self, batch: GroupBatch
  ) -> tuple[CaptureSpec | None, Mapping[int, jax.Array] | None, Sets | None]:
    """Return what is read of a batch, by which banks and which tokens of it."""
    reading = self._reading
    sets = None if reading is None else reading.sets(self._tree, batch)
    if reading is None or sets is None:
      return None, None, None
    return reading.spec, reading.banks, sets

  def _part(
    self,
    h_GTD: jax.Array,
    coarse: Sequence[Group],
    batch: GroupBatch,
    block: int,
    deferred: bool,
  ) -> jax.Array:
    """Repeat an activation for the finer classes behind a block; edit it if that was deferred."""
    source = {row: g for g, group in enumerate(coarse) for row in group.rows}
    index = np.asarray([source[group.rows[0]] for group in batch.filled], np.int32)
    h_GTD = self._run("part", _rows, h_GTD, index)
    if not deferred:
      return h_GTD
    table = self._table(batch, range(block, block + 1))
    sites = {} if table is None else {"resid_post": table.sites["resid_post", block]}
    spec, banks, sets = self._what(batch)
    spec = None if spec is None else spec.reads(block)
    if spec is not None:
      here = tuple(site for site in spec.sites if site == "resid_post")
      spec = dataclasses.replace(spec, sites=here) if here else None
    h_GTD, delivery, reads, changes = self._run(
      "behind",
      _behind,
      h_GTD,
      sites,
      batch.tokens,
      None if banks is None else banks.get(block),
      None if sets is None else sets.held_GCT,
      spec=spec,
      trace=self._trace,
    )
    self._records.append(
      _Record(
        tuple(batch.groups),
        () if delivery is None else (delivery,),
        {(site, block): x for site, x in changes.items()},
        {(site, block): x for site, x in reads.items()},
        sets,
      )
    )
    return h_GTD

  def _stage(
    self,
    batch: GroupBatch,
    h_GTD: jax.Array,
    blocks: range,
    before: Sequence[Wave],
    wanted: bool,
    deferred: bool,
  ) -> tuple[jax.Array | None, list[KV]]:
    """Send the groups of a batch through blocks in which none part."""
    ends: list[jax.Array] = []
    caches: list[list[KV]] = []
    pieces = list(batch.pieces(BATCH_TOKENS))
    for piece, part in pieces:
      table = self._table(part, blocks)
      if deferred and table is not None:
        left = {w: site for w, site in table.sites.items() if w != ("resid_post", blocks[-1])}
        table = EditTable(left)
      spec, banks, sets = self._what(part)
      rows = [group.rows[0] for group in part.filled]
      shared, layouts = shared_parts(
        list(before), blocks, rows, part.size, few_shapes=True, run=self._run
      )
      whole = part is batch
      out = run_blocks(
        self._model.arch,
        self._model.params,
        h_GTD if whole else self._run("cut", _slice, h_GTD, start=piece.start, stop=piece.stop),
        part.position_GT(),
        part.tokens,
        slot_position_BS=part.slot_position_GT(),
        edits=table,
        spec=spec,
        banks=banks,
        sets_BCT=None if sets is None else sets.held_GCT,
        fused=self._model.fused,
        attention=self._model.attention,
        trace=self._trace,
        blocks=blocks,
        shared=shared,
        layouts=layouts,
        only_kv=not wanted,
        run=self._run,
      )
      reads = {
        where: x
        for where, x in out.reads.items()
        if not (deferred and where == ("resid_post", blocks[-1]))
      }
      self._records.append(
        _Record(tuple(part.groups), tuple(out.deliveries), out.changes, reads, sets)
      )
      self._padded += len(blocks) * part.size * part.length
      ends.append(out.h_BTD)
      caches.append(out.caches)
    count = len(batch.groups)
    padded = not whole or count < batch.size
    kept = self._run("keep", _first, caches, count=count) if padded else caches[0]
    if not wanted:
      return None, kept
    return ends[0] if whole else self._run("join pieces", _concatenate, ends), kept

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
      # Padded, so that few programs serve all.
      at_M2 = np.zeros((round_up(len(index), _CHOSEN_STEP), 2), np.int32)
      at_M2[: len(index)] = index
      self._chosen.append(Chosen(self._run("choose", _pick, h_GTD, at_M2), len(index), place))

  def result(self, waves: list[Wave]) -> Prefix:
    """Put the notes together, by row."""
    tree = self._tree
    reads = [
      NodeReads(record.groups, record.sets.index_R, record.reads)
      for record in self._records
      if record.sets is not None and record.reads
    ]
    # Without the reads, which are let go as soon as they have been put together.
    notes = [(record.groups, record.deliveries, record.changes) for record in self._records]
    if self._run.is_dry:
      notes = []
    deliver = functools.partial(delivered_by_row, tree, notes)
    return Prefix(waves, deliver, self._chosen, reads, self._passes, self._padded)


@functools.partial(jax.jit, static_argnames=("spec", "trace"))
def _behind(
  h_BTD: jax.Array,
  sites: dict[str, Site],
  tokens: TokenInfo,
  bank_RD: jax.Array | None,
  sets_GCT: jax.Array | None,
  *,
  spec: CaptureSpec | None,
  trace: bool,
) -> tuple[jax.Array, Delivery | None, dict[str, jax.Array], dict[str, jax.Array]]:
  """Apply and read what stands behind a block, at "resid_post"."""
  tap = SiteTap(sites, tokens, spec, bank_RD, None, trace, sets_GCT)
  h_BTD = tap("resid_post", h_BTD)
  return h_BTD, tap.delivery, tap.reads, tap.changes


@functools.partial(jax.jit, static_argnames=("count",))
def _first(pieces: list[list[KV]], count: int) -> list[KV]:
  """Put the pieces of a batch together, block by block, without its padding."""
  return jax.tree.map(lambda *xs: jnp.concatenate(xs)[:count], *pieces)


@functools.partial(jax.jit, static_argnames=("slots",))
def _join(chunks: list[list[KV]], slots: int) -> list[KV]:
  """Put the chunks of every block together, with as many slots each."""
  return [
    jax.tree.map(lambda *xs: jnp.concatenate(xs), *(part.padded(slots) for part in parts))
    for parts in chunks
  ]


@jax.jit
def _concatenate(parts: list[jax.Array]) -> jax.Array:
  return jnp.concatenate(parts)


@jax.jit
def _rows(h_GTD: jax.Array, index: jax.Array) -> jax.Array:
  return h_GTD[index]


@functools.partial(jax.jit, static_argnames=("start", "stop"))
def _slice(h_GTD: jax.Array, start: int, stop: int) -> jax.Array:
  return h_GTD[start:stop]


@jax.jit
def _pick(h_GTD: jax.Array, at_M2: jax.Array) -> jax.Array:
  return h_GTD[at_M2[:, 0], at_M2[:, 1]]
