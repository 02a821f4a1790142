"""What is read of a tree's nodes, and how it comes back to the rows that share them.

A node is computed once for all of its rows, but not all of them read the same of its tokens: a
window counts from the end of the row's own prompt, and roles may differ. So the tokens that a row
reads are a set, found on the host; a block sums its activations over the few distinct sets of each
group, and what a row gets is the sum over its nodes. The last token is a set of one, the mean a
sum over its number. Only reduce="all" keeps every token of a node.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from persona_jax.edits.table import Where
from persona_jax.edits.window import Window
from persona_jax.engine.capture import CaptureSpec
from persona_jax.engine.forward import Reads
from persona_jax.engine.group_batch import GroupBatch
from persona_jax.engine.programs import Runner
from persona_jax.engine.rows import Row, row_bucket
from persona_jax.engine.tree import Group, Tree


@dataclasses.dataclass(frozen=True, eq=False)
class NodeReads:
  """What was read of the groups of one pass.

  Attributes:
    groups: the groups; the arrays have padding behind them.
    index_R: int32, place of each row of the tree in the arrays' first two axes, -1 for a row that
      reads nothing here.
    arrays: by (site, block), sums [G, C, ·] over C sets of tokens, or every token [G, T, ·].
  """

  groups: tuple[Group, ...]
  index_R: np.ndarray
  arrays: Reads


@dataclasses.dataclass(frozen=True, eq=False)
class Sets:
  """Sets of tokens that the rows of a batch read.

  Attributes:
    index_R: see `NodeReads`.
    held_GCT: bool, of NumPy; None if every token is kept.
  """

  index_R: np.ndarray
  held_GCT: Any


class Reading:
  """A capture of the rows of one tree.

  Attributes:
    spec: what a block is to read: sums over sets of tokens, or all tokens.
    banks: by block, or None.
    held: of each row, bool [T]: the tokens that it reads.
  """

  def __init__(self, rows: Sequence[Row], spec: CaptureSpec, banks: Mapping[int, jax.Array] | None):
    self.held = [held_tokens(row, spec) for row in rows]
    self.every = spec.reduce == "all"
    reduce = "all" if self.every else "sets"
    self.spec = dataclasses.replace(spec, reduce=reduce, window=Window())
    self.banks = banks

  def touches(self, tree: Tree, node: int) -> bool:
    """Whether a row reads a token of a node."""
    at = tree.nodes[node]
    return any(self.held[row][at.start : at.stop].any() for row in at.rows)

  def sets(self, tree: Tree, batch: GroupBatch) -> Sets | None:
    """Return what rows read of a batch, None if nothing."""
    place: dict[int, tuple[int, int]] = {}  # row: group, set
    by_group: list[dict[bytes, int]] = []  # set: number
    for g, group in enumerate(batch.groups):
      node = tree.nodes[group.node]
      numbers: dict[bytes, int] = {}
      for row in group.rows:
        held_T = self.held[row][node.start : node.stop]
        if held_T.any():
          key = b"" if self.every else held_T.tobytes()
          place[row] = g, numbers.setdefault(key, len(numbers))
      by_group.append(numbers)
    if not place:
      return None
    width = 1 << (max(map(len, by_group)) - 1).bit_length()  # few shapes
    index_R = np.full(len(tree.rows), -1, np.int32)
    for row, (g, c) in place.items():
      index_R[row] = g * width + c
    if self.every:
      return Sets(index_R, None)
    held_GCT = np.zeros((batch.size, width, batch.length), bool)
    for g, numbers in enumerate(by_group):
      for key, c in numbers.items():
        held_GCT[g, c, : len(key)] = np.frombuffer(key, bool)
    return Sets(index_R, held_GCT)


def held_tokens(row: Row, spec: CaptureSpec) -> np.ndarray:
  """Return which tokens of a row a capture reads, bool [T]."""
  if spec.reduce == "last":
    return np.arange(len(row.ids)) == len(row.ids) - 1
  return row.held(spec.window)


def by_row(
  notes: Sequence[NodeReads],
  held: Sequence[np.ndarray],
  places: Mapping[Where, int],
  *,
  run: Runner,
) -> Reads:
  """Return the mean over the tokens that each row reads, float32, on the device.

  Args:
    notes: sums over sets of tokens.
    held: of each row, the tokens that it reads.
    places: by (site, block), the width of what is read.
    run: calls the device.

  Returns:
    By (site, block), [B, ·]: NaN for a row that reads nothing; B is the number of rows, rounded up.
  """
  size = row_bucket(len(held))
  total: Reads = {}
  for note in notes:
    index_B = np.full(size, -1, np.int32)
    index_B[: len(held)] = note.index_R
    before = {where: total[where] for where in note.arrays if where in total}
    total |= run("add reads", _add, before, note.arrays, index_B)
  count_B = np.ones(size, np.float32)
  count_B[: len(held)] = [held_T.sum() for held_T in held]
  missing = tuple(item for item in places.items() if item[0] not in total)  # no row reads a token
  total = run("mean of reads", _divide, total, count_B, missing=missing)
  return {where: total[where] for where in places}


@functools.partial(jax.jit, donate_argnames="total")
def _add(total: Reads, sums: Reads, index_B: jax.Array) -> Reads:
  """Add what rows read of one pass; places that are not there yet begin at 0."""
  out = {}
  for where, x in sums.items():
    flat = x.reshape(-1, x.shape[-1])[jnp.maximum(index_B, 0)]
    flat = jnp.where(index_B[:, None] >= 0, flat, 0.0)
    out[where] = total[where] + flat if where in total else flat
  return out


@functools.partial(jax.jit, donate_argnames="total", static_argnames=("missing",))
def _divide(total: Reads, count_B: jax.Array, *, missing: tuple[tuple[Where, int], ...]) -> Reads:
  """Divide sums by counts; those of `missing` places, given with their widths, are 0."""
  nothing = {where: jnp.zeros((len(count_B), width), jnp.float32) for where, width in missing}
  return {where: x / count_B[:, None] for where, x in (total | nothing).items()}
