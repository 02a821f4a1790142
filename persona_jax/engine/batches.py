"""Rows run tile by tile, for what is read on the way."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np

from persona_jax.edits.table import Where
from persona_jax.engine.capture import Capture, CaptureSpec, resolve
from persona_jax.engine.checks import check_lengths, dose_of, problem_of
from persona_jax.engine.halving import Halving, Limit, cut_to_fit
from persona_jax.engine.memory import DryMemory, does_not_fit, memory_limit
from persona_jax.engine.prefill import BATCH_TOKENS, prefill
from persona_jax.engine.prefix import Prefix
from persona_jax.engine.programs import PROGRAMS, Runner
from persona_jax.engine.reads import NodeReads, Reading, Reads, by_row
from persona_jax.engine.rows import Row, length_bucket, row_bucket
from persona_jax.engine.settings import Settings
from persona_jax.engine.tile_plan import most_bytes
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
    prefix: the pass, without its keys and values.
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
  names: Sequence[object] | None = None,
  ahead: bool = False,
  limit: Limit | None = None,
  run: Runner = PROGRAMS,
  sharing: Sharing = ALL_SHARED,
) -> Iterator[ReadTile]:
  """Run rows tile by tile and yield what is read of them.

  Tiles are cut until they are predicted to fit into memory. One that does not is run in halves,
  with a warning, which are yielded one after the other, and later tiles are cut before.

  Args:
    model: the model.
    rows: the rows.
    capture: what to read.
    tiles: row numbers; default all rows, as `cut` says.
    names: what to call the rows in messages; default their numbers.
    ahead: whether the next tile is handed to the device before one is waited for and yielded, so
      that the host prepares meanwhile; two are then in memory, and halves of one come behind it.
    limit: what tiles of earlier calls have shown to be too large; takes what these show.
    run: calls the device.
    sharing: what rows may have in common; to compare. It changes nothing in how they are cut.

  Raises:
    ValueError: the rows or the capture do not fit the model, or a row did not get the edit that it
      asked for.
    MemoryError: a row by itself does not fit; the message names it and what it needs.
  """
  if not rows:
    return
  check_lengths(model, rows, 0, names=names)
  spec, banks = resolve(capture, model.arch)
  places, run = spec.places(banks, model.arch), model.runner(run)
  names = range(len(rows)) if names is None else names

  def read(tile: list[int]) -> ReadTile:
    mine = [rows[n] for n in tile]
    tree = Tree(mine, [len(row.ids) for row in mine], sharing=sharing)
    reading = Reading(mine, spec, banks)
    out = prefill(model, tree, reading=reading, run=run)
    out.waves.clear()
    _check_delivered(
      [names[n] for n in tile], mine, out.delivered.realised_R, out.delivered.requested_R
    )
    reads = {} if reading.every else by_row(out.reads, reading.held, places, run=run)
    done = ReadTile(tile, tree, reading.held, out, reads, run)
    return done if ahead else wait(done)

  def wait(tile: ReadTile) -> ReadTile:
    jax.block_until_ready((tile.reads, [note.arrays for note in tile.notes]))
    return tile

  def peak(numbers: Sequence[int]) -> int:
    return _peak(model, [rows[n] for n in numbers], spec, banks, places, sharing)

  def fits(numbers: Sequence[int]) -> bool:
    mine, most = [rows[n] for n in numbers], memory_limit(model.device)
    reads = _most_read(mine, spec, places)
    if most_bytes(model, mine, Settings(1)) + 3 * reads <= most:
      return True
    # Of the tile before, and of that before it while the caller's work on it is under way.
    before = 2 * reads if ahead else 0
    return peak(numbers) + before <= most

  def single(n: int) -> str:
    advice = "a shorter prompt, a capture of fewer sites and blocks,"
    return does_not_fit(f"prompt {names[n]}", len(rows[n].ids), peak([n]), model.device, advice)

  # How many rows fit depends on their length.
  def weight(n: int) -> int:
    return length_bucket(len(rows[n].ids))

  in_parts = Halving(read, single, weight=weight, limit=limit)
  parts = (p for tile in (cut(rows)[0] if tiles is None else tiles) for p in cut_to_fit(tile, fits))
  if ahead:
    yield from in_parts.ahead(parts, wait)
    return
  for part in parts:
    yield from in_parts(part)


def _most_read(rows: Sequence[Row], spec: CaptureSpec, places: Mapping[Where, int]) -> int:
  """Return the bytes that reads of a tile take at most, if its rows share nothing."""
  each = max(length_bucket(len(row.ids)) for row in rows) if spec.reduce == "all" else 8
  return 2 * 4 * sum(places.values()) * row_bucket(len(rows)) * each


def _peak(
  model: "Model",
  rows: Sequence[Row],
  spec: CaptureSpec,
  banks: Mapping[int, jax.Array] | None,
  places: Mapping[Where, int],
  sharing: Sharing,
) -> int:
  """Predict the most memory that a tile takes at one time."""
  dry = DryMemory(model.arch, model.params, model.mesh)
  tree, reading = (
    Tree(rows, [len(row.ids) for row in rows], sharing=sharing),
    Reading(rows, spec, banks),
  )
  reads = prefill(model, tree, reading=reading, run=dry).reads
  if not reading.every:
    by_row(reads, reading.held, places, run=model.runner(dry))
  return dry.peak_bytes


def _check_delivered(
  names: Sequence[object],
  rows: Sequence[Row],
  realised_B: jax.Array | np.ndarray,
  requested_B: jax.Array | np.ndarray,
) -> None:
  """Raise if a row was not edited as asked: unlike a generation, a read carries no flag.

  Raises:
    ValueError: one was not.
  """
  if not any(row.edits for row in rows):
    return
  realised, requested = np.asarray(realised_B), np.asarray(requested_B)
  for b, (name, row) in enumerate(zip(names, rows, strict=True)):
    problem = problem_of(row, (), dose_of(realised[b], requested[b]))
    if problem:
      raise ValueError(f"prompt {name}: {problem}.")
