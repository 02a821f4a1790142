"""Rows run tile by tile, for what is read on the way."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np

from persona_jax.engine.capture import Capture, resolve
from persona_jax.engine.checks import check_lengths, dose_of, problem_of
from persona_jax.engine.memory import DryMemory, Halving, does_not_fit
from persona_jax.engine.prefill import BATCH_TOKENS, prefill
from persona_jax.engine.prefix import Prefix
from persona_jax.engine.programs import PROGRAMS, Runner
from persona_jax.engine.reads import NodeReads, Reading, Reads, by_row
from persona_jax.engine.rows import Row, length_bucket
from persona_jax.engine.tree import ALL_SHARED, Sharing, Tree

if TYPE_CHECKING:
  from persona_jax.engine.model import Model

# Tokens of a tile, with padding and without what its rows share: two batches, so that a shared
# beginning is computed for at least so many tokens, and keys, values and reads stay bounded.
TILE_TOKENS = 2 * BATCH_TOKENS
# Rows with a common beginning stand together from so many on; fewer are better sorted by length.
STEM_ROWS = 32


@dataclasses.dataclass(frozen=True, eq=False)
class ReadTile:
  """What was read of some rows.

  Attributes:
    numbers: of the rows, in the order of everything here.
    tree: the rows and what they share.
    held: of each row, the tokens that it reads, bool [T].
    prefix: the pass.
    reads: by (site, block), what each row reads, [B, ·] on the device, for reduce="last" and
      "mean"; B is the number of rows, rounded up, and NaN stands for a row whose window holds no
      token. Nothing for reduce="all", where `notes` has it.
    run: calls the device.
  """

  numbers: list[int]
  tree: Tree
  held: list[np.ndarray]
  prefix: Prefix
  reads: Reads
  run: Runner

  @property
  def notes(self) -> list[NodeReads]:
    """What was read, pass by pass."""
    return self.prefix.reads


def cut(rows: Sequence[Row], *, full: bool = False) -> tuple[list[list[int]], list[int]]:
  """Cut rows into tiles: those with a common beginning together, by length.

  The cut depends only on the rows.

  Args:
    rows: the rows.
    full: whether to make only full tiles of rows of one beginning and one length with padding, so
      that few programs serve a stream of rows, and to keep back the others.

  Returns:
    Row numbers of each tile, and of the rows that were kept back.
  """
  tree = Tree(rows, [len(row.ids) for row in rows])
  keys: list[tuple[list[int], int]] = []
  for n, row in enumerate(rows):
    stems = [node for node in tree.chain(n)[:-1] if len(tree.nodes[node].rows) >= STEM_ROWS]
    start = tree.nodes[stems[-1]].stop if stems else 0
    keys.append((stems, length_bucket(len(row.ids) - start)))
  order = sorted(range(len(rows)), key=lambda n: (keys[n], len(rows[n].ids), rows[n].ids, n))
  tiles: list[list[int]] = []
  kept: list[int] = []
  for _, alike in itertools.groupby(order, key=lambda n: keys[n] if full else None):
    mine: list[list[int]] = []
    longest = 0
    for n in alike:
      longest = max(longest, keys[n][1])
      if not mine or len(mine[-1]) >= _room(longest):
        mine.append([])
        longest = keys[n][1]
      mine[-1].append(n)
    if full and len(mine[-1]) < _room(longest):
      kept += mine.pop()
    tiles += mine
  return tiles, kept


def _room(length: int) -> int:
  """Return the rows of a tile: both of its batches are then full."""
  most = max(1, TILE_TOKENS // length)
  return most // 16 * 16 or most


def batches(
  model: "Model",
  rows: Sequence[Row],
  capture: Capture,
  *,
  tiles: Sequence[Sequence[int]] | None = None,
  numbers: Sequence[int] | None = None,
  wait: bool = True,
  run: Runner = PROGRAMS,
  sharing: Sharing = ALL_SHARED,
) -> Iterator[ReadTile]:
  """Run rows tile by tile and yield what is read of them.

  A tile that does not fit into memory is run in halves, with a warning, which are yielded one after
  the other.

  Args:
    model: the model.
    rows: the rows.
    capture: what to read.
    tiles: row numbers; default all rows, as `cut` says.
    numbers: what to call the rows in messages; default as they stand.
    wait: whether a tile is yielded when it is done, so that a device that runs out of memory after
      the call was dispatched is noticed here too; otherwise the caller goes on meanwhile.
    run: calls the device.
    sharing: what rows may have in common; to compare. It changes nothing in how they are cut.

  Raises:
    ValueError: the rows or the capture do not fit the model, or a row did not get the edit that it
      asked for.
    MemoryError: a row by itself does not fit; the message names it and what it needs.
  """
  if not rows:
    return
  check_lengths(model, rows, 0, names=numbers)
  spec, banks = resolve(capture, model.arch)
  places, run = spec.places(banks, model.arch), model.runner(run)
  names = range(len(rows)) if numbers is None else numbers

  def read(tile: list[int]) -> ReadTile:
    mine = [rows[n] for n in tile]
    tree = Tree(mine, [len(row.ids) for row in mine], sharing=sharing)
    reading = Reading(mine, spec, banks)
    out = prefill(model, tree, reading=reading, run=run)
    _check_delivered(
      [names[n] for n in tile], mine, out.delivered.realised_R, out.delivered.requested_R
    )
    reads = {} if reading.every else by_row(out.reads, reading.held, places, run=run)
    if wait:
      jax.block_until_ready((reads, [note.arrays for note in out.reads]))
    return ReadTile(tile, tree, reading.held, out, reads, run)

  def single(n: int) -> str:
    dry = DryMemory(model.arch, model.params, model.mesh)
    tree = Tree([rows[n]], [len(rows[n].ids)])
    prefill(model, tree, reading=Reading([rows[n]], spec, banks), run=dry)
    advice = "a shorter prompt, a capture of fewer sites and blocks,"
    return does_not_fit(f"prompt {names[n]}", len(rows[n].ids), dry.peak_bytes, model.mesh, advice)

  for tile in cut(rows)[0] if tiles is None else tiles:
    yield from Halving(read, single)(tile)  # how many rows fit says nothing of the next length


def _check_delivered(
  numbers: Sequence[int],
  rows: Sequence[Row],
  realised_B: jax.Array | np.ndarray,
  requested_B: jax.Array | np.ndarray,
) -> None:
  """Refuse reads of rows that were not edited as asked: no flag goes with them."""
  if not any(row.edits for row in rows):
    return
  realised, requested = np.asarray(realised_B), np.asarray(requested_B)
  for b, (n, row) in enumerate(zip(numbers, rows, strict=True)):
    problem = problem_of(row, (), dose_of(realised[b], requested[b]))
    if problem:
      raise ValueError(f"prompt {n}: {problem}.")
