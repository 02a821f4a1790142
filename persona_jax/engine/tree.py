"""What the rows of a tile have in common: a tree of token runs, and in it the trunk of blocks.

The keys and values at a position and block depend on the tokens up to there, and on the edits that
act on one of them at a site before these keys are made. So rows with the same beginning share its
*node* of the tree; and at each node rows that differ only in edits of later blocks form one *class*
up to there:

                      block 0 … 14   block 15, its resid_post edited   block 16 … 29
      node "system"   1 class        1                                  8 classes (8 conditions)
      node "question" 1 class        1                                  8

A block is computed once a class. Where classes part at "resid_post", they do so behind the block;
at any other site the block itself is computed for each.
"""

import bisect
import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from persona_jax.edits.edit import Edit
from persona_jax.edits.table import FOREVER, SITES
from persona_jax.engine.rows import Row

# A common run of fewer tokens is not worth a pass of its own: each row computes it with the rest.
MIN_RUN = 8


def place_of(site: str, block: int) -> int:
  """Return the place of a site in the order of the forward pass."""
  return block * len(SITES) + SITES.index(site)


def keys_place(block: int) -> int:
  """Return the place from which on an edit leaves the keys and values of a block as they are."""
  return place_of("attn_in", block) + 1


def body_place(block: int) -> int:
  """Return the place from which on an edit can be applied behind a block."""
  return place_of("resid_post", block)


def first_place(edit: Edit) -> int:
  """Return the first place at which an edit acts."""
  return place_of(edit.site, min(edit.blocks))


@dataclasses.dataclass(frozen=True)
class Node:
  """A run of tokens that rows have in common.

  Attributes:
    parent: number of the node before it, -1 for none.
    depth: nodes before it.
    start, stop: positions of its tokens.
    rows: numbers of its rows.
  """

  parent: int
  depth: int
  start: int
  stop: int
  rows: tuple[int, ...]

  @property
  def length(self) -> int:
    """Tokens."""
    return self.stop - self.start


@dataclasses.dataclass(frozen=True)
class Group:
  """Rows of a node for which a block gives the same.

  Attributes:
    node: its number.
    rows: numbers of the rows; the first stands for all.
  """

  node: int
  rows: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Sharing:
  """What conditions share; each can be switched off, to compare.

  Attributes:
    prefix: rows that begin with the same tokens compute them once. Without it rows have nothing in
      common, whatever the others say.
    trunk: rows with different edits share the blocks before the first of them.
    prompt: edits that act on no token of a prefix do not divide it.
    attention: decoding rows of one prompt attend to one copy of its keys and values.

  Raises:
    ValueError: one of them is no bool.
  """

  prefix: bool = True
  trunk: bool = True
  prompt: bool = True
  attention: bool = True

  def __post_init__(self) -> None:
    for name, value in dataclasses.asdict(self).items():
      if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r}: give True or False.")

  def __str__(self) -> str:
    off = [name for name, value in dataclasses.asdict(self).items() if not value]
    return f"all but {', '.join(off)}" if off else "all"


ALL_SHARED = Sharing()


class _Acting(NamedTuple):
  """An edit of a row that acts on some tokens.

  Attributes:
    edit: it.
    place: the first at which it acts.
    key: equal for rows on which it acts alike.
  """

  edit: Edit
  place: int
  key: tuple[object, ...]


class Tree:
  """The prefix tree of some rows.

  Attributes:
    rows: the rows.
    stops: of each row, the tokens that belong to the tree.
    nodes: parents before children.
    order: the row numbers so that the rows of a node, and of a class at its leaves, stand together.
  """

  def __init__(
    self,
    rows: Sequence[Row],
    stops: Sequence[int],
    *,
    sharing: Sharing = ALL_SHARED,
    min_run: int = MIN_RUN,
  ):
    """Build the tree.

    Args:
      rows: the rows.
      stops: of each row, how many of its tokens are to be in the tree.
      sharing: what rows may have in common.
      min_run: tokens that a node needs to be one; a shorter run is computed with what follows it.
    """
    self.rows, self.stops = list(rows), list(stops)
    self._sharing, self._min_run = sharing, min_run
    self._held = [row.edit_tokens for row in self.rows]
    # What is asked again and again, block after block: see `_acting` and `groups`.
    self._known_acting: dict[tuple[int, int], tuple[_Acting, ...]] = {}
    self._known_cuts: dict[int, list[int]] = {}
    self._known_groups: dict[tuple[int, int], list[Group]] = {}
    self.nodes: list[Node] = []
    self._leaf: dict[int, int] = {}
    growing = [r for r in range(len(self.rows)) if self.stops[r]]
    if sharing.prefix:
      self._grow(growing)
    else:
      for r in growing:
        self._add(-1, 0, self.stops[r], [r], [r])
    self.order = self._sorted()

  def chain(self, row: int) -> list[int]:
    """Return the nodes of a row, from its first token on."""
    nodes: list[int] = []
    node = self._leaf.get(row, -1)
    while node >= 0:
      nodes.append(node)
      node = self.nodes[node].parent
    return nodes[::-1]

  @property
  def waves(self) -> list[list[int]]:
    """The nodes by depth: a wave needs what those before it computed."""
    deepest = max((node.depth for node in self.nodes), default=-1)
    out: list[list[int]] = [[] for _ in range(deepest + 1)]
    for n, node in enumerate(self.nodes):
      out[node.depth].append(n)
    return out

  def edits(self, row: int, stop: int) -> tuple[Edit, ...]:
    """Return the edits of a row that divide what it shares of the tokens before `stop`."""
    return tuple(acting.edit for acting in self._acting(row, stop))

  def groups(self, nodes: Sequence[int], place: int) -> list[Group]:
    """Return the classes at these nodes by all edits before a place; by node, rows in order."""
    return [group for n in nodes for group in self._groups(n, place)]

  def _groups(self, n: int, place: int) -> list[Group]:
    # Between two places at which rows part, classes are the same.
    parted = bisect.bisect_left(self._cuts(n), place)
    if (n, parted) not in self._known_groups:
      classes: dict[object, list[int]] = {}
      for row in self.nodes[n].rows:
        classes.setdefault(self._key(row, self.nodes[n].stop, place), []).append(row)
      self._known_groups[n, parted] = [Group(n, tuple(rows)) for rows in classes.values()]
    return self._known_groups[n, parted]

  def cuts(self, nodes: Sequence[int]) -> list[int]:
    """Return the places, in order, at which rows of these nodes may part."""
    if not self._sharing.trunk:
      return [0]
    return sorted({place for n in nodes for place in self._cuts(n)})

  def _cuts(self, n: int) -> list[int]:
    """Return the places, in order, of the edits that divide the rows of a node."""
    if n not in self._known_cuts:
      node = self.nodes[n]
      places = {a.place for row in node.rows for a in self._acting(row, node.stop)}
      self._known_cuts[n] = sorted(places)
    return self._known_cuts[n]

  def passes(self, num_blocks: int) -> int:
    """Return how many times a token is sent through a block, padding aside."""
    total = 0
    for n, node in enumerate(self.nodes):
      for lo, hi in stages(self.cuts([n]), num_blocks):
        total += (hi - lo) * node.length * len(self.groups([n], body_place(lo)))
    return total

  def _acting(self, row: int, stop: int) -> tuple["_Acting", ...]:
    """Return the edits of a row that divide what it shares of the tokens before `stop`."""
    known = self._known_acting.get((row, stop))
    if known is None:
      of, every = self.rows[row], not self._sharing.prompt
      found = []
      for edit, held_T in zip(of.edits, self._held[row], strict=True):
        if every or held_T[:stop].any():
          # The same tokens are edited; ramps and functions also ask how far the prompt's end is.
          by_offset = edit.ramp is not None or edit.call is not None
          key = id(edit), held_T[:stop].tobytes(), of.prompt_length if by_offset else None
          found.append(_Acting(edit, first_place(edit), key))
      known = self._known_acting[row, stop] = tuple(found)
    return known

  def _key(self, row: int, stop: int, place: int) -> tuple[object, ...]:
    """Return what is equal for rows of a node that are one class."""
    whole = not self._sharing.trunk
    return tuple(a.key for a in self._acting(row, stop) if whole or a.place < place)

  def _grow(self, rows: list[int]) -> None:
    """Add the nodes of rows, which all have tokens."""
    todo = [(rows, 0, 0, -1)]  # rows that agree up to `known`; their parent ends at `start`
    while todo:
      rows, start, known, parent = todo.pop()
      if not rows:
        continue
      stop = self._agreed(rows, known)
      ends = [r for r in rows if self.stops[r] == stop]
      if stop > start and (stop - start >= self._min_run or len(ends) == len(rows)):
        parent = self._add(parent, start, stop, rows, ends)
        start = stop
      elif ends:
        self._leaf |= dict.fromkeys(ends, parent)
        if stop > start:  # too short a run to be shared with those that go on
          self._add(parent, start, stop, ends, ends)
      parts: dict[int, list[int]] = {}
      for r in rows:
        if self.stops[r] > stop:
          parts.setdefault(self.rows[r].ids[stop], []).append(r)
      todo += [(part, start, stop, parent) for part in reversed(parts.values())]

  def _agreed(self, rows: Sequence[int], known: int) -> int:
    """Return up to where rows have the same tokens and, if they part there, act alike."""
    first = self.rows[rows[0]].ids
    stop = min(self.stops[r] for r in rows)
    for r in rows[1:]:
      ids = self.rows[r].ids
      if ids[known:stop] != first[known:stop]:
        stop = next(t for t in range(known, stop) if ids[t] != first[t])
    if stop - known < 2 or len({self._key(r, stop, FOREVER) for r in rows}) == 1:
      return stop
    turns = (
      known + 1 + np.flatnonzero(held_T[known + 1 : stop] != held_T[known : stop - 1])
      for r in rows
      for held_T in self._held[r]
    )
    return min((int(at[0]) for at in turns if len(at)), default=stop)

  def _add(
    self, parent: int, start: int, stop: int, rows: Sequence[int], ends: Sequence[int]
  ) -> int:
    depth = 0 if parent < 0 else self.nodes[parent].depth + 1
    self.nodes.append(Node(parent, depth, start, stop, tuple(rows)))
    self._leaf |= dict.fromkeys(ends, len(self.nodes) - 1)
    return len(self.nodes) - 1

  def _sorted(self) -> list[int]:
    """Return the rows by leaf and, in a leaf, by the order in which its classes part."""
    leaves: dict[int, list[int]] = {}
    for row in range(len(self.rows)):
      leaves.setdefault(self._leaf.get(row, -1), []).append(row)
    chains = {leaf: self.chain(rows[0]) for leaf, rows in leaves.items()}
    order = []
    for leaf in sorted(leaves, key=lambda leaf: chains[leaf]):
      classes = [leaves[leaf]]
      for place in (*self.cuts([leaf]), FOREVER) if leaf >= 0 else ():
        parted: list[list[int]] = []
        for rows in classes:
          by_key: dict[object, list[int]] = {}
          for row in rows:
            by_key.setdefault(self._key(row, self.nodes[leaf].stop, place), []).append(row)
          parted += by_key.values()
        classes = parted
      order += [row for rows in classes for row in rows]
    return order


def stages(cuts: Sequence[int], num_blocks: int) -> list[tuple[int, int]]:
  """Return runs of blocks [lo, hi) in which no rows part, given the places where they do."""
  first = {0}
  for cut in cuts:
    # A block is run for each class by the edits before its "resid_post".
    block = next((b for b in range(num_blocks) if cut < body_place(b)), num_blocks)
    first.add(block)
  edges = sorted(first - {num_blocks})
  return list(zip(edges, [*edges[1:], num_blocks], strict=True))
