"""Groups of a tree as the arrays of one pass: padded to a shape, cut where they are too many."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from persona_jax.edits.apply import TokenInfo
from persona_jax.edits.table import ALWAYS, FOREVER
from persona_jax.engine.rows import group_bucket, length_bucket, row_bucket
from persona_jax.engine.tree import Group, Tree

# What a run of nodes costs beside its tokens, in tokens: a program more, and smaller products. A
# CPU sends a token through a block in so long a time that less padding is worth a run.
_CPU_RUN_TOKENS, _RUN_TOKENS = 256, 512
_MANY = 1 << 30  # rows, for which lengths take the finest steps


class GroupBatch:
  """Groups that go through a block together, padded to a shape; the padding repeats the first.

  Its arrays are NumPy's, typed `Any`: they go to the device with the call. `size` is how many
  groups there are with the padding; default the next of `group_bucket`.
  """

  def __init__(self, tree: Tree, groups: Sequence[Group], length: int, size: int | None = None):
    self._tree, self.groups, self.length = tree, list(groups), length
    self.size = group_bucket(len(self.groups), length) if size is None else size

  @property
  def filled(self) -> list[Group]:
    """The groups, with the padding."""
    return self.groups + self.groups[:1] * (self.size - len(self.groups))

  def pieces(self, tokens: int) -> Iterator[tuple[slice, "GroupBatch"]]:
    """Cut into batches of at most so many tokens (and at least one row)."""
    if self.size * self.length <= tokens:
      yield slice(0, self.size), self
      return
    most = max(1, tokens // self.length)
    step = -(-len(self.groups) // -(-len(self.groups) // most))
    if most >= 8:
      step = min(row_bucket(step), most // 8 * 8)
    for i in range(0, len(self.groups), step):
      groups = self.groups[i : i + step]
      size = len(groups) if most < 8 else row_bucket(len(groups))  # long prompts: no padding
      part = GroupBatch(self._tree, groups, self.length, min(size, self.size - i))
      yield slice(i, i + part.size), part

  def _by_token(self, make: Callable[[Group], Any], empty: int) -> Any:
    out = np.full((self.size, self.length), empty, np.int32)
    for g, group in enumerate(self.filled):
      node = self._tree.nodes[group.node]
      out[g, : node.length] = make(group)[node.start : node.stop]
    return out

  def ids_GT(self) -> np.ndarray:
    """Token ids."""
    return self._by_token(lambda group: self._tree.rows[group.rows[0]].ids, 0)

  def position_GT(self) -> Any:
    """Positions; padding goes on counting behind the last token."""
    start_G = np.asarray([self._tree.nodes[group.node].start for group in self.filled], np.int32)
    return start_G[:, None] + np.arange(self.length, dtype=np.int32)

  def slot_position_GT(self) -> Any:
    """Positions of the tokens as slots: -1 for padding."""
    return np.where(self.tokens.valid_BT, self.position_GT(), np.int32(-1))

  @functools.cached_property
  def tokens(self) -> TokenInfo:
    """What edit windows need to know."""
    tree = self._tree
    end_G = np.asarray([tree.rows[group.rows[0]].prompt_length for group in self.filled], np.int32)
    length_G = np.asarray([tree.nodes[group.node].length for group in self.filled])
    roles_GT = self._by_token(lambda group: tree.rows[group.rows[0]].roles, 0)
    valid_GT: Any = np.arange(self.length) < length_G[:, None]
    return TokenInfo(
      self.position_GT() - end_G[:, None],
      roles_GT,
      valid_GT,
      self._by_token(lambda group: tree.rows[group.rows[0]].after_thought_T, ALWAYS),
    )


class Run(NamedTuple):
  """Nodes that go through the first block together, and their length with padding."""

  nodes: list[int]
  length: int


def runs(tree: Tree, nodes: Sequence[int], tokens: int) -> Iterator[Run]:
  """Cut nodes into runs of like length.

  A run ends where it has enough tokens, or where padding its nodes to the length of the next would
  cost more than another run does.
  """
  order = sorted(nodes, key=lambda n: tree.nodes[n].length)
  most = _CPU_RUN_TOKENS if jax.default_backend() == "cpu" else _RUN_TOKENS
  run: list[int] = []
  rows = padding = longest = 0  # of the run: classes of rows, their padding, its padded length
  for n in order:
    length = length_bucket(tree.nodes[n].length, _MANY)
    padding += (length - longest) * rows
    full = group_bucket(len(run) + 1) * length_bucket(length) > tokens
    if run and (full or padding > most):
      yield Run(sorted(run), length_bucket(longest, rows))
      run, rows, padding = [], 0, 0
    run.append(n)
    rows, longest = rows + len(tree.groups([n], FOREVER)), length
  yield Run(sorted(run), length_bucket(longest, rows))
